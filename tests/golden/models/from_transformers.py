"""Golden cases from the code of transformers: a model's own MoE block, run in fp64.

  python from_transformers.py FOLDER [MODEL...]

Needs torch and transformers (5.24.0 wrote the files here). Each block gets small random
weights that bf16 holds exactly, its output and gradients become hf_<model>.safetensors in
the format of tests/golden/README.md, under the config that it is in Megatron's words.
"""
import importlib
import json
import sys
from types import SimpleNamespace

import torch
from safetensors.torch import save_file
from transformers import __version__

S, B, H, E, K, F = 7, 3, 20, 12, 3, 9
FS = 2 * F  # of two shared experts, or of one that is twice as wide
LATENT = 8
NARROW_F = 4  # of the cases that came last: smaller files
VOCAB = 17  # of a layer that chooses by token ids

SIGMOID = {"moe_router_score_function": "sigmoid"}
BIASED = SIGMOID | {"moe_router_enable_expert_bias": True}
SHARED = {"moe_shared_expert_intermediate_size": FS}
NARROW = {"moe_ffn_hidden_size": NARROW_F,
          "moe_shared_expert_intermediate_size": 2 * NARROW_F}

# model: (class, what the block's own config says, what the layer is in Megatron's words)
MODELS = {
    "afmoe": ("AfmoeSparseMoeBlock", {"route_scale": 1.5, "num_shared_experts": 2},
              BIASED | SHARED | {"moe_router_topk_scaling_factor": 1.5}),
    "bailing_hybrid": (
        "BailingHybridMoE",
        {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 4, "n_shared_experts": 2,
         "routed_scaling_factor": 2.5},
        BIASED | SHARED | {"moe_router_num_groups": 4, "moe_router_group_topk": 2,
                           "moe_router_topk": 4, "moe_router_topk_scaling_factor": 2.5}),
    "deepseek_v2": (
        "DeepseekV2Moe", {"topk_method": "greedy", "n_shared_experts": 2},
        SHARED | {"moe_router_pre_softmax": True}),
    "deepseek_v2_groups": (
        "DeepseekV2Moe",
        {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
         "num_experts_per_tok": 4, "routed_scaling_factor": 16.0, "n_shared_experts": 2,
         "moe_intermediate_size": NARROW_F},
        NARROW | {"moe_router_pre_softmax": True, "moe_router_num_groups": 4,
                  "moe_router_group_topk": 2, "moe_router_group_score_topk": 1,
                  "moe_router_topk": 4, "moe_router_topk_scaling_factor": 16.0}),
    "deepseek_v3_top2_groups": (
        "DeepseekV3MoE",
        {"n_group": 4, "topk_group": 3, "num_experts_per_tok": 4,
         "routed_scaling_factor": 2.5, "n_shared_experts": 2,
         "moe_intermediate_size": NARROW_F},
        NARROW | BIASED | {"moe_router_num_groups": 4, "moe_router_group_topk": 3,
                           "moe_router_group_score_topk": 2, "moe_router_topk": 4,
                           "moe_router_topk_scaling_factor": 2.5}),
    "dots1": ("Dots1MoE",
              {"norm_topk_prob": False, "routed_scaling_factor": 2.5,
               "n_shared_experts": 2, "moe_intermediate_size": NARROW_F},
              NARROW | BIASED | {"moe_router_norm_topk_prob": False,
                                 "moe_router_topk_scaling_factor": 2.5}),
    "deepseek_v4_hash": (
        "DeepseekV4SparseMoeBlock",
        {"mlp_layer_types": ["hash_moe"], "vocab_size": VOCAB, "swiglu_limit": 0.5,
         "scoring_func": "sqrtsoftplus", "routed_scaling_factor": 1.5},
        {"moe_router_score_function": "sqrtsoftplus", "moe_router_hash_vocab_size": VOCAB,
         "moe_router_topk_scaling_factor": 1.5, "activation_func_clamp_value": 0.5,
         "moe_shared_expert_intermediate_size": F}),
    "flint": ("FlintSparseMoeBlock", {}, SIGMOID | SHARED),
    "glm4_moe": ("Glm4MoeMoE", {"routed_scaling_factor": 2.5, "n_shared_experts": 2},
                 BIASED | SHARED | {"moe_router_topk_scaling_factor": 2.5}),
    "glm5_next": (
        "Glm5NextTextMoE",
        {"swiglu_limit": 0.75, "routed_scaling_factor": 2.5, "n_shared_experts": 2},
        BIASED | SHARED | {"activation_func_clamp_value": 0.75,
                           "moe_router_topk_scaling_factor": 2.5}),
    "hy_v3": ("HYV3MoE", {"router_scaling_factor": 2.826, "num_shared_experts": 2,
                          "enable_moe_fp32_combine": False},
              BIASED | SHARED | {"moe_router_topk_scaling_factor": 2.826}),
    "jamba": ("JambaSparseMoeBlock", {"intermediate_size": F},
              {"moe_router_pre_softmax": True}),
    "jamba_gelu_tanh": (
        "JambaSparseMoeBlock",
        {"intermediate_size": NARROW_F, "hidden_act": "gelu_pytorch_tanh"},
        {"moe_ffn_hidden_size": NARROW_F, "moe_router_pre_softmax": True,
         "activation_func": "gelu_tanh"}),
    "kimi_linear": (
        "KimiLinearMoE", {"routed_scaling_factor": 2.446, "n_shared_experts": 2},
        BIASED | SHARED | {"moe_router_topk_scaling_factor": 2.446}),
    "llama4": ("Llama4TextMoe", {"intermediate_size": F, "num_experts_per_tok": 1},
               SIGMOID | {"moe_router_topk": 1, "moe_apply_probs_on_input": True,
                          "moe_shared_expert_intermediate_size": F}),
    "minimax_m3_vl": (
        "MiniMaxM3VLSparseMoeBlock",
        {"intermediate_size": F, "swiglu_alpha": 1.702, "swiglu_limit": 0.75,
         "routed_scaling_factor": 2.0, "shared_intermediate_size": FS},
        BIASED | SHARED | {"activation_func": "quick_gelu", "glu_linear_offset": 1.0,
                           "activation_func_clamp_value": 0.75,
                           "moe_router_topk_scaling_factor": 2.0}),
    "mistral4": ("Mistral4MoE", {"routed_scaling_factor": 1.25, "n_shared_experts": 2},
                 SHARED | {"moe_router_topk_scaling_factor": 1.25}),
    "nemotron_h_latent": (
        "NemotronHMoE",
        {"mlp_hidden_act": "relu2", "moe_latent_size": LATENT, "routed_scaling_factor": 5.0,
         "moe_shared_expert_intermediate_size": FS},
        BIASED | SHARED | {"gated_linear_unit": False, "activation_func": "squared_relu",
                           "moe_latent_size": LATENT,
                           "moe_router_topk_scaling_factor": 5.0}),
    "olmoe": ("OlmoeSparseMoeBlock", {"norm_topk_prob": False, "intermediate_size": F},
              {"moe_router_pre_softmax": True}),
    "qwen2_moe": ("Qwen2MoeSparseMoeBlock", {"norm_topk_prob": False},
                  SHARED | {"moe_router_pre_softmax": True,
                            "moe_shared_expert_gate": True}),
    "qwen3_5_moe": ("Qwen3_5MoeSparseMoeBlock", {},
                    SHARED | {"moe_shared_expert_gate": True}),
}


