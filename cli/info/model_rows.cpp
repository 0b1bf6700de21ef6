// The models that have been looked at, each in its own code.

#include "cli/info/models.h"

namespace moe {

const std::vector<ModelRow>& model_rows() {
    static const std::vector<ModelRow> rows = {
        // ------------------------------------------------- whose own values it meets
        {"Trinity (AFMoE)", "afmoe", "", "models/hf_afmoe"},
        {"Aria", "aria", "", "models/hf_aria"},
        {"Command A+ (Cohere 2 MoE)", "cohere2_moe", "", "models/hf_cohere2_moe_softmax",
         "",
         "with `shared_expert_combination_strategy` average: half of the sum of routed "
         "and shared experts"},
        {"DBRX", "dbrx", "", "models/hf_dbrx"},
        {"DeepSeek-V2", "deepseek_v2", "", "models/hf_deepseek_v2", "",
         "with `topk_method` group_limited_greedy: a group's score is its largest "
         "expert's"},
        {"DeepSeek-V3", "deepseek_v3", "deepseek_v3", "hf_deepseek_v3"},
        {"DeepSeek-V4", "deepseek_v4", "deepseek_v4_flash", "models/hf_deepseek_v4", "",
         "in the `hash_moe` layers: experts that a table gives for the token's id"},
        {"ERNIE 4.5", "ernie4_5_moe", "", "models/hf_ernie4_5_moe_zero_bias", "",
         "where the bias is not zero: an expert bias beside softmax scores"},
        {"K-EXAONE", "exaone_moe", "", "models/hf_exaone_moe"},
        {"Flint", "flint", "", "models/hf_flint"},
        {"GLM-4.5", "glm4_moe", "glm_4_5", "models/hf_glm4_moe"},
        {"GLM-5.3 Flash", "glm5_next", "", "models/hf_glm5_next"},
        {"gpt-oss", "gpt_oss", "gpt_oss_20b, gpt_oss_120b", "hf_gpt_oss"},
        {"Granite MoE", "granitemoe", "", "models/hf_granitemoe"},
        {"Hunyuan-A13B", "hunyuan_v1_moe", "", "models/hf_hunyuan_v1_moe"},
        {"Hy 3", "hy_v3", "", "models/hf_hy_v3"},
        {"Jamba", "jamba", "", "models/hf_jamba"},
        {"Kimi Linear", "kimi_linear", "", "models/hf_kimi_linear"},
        {"Ling 3.0 (Bailing hybrid)", "bailing_hybrid", "", "models/hf_bailing_hybrid"},
        {"Llama 4", "llama4", "llama4_scout", "models/hf_llama4"},
        {"MiniMax-M2", "minimax_m2", "minimax_m2", "models/hf_minimax_m2"},
        {"MiniMax-M3", "minimax_m3_vl", "", "models/hf_minimax_m3_vl"},
        {"Mistral Small 4", "mistral4", "", "models/hf_mistral4", "",
         "with more than one group: groups chosen by softmax probabilities"},
        {"Mixtral", "mixtral", "mixtral_8x7b, mixtral_8x22b", "hf_mixtral"},
        {"Nemotron-3 Super, Ultra", "nemotron_h", "nemotron_3_super",
         "models/hf_nemotron_h_latent"},
        {"Nemotron-H, Nemotron-3 Nano", "nemotron_h", "", "models/hf_nemotron_h"},
        {"OLMoE", "olmoe", "olmoe", "models/hf_olmoe"},
        {"OpenAI privacy filter", "openai_privacy_filter", "",
         "models/hf_openai_privacy_filter"},
        {"Qwen1.5-MoE, Qwen2-MoE", "qwen2_moe", "", "models/hf_qwen2_moe"},
        {"Qwen3-MoE", "qwen3_moe", "qwen3_30b_a3b, qwen3_235b_a22b", "hf_qwen3_moe"},
        {"Qwen3-Next", "qwen3_next", "qwen3_next_80b", "models/hf_qwen3_next"},
        {"Qwen3.5-MoE", "qwen3_5_moe", "", "models/hf_qwen3_5_moe"},
        // --------------------------------- read, and found to compute what another does
        {"A.X K2", "axk2", "", "", "GLM-4.5",
         "with groups: experts of unchosen groups stay eligible with a key of 0"},
        {"Beam", "beam", "", "", "Ling 3.0 (Bailing hybrid)"},
        {"DeepSeek-V3.2", "deepseek_v32", "", "", "DeepSeek-V3"},
        {"dots.llm1", "dots1", "", "", "GLM-4.5",
         "without `norm_topk_prob`: sigmoid weights that are not normalised"},
        {"dots3-note", "dots3_note", "", "", "GLM-4.5"},
        {"FlexOlmo", "flex_olmo", "", "", "OLMoE"},
        {"GLM-4 MoE lite", "glm4_moe_lite", "", "", "GLM-4.5"},
        {"GLM-5", "glm_moe_dsa", "", "", "GLM-4.5"},
        {"Kimi-K2.6", "kimi_k25", "", "", "DeepSeek-V3"},
        {"Laguna", "laguna", "", "", "GLM-4.5",
         "with `moe_router_logit_softcapping`: logits within a tanh"},
        {"Lara 4 Mini", "lara_mini", "", "", "Hunyuan-A13B"},
        {"Mellum 2", "mellum", "", "", "Qwen3-MoE"},
        {"MiMo-V2-Flash", "mimo_v2_flash", "", "", "GLM-4.5"},
        {"MiniMax-Text-01", "minimax", "", "", "Mixtral"},
        {"Mistral Large 4", "mistral_large4", "", "", "Mistral Small 4"},
        {"Qwen3-VL-MoE", "qwen3_vl_moe", "", "", "Qwen3-MoE"},
        {"Qwen4 (exp)", "qwen4_exp", "", "", "Qwen3-Next"},
        {"Solar Open", "solar_open", "", "", "GLM-4.5"},
        {"Step 3.7", "step3p7", "", "", "GLM-4.5",
         "in the layers that clamp: the gate is clamped after its activation"},
        // ------------------------------------------------------------ what it is not
        {"A.X K1", "axk1", "", "", "", "an RMS norm of the block's output"},
        {"Doge", "doge", "", "", "",
         "experts of one neuron, found by product keys; the scores of tokens mix"},
        {"ERNIE 4.5 VL", "ernie4_5_vl_moe", "", "", "",
         "a router and experts for text and others for images; an expert bias beside "
         "softmax scores"},
        {"DiffusionGemma", "diffusion_gemma", "", "", "",
         "a router with a norm of its own, a factor for each expert, tanh-GELU"},
        {"Gemma 4", "gemma4", "", "", "",
         "a router with a norm of its own, a factor for each expert, tanh-GELU"},
        {"Hy 4", "hy_v4", "", "", "",
         "a clamp in the routed experts that the shared ones do not have"},
        {"Inkling", "inkling", "", "", "",
         "shared experts that the router weighs, normalised together with the routed"},
        {"Inkling 2", "inkling2", "", "", "",
         "SwiGLU with a tanh softcap around gate and up"},
        {"JetMoE", "jetmoe", "", "", "", "a bias of the block's output"},
        {"Kimi-K3",
         "NVIDIA-NeMo/Megatron-Bridge: "
         "src/megatron/bridge/models/kimi/kimi_k3_layers.py",
         "", "", "",
         "an RMS norm in the latent space, before the projection back; its activation "
         "(situ)"},
        {"Kolibri 1", "kolibri1", "", "", "",
         "an expert bias that is added to logits, not to scores; without "
         "`norm_topk_prob`: sigmoid weights that are not normalised"},
        {"LFM2-MoE", "lfm2_moe", "", "", "",
         "weights over their sum + 1e-6 (here + 1e-20)"},
        {"LongCat-Flash", "longcat_flash", "", "", "",
         "zero experts, which return their input; an expert bias beside softmax scores"},
        {"Muse Spark", "muse_spark", "", "", "",
         "norms in the latent space, after the first projection and after each expert; "
         "scaled logits"},
        {"Phi-3.5-MoE", "phimoe", "", "", "", "sparsemixer in place of top-k"},
        {"ZAYA1", "zaya", "", "", "",
         "a router that is an MLP and hands its state to the next block; an expert bias "
         "beside softmax scores; an expert that is skipped"}};
    return rows;
}

}  // namespace moe
