"""Tiny checkpoints as transformers itself saves them, and what one block gives in fp64.

  python from_transformers.py FOLDER [MODEL...]

Needs torch and transformers (5.24.0 wrote the files here). FOLDER/<model>/ gets config.json
and shards with their index; FOLDER/<model>.safetensors the block's input and output, each
(S, B, H). Weights are small random numbers that bf16 holds exactly.
"""
import copy
import importlib
import os
import shutil
import sys

import torch
from safetensors.torch import save_file
from transformers import __version__

S, H, E, K, F = 7, 6, 4, 2, 5
LAYER = 1

COMMON = dict(vocab_size=4, hidden_size=H, num_hidden_layers=2, num_attention_heads=2,
              num_key_value_heads=1, head_dim=4, max_position_embeddings=8,
              pad_token_id=0, bos_token_id=1, eos_token_id=2)
LOW_RANK = dict(q_lora_rank=4, kv_lora_rank=4, qk_rope_head_dim=2, qk_nope_head_dim=2,
                v_head_dim=4, head_dim=2)

# model: (class, its config, the block within its layer)
MODELS = {
    # block_sparse_moe.experts.<e>.w1/w3/w2
    "mixtral": ("MixtralForCausalLM",
                dict(num_local_experts=E, num_experts_per_tok=K, intermediate_size=F),
                "mlp"),
    # mlp.experts.<e>.gate_proj/up_proj/down_proj
    "qwen3_moe": ("Qwen3MoeForCausalLM",
                  dict(num_experts=E, num_experts_per_tok=K, moe_intermediate_size=F,
                       intermediate_size=F, norm_topk_prob=True, mlp_only_layers=[0]),
                  "mlp"),
    # the same with an expert bias, groups and shared experts; its gate stays fp32
    "deepseek_v3": ("DeepseekV3ForCausalLM",
                    dict(n_routed_experts=8, num_experts_per_tok=4, n_group=4,
                         topk_group=2, n_shared_experts=2, moe_intermediate_size=F,
                         intermediate_size=F, first_k_dense_replace=1, **LOW_RANK),
                    "mlp"),
    # (E, H, 2F) with gates and ups in turn, and biases
    "gpt_oss": ("GptOssForCausalLM",
                dict(num_local_experts=E, num_experts_per_tok=K, intermediate_size=F,
                     layer_types=["full_attention"] * 2),
                "mlp"),
    # (E, H, 2F)
    "llama4": ("Llama4ForCausalLM",
               dict(num_local_experts=E, num_experts_per_tok=1, intermediate_size=F,
                    intermediate_size_mlp=F, moe_layers=[1],
                    layer_types=["full_attention"] * 2),
               "feed_forward"),
    # (E, 2F, H) under other names, and a shared expert outside of the block
    "granitemoeshared": ("GraniteMoeSharedForCausalLM",
                         dict(num_local_experts=E, num_experts_per_tok=K,
                              intermediate_size=F, shared_intermediate_size=3),
                         "block_sparse_moe"),
    # (E F, H), FC2 transposed
    "dbrx": ("DbrxForCausalLM",
             dict(d_model=H, n_heads=2, n_layers=2, max_seq_len=8, vocab_size=4,
                  ffn_config=dict(hidden_size=H, ffn_hidden_size=F, moe_num_experts=E,
                                  moe_top_k=K),
                  attn_config=dict(kv_n_heads=1, clip_qkv=8.0)),
             "ffn"),
}


def make_model(model):
    name, own, _ = MODELS[model]
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    cls = getattr(module, name)
    values = own if model == "dbrx" else COMMON | own
    config = cls.config_class(**values)
    if model == "dbrx" and not hasattr(config.attn_config, "rope_theta"):
        config.attn_config.rope_theta = 10000.0
    torch.manual_seed(1)
    built = cls(config)
    with torch.no_grad():
        for tensor in [*built.parameters(), *built.buffers()]:
            if tensor.is_floating_point() and tensor.dim() > 0:
                tensor.copy_((0.5 * torch.randn(tensor.shape)).bfloat16())
    return built


def main():
    folder, models = sys.argv[1], sys.argv[2:] or list(MODELS)
    for model in models:
        path = f"{folder}/{model}"
        shutil.rmtree(path, ignore_errors=True)
        built = make_model(model)
        decoder = getattr(built, "model", None) or built.transformer
        layer = (decoder.layers if hasattr(decoder, "layers") else decoder.blocks)[LAYER]
        block = copy.deepcopy(getattr(layer, MODELS[model][2])).double().eval()
        shared = copy.deepcopy(getattr(layer, "shared_mlp", None))
        # the block's choice between kernels must not decide the numbers
        for part in block.modules():
            if hasattr(part, "config"):
                part.config._experts_implementation = "eager"
        hidden = torch.randn(1, S, H).bfloat16().double()
        with torch.no_grad():
            output = block(hidden)
            output = output[0] if isinstance(output, tuple) else output
            output = output.reshape(1, S, H)
            if shared is not None:
                output = output + shared.double()(hidden)
        # the gate of DeepSeek-V3 is fp32 beside experts of bf16; Mixtral's is as they are
        built.to(torch.bfloat16)
        if model == "deepseek_v3":
            for part in decoder.layers[LAYER].mlp.gate.parameters():
                part.data = part.data.float()
        built.save_pretrained(path, max_shard_size="2KB")
        if os.path.exists(f"{path}/generation_config.json"):
            os.remove(f"{path}/generation_config.json")
        save_file({"hidden_states": hidden.transpose(0, 1).float().contiguous(),
                   "output": output.transpose(0, 1).contiguous()},
                  f"{path}.safetensors",
                  {"source": f"transformers {__version__}, layer {LAYER}, CPU, fp64"})
        print(model, sum(os.path.getsize(f"{path}/{f}") for f in os.listdir(path)), "B",
              len(os.listdir(path)), "files")


main()