def make_config(own):
    """Every name that one of the blocks asks for; a width n * F is FS where n is 2."""
    values = dict(hidden_size=H, num_experts=E, num_local_experts=E, n_routed_experts=E,
                  num_experts_per_tok=K, moe_intermediate_size=F, intermediate_size=F,
                  shared_expert_intermediate_size=FS, hidden_act="silu", n_group=1,
                  topk_group=1, norm_topk_prob=True, routed_scaling_factor=1.0,
                  mlp_bias=False, use_bias=False, _experts_implementation="eager")
    return SimpleNamespace(**values | own)


def random_like(tensor, scale):
    return (scale * torch.randn(tensor.shape)).bfloat16().double()


def find(block, *names):
    for name in names:
        part = block
        for step in name.split("."):
            part = getattr(part, step, None)
        if part is not None:
            return part
    return None


def stacked_fc1(mlp):
    """The parameters of (2 FS or FS, H): gate rows, then up rows."""
    if hasattr(mlp, "gate_up_proj"):
        return [mlp.gate_up_proj.weight]
    if hasattr(mlp, "gate_proj"):
        return [mlp.gate_proj.weight, mlp.up_proj.weight]
    return [mlp.up_proj.weight]


def run(model, seed):
    name, own, words = MODELS[model]
    code = model
    for suffix in ("_latent", "_hash", "_gelu_tanh", "_top2_groups", "_groups"):
        code = code.removesuffix(suffix)
    hashes = "moe_router_hash_vocab_size" in words
    module = importlib.import_module(f"transformers.models.{code}.modeling_{code}")
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float64)
    block = getattr(module, name)(make_config(own), *[0] * hashes).double().train()
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(random_like(parameter, 0.5))
    bias = find(block, "gate.e_score_correction_bias", "e_score_correction_bias",
                "expert_bias")
    biased = "moe_router_enable_expert_bias" in words
    if bias is not None:
        bias.data = random_like(bias, 0.1) if biased else torch.zeros_like(bias).double()
    x = random_like(torch.empty(S, B, H), 1.0).requires_grad_()
    doutput = random_like(torch.empty(S, B, H), 1.0)

    ids = torch.randint(VOCAB, (B, S))
    if hashes:
        rows = [torch.randperm(E)[:K] for _ in range(VOCAB)]
        block.gate.tid2eid.copy_(torch.stack(rows))

    seen = {}
    block.experts.register_forward_pre_hook(lambda _, args: seen.update(args=args))
    router = find(block, "router", "gate")
    router.register_forward_hook(lambda _, args, out: seen.update(router=out))
    # a block is batch first
    output = block(x.transpose(0, 1).contiguous(), *[ids] * hashes)
    output = output[0] if isinstance(output, tuple) else output
    output = output.reshape(B, S, H).transpose(0, 1)
    (output * doutput).sum().backward()

    weight = find(router, "gate.weight", "weight")
    flat = x.detach().reshape(S * B, H)
    logits = flat @ weight.detach().T
    if model == "llama4":
        probs = seen["router"][0].detach().double()
    else:
        _, chosen, weights = seen["args"]
        probs = torch.zeros(S * B, E, dtype=torch.float64)
        probs.scatter_(1, chosen, weights.detach().double())
        if model == "minimax_m3_vl":  # it scales what comes out of the experts
            probs *= own["routed_scaling_factor"]
    # the block's tokens are b S + s
    probs = probs.reshape(B, S, E).transpose(0, 1).reshape(S * B, E)

    experts, shared = block.experts, find(block, "shared_experts", "shared_expert")
    gate = find(block, "shared_expert_gate")
    turned = (lambda w: w.transpose(1, 2)) if model == "llama4" else (lambda w: w)
    tensors = {"input.hidden_states": x, "input.grad_output": doutput}
    expect = {"output": output, "logits": logits, "probs": probs,
              "grad.hidden_states": x.grad}

    def add(name, parameters, turned=lambda w: w):
        tensors[name] = torch.cat([turned(p) for p in parameters])
        expect["grad." + name] = torch.cat([turned(p.grad) for p in parameters])

    add("router.weight", [weight])
    add("experts.linear_fc1.weight", [find(experts, "gate_up_proj", "up_proj")], turned)
    add("experts.linear_fc2.weight", [experts.down_proj], turned)
    if shared is not None:
        add("shared_experts.linear_fc1.weight", stacked_fc1(shared))
        add("shared_experts.linear_fc2.weight", [shared.down_proj.weight])
    if gate is not None:
        add("shared_experts.gate_weight", [gate.weight])
    if "moe_latent_size" in words:
        add("fc1_latent_proj.weight", [block.fc1_latent_proj.weight])
        add("fc2_latent_proj.weight", [block.fc2_latent_proj.weight])
    if biased:
        tensors["router.expert_bias"] = bias
    tensors = {k: v.detach().float().contiguous() for k, v in tensors.items()}
    if hashes:
        tensors["router.tid2eid"] = block.gate.tid2eid.clone()
        tensors["input.token_ids"] = ids
    for k, v in expect.items():
        tensors["expect." + k] = v.detach().double().contiguous()
    tensors["expect.routing_map"] = (probs > 0).to(torch.uint8)
    config = {"moe_token_dispatcher_type": "alltoall", "gated_linear_unit": True,
              "activation_func": "silu", "add_bias_linear": False,
              "moe_router_load_balancing_type": "none", "moe_router_dtype": "fp32",
              "hidden_size": H, "num_moe_experts": E, "moe_router_topk": K,
              "moe_ffn_hidden_size": F} | words
    metadata = {"format": "moe-golden-1", "case": "hf_" + model,
                "source": f"transformers {__version__} {name}, CPU, fp64",
                "moe_config": json.dumps(config)}
    return tensors, metadata, closest(logits, tensors, config)


