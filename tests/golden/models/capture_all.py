"""Captures the MoE layers of every model class of transformers that has any.

  python capture_all.py captured.tsv [MODEL...]

A small model of each class with random weights runs forward and backward on random token
ids; moe.capture writes its layers, and `moe verify` runs them through every tier. What
came of it is one line of the table. Needs torch, transformers (5.24.0 wrote the table
here) and the package moe; MOE_PROGRAM names another program than the package's.
"""
import importlib
import inspect
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import torch
import transformers
from moe.capture import CaptureError, capture
from moe.capture.blocks import find_blocks
from moe.capture.cli import run

E, K, TOKENS = 8, 2, 40
# Whatever of these a config has
SMALL = dict(
    vocab_size=101, hidden_size=32, d_model=32, n_embd=32, intermediate_size=24,
    moe_intermediate_size=24, ffn_hidden_size=24, expert_ffn_hidden_size=16,
    intermediate_size_mlp=24, dense_intermediate_size=24, moe_ffn_hidden_size=16,
    shared_intermediate_size=16, shared_expert_intermediate_size=16,
    moe_shared_expert_intermediate_size=16, prefix_dense_intermediate_size=24,
    num_hidden_layers=4, num_layers=4, n_layers=4, num_attention_heads=4, n_heads=4,
    num_key_value_heads=4, head_dim=8, kv_channels=8, kv_n_heads=2,
    attention_head_size=8,
    num_experts=E, num_local_experts=E, n_routed_experts=E, moe_num_experts=E,
    num_experts_per_tok=K, num_experts_per_token=K, moe_k=K, moe_top_k=K, moe_topk=K,
    top_k=K, n_shared_experts=1, num_shared_experts=1, num_shared_expert=1,
    moe_num_shared_experts=1, n_group=1, topk_group=1, first_k_dense_replace=1,
    num_dense_layers=1, moe_layer_start_index=1, moe_layer_end_index=-1,
    moe_layer_interval=1, decoder_sparse_step=1, max_position_embeddings=128,
    max_seq_len=128, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
    qk_nope_head_dim=8, v_head_dim=8, qk_head_dim=16, index_head_dim=8, index_n_heads=2,
    index_topk=16, linear_num_key_heads=2, linear_num_value_heads=4,
    linear_key_head_dim=8, linear_value_head_dim=8, mamba_num_heads=4, mamba_head_dim=16,
    mamba_n_heads=8, mamba_d_head="auto", ssm_state_size=8, mamba_d_state=8, n_groups=2,
    mamba_n_groups=1, mamba_dt_rank=4, conv_kernel=4, chunk_size=16,
    sliding_window=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    num_nextn_predict_layers=0)
# What a class wants besides
ROPE = {"rope_type": "default", "rope_theta": 1e4}
OWN = {
    "cohere2_moe": {"shared_expert_combination_strategy": "sum"},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
             "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 24,
                            "moe_num_experts": E, "moe_top_k": K}},
    "deepseek_ocr2": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "diffusion_gemma": {"top_k_experts": K},
    "ernie4_5_vl_moe": {"moe_intermediate_size": [24, 24]},
    "gemma4": {"enable_moe_block": True, "top_k_experts": K},
    "glm4v_moe": {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5,
                                             "mrope_section": [1, 1, 0]}},
    "glm5_next": {"qk_rope_head_dim": 0},
    "hy_v4_vl": {"rope_parameters": ROPE | {"mrope_section": [2, 1, 1]}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "llama4": {"num_experts_per_tok": 1},
    "longcat_flash": {"zero_expert_num": 0},
    "mimo_v2_flash": {"num_key_value_heads": 2},
    "mistral4": {"head_dim": 16},
    "qwen4_exp": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8,
                  "indexer_budget": 16, "indexer_compress_ratio": 4, "ple_layer_ids": [],
                  "ple_embed_dim": 8, "ngram_vocab_size_base": 128},
    "zaya": {"num_experts_per_tok": 1},
}
# Chooses experts by data sets, not by tokens
NOT_OF_LANGUAGE = {"vitpose_backbone"}
# Blocks whose correction bias must be zero
ZERO_BIAS = {"ernie4_5_moe", "ernie4_5_vl_moe", "longcat_flash", "kolibri1"}


def model_types():
    """Names of the folders whose code has an MoE block."""
    root = pathlib.Path(transformers.__file__).parent / "models"
    return [folder.name for folder in sorted(root.iterdir())
            if folder.name not in NOT_OF_LANGUAGE
            and (folder / f"modeling_{folder.name}.py").exists()
            and "self.experts" in (folder / f"modeling_{folder.name}.py").read_text()]