def closest(logits, tensors, config):
    """The least gap between the K-th and the next key, over tokens."""
    if "moe_router_hash_vocab_size" in config:
        return 1.0  # no keys: the token's id chooses
    keys = logits.sigmoid() if "moe_router_score_function" in config else logits
    if "moe_router_group_score_topk" in config and keys is logits:
        keys = logits.softmax(-1)  # before top-k: sums of a group are of these
    keys = keys + tensors.get("router.expert_bias", torch.zeros(E)).double()
    groups = config.get("moe_router_num_groups")
    if groups:
        limit = config["moe_router_group_topk"]
        each = config.get("moe_router_group_score_topk",
                          config["moe_router_topk"] // limit)
        grouped = keys.reshape(len(keys), groups, E // groups)
        scores = grouped.topk(each).values.sum(-1).sort(descending=True).values
        group_gap = (scores[:, limit - 1] - scores[:, limit]).min()
        if group_gap < 1e-3:
            return group_gap
        kept = torch.zeros(len(keys), groups, dtype=torch.bool)
        kept.scatter_(1, grouped.topk(each).values.sum(-1).topk(limit).indices, True)
        keys = grouped.masked_fill(~kept[..., None], -9.0).reshape(len(keys), E)
    ordered = keys.sort(descending=True).values
    k = config["moe_router_topk"]
    return (ordered[:, k - 1] - ordered[:, k]).min()


def main():
    folder, models = sys.argv[1], sys.argv[2:] or list(MODELS)
    for model in models:
        for seed in range(100):
            tensors, metadata, gap = run(model, seed)
            if gap >= 1e-3:
                break
        save_file(tensors, f"{folder}/hf_{model}.safetensors", metadata)
        print(model, "seed", seed, "gap", float(gap))


main()