def model_class(code):
    """The language model of a folder's code: a head if there is one."""
    module = importlib.import_module(f"transformers.models.{code}.modeling_{code}")
    names = [name for name, kind in inspect.getmembers(module, inspect.isclass)
             if kind.__module__ == module.__name__ and hasattr(kind, "config_class")
             and kind.config_class is not None]
    for ending in ("ForCausalLM", "TextModel", "ForConditionalGeneration", "Model"):
        found = [name for name in names if name.endswith(ending)
                 and "Vision" not in name and "Audio" not in name]
        if found:
            return getattr(module, min(found, key=len))
    raise ValueError("no language model")


def small_config(code, kind):
    config_class = kind.config_class
    known = set(inspect.signature(config_class).parameters) | set(
        vars(config_class()).keys())
    fields = {name: value for name, value in SMALL.items() if name in known}
    fields.update(OWN.get(code, {}))
    return config_class(**fields)


def randomise(model, code):
    """So that experts differ, and no bias is zero that need not be."""
    generator = torch.Generator().manual_seed(1)
    for name, p in list(model.named_parameters()) + list(model.named_buffers()):
        if name.endswith("tid2eid"):
            p.data = torch.stack([torch.randperm(E, generator=generator)[:p.shape[1]]
                                  for _ in range(p.shape[0])]).to(p.dtype)
        if not p.is_floating_point():
            continue
        inside = any(word in name for word in ("mlp", "moe", "feed_forward", "ffn",
                                               "experts", "mixer", "router"))
        if "correction_bias" in name or "expert_bias" in name:
            deviation = 0.0 if code in ZERO_BIAS else 0.05
        elif not inside or p.dim() < 2 and "bias" not in name:
            continue
        else:
            deviation = 0.1 if "bias" in name else p.shape[-1] ** -0.5
        p.data = (deviation * torch.randn(p.shape, generator=generator)).to(p.dtype)


def verify(files):
    program = os.environ.get("MOE_PROGRAM")
    command = [program] if program else [sys.executable, "-m", "moe"]
    done = subprocess.run(command + ["verify", "--json", *files], capture_output=True,
                          text=True)
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def attempt(code, folder):
    """One line of the table, as a dict."""
    line = {"code": code, "model": "-", "block": "-", "outcome": "-", "what": ""}
    try:
        kind = model_class(code)
        line["model"] = kind.__name__
        torch.manual_seed(1)
        model = kind(small_config(code, kind)).float().eval()
        randomise(model, code)
        ids = torch.randint(3, 100, (1, TOKENS))
    except Exception as error:
        return line | {"outcome": "not built", "what": one_line(error)}
    names = list(find_blocks(model))
    try:
        # The first and the last: where there are two kinds, they are of both
        session = capture(model, folder, layers=sorted({*names[:1], *names[-1:]}) or None)
        line["block"] = ", ".join(sorted({type(whole.block).__name__
                                          for whole in session.blocks.values()}))
        with session:
            if getattr(model.config, "is_encoder_decoder", False):
                model(input_ids=ids, decoder_input_ids=ids)
            else:
                run(model, ids, True, torch)
    except CaptureError as error:
        return line | {"outcome": "refused", "what": lacking(one_line(error))}
    except Exception as error:  # of the model's own, and what is not foreseen here
        return line | {"outcome": "failed", "what": f"{type(error).__name__}: "
                       + one_line(error)}
    results, errors = verify([file.path for file in session.files])
    ok = bool(results) and all(result["ok"] for result in results)
    line["outcome"] = "match" if ok else "differs"
    if not ok:
        line["what"] = one_line(errors)
    for result in results:
        worst = max(tensor["error"] for tensor in result["tensors"])
        line[result["dtype"]] = max(line.get(result["dtype"], 0.0), worst)
    return line


def lacking(text):
    """What the layer lacks, of a refusal that says so."""
    if ": known are " in text:
        return "its model_type is not known"
    if "has no MoE block" in text:
        return "no module with children experts and a router"
    return text.split(": the layer lacks ")[-1]


def one_line(error):
    return " ".join(str(error).split())[:200]


COLUMNS = ("code", "model", "block", "outcome", "fp64", "fp32", "bf16", "what")


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    table, codes = pathlib.Path(sys.argv[1]), sys.argv[2:] or model_types()
    lines = {}
    if table.exists() and sys.argv[2:]:  # these lines alone are made again
        rows = [row.split("\t") for row in table.read_text().splitlines()[1:]]
        lines = {row[0]: dict(zip(COLUMNS, row)) for row in rows}
    for code in codes:
        with tempfile.TemporaryDirectory() as folder:
            line = attempt(code, folder)
        lines[code] = {name: f"{line[name]:.1e}" if isinstance(line.get(name), float)
                       else line.get(name, "-") or "-" for name in COLUMNS}
        print(*lines[code].values(), sep="\t", flush=True)
        table.write_text("".join("\t".join(row) + "\n" for row in [
            COLUMNS, *(lines[code].values() for code in sorted(lines))]))


main()
