# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # 8. Your own checkpoint
#
# `moe.load_layer(folder, n)` reads the MoE layer n of a model as Hugging Face stores
# it: `config.json` beside `*.safetensors`. Put your model's folder below. Without one,
# the next cell writes a tiny Mixtral, so that you also see how little such a file is.
#
# Then the layer runs in several precisions and tiers, and you see where they part.

# %%
import json
import pathlib
import struct
import tempfile

import matplotlib.pyplot as plt
import numpy as np

import moe
from pictures import (BLUE, GREEN, GREY, LIGHT, ORANGE, draw_prediction, figure, say,
                      text_of)

DIR = None  # the folder of your model, e.g. "/models/Qwen3-30B-A3B"
LAYER = 1

# %% [markdown]
# ## A checkpoint, written by hand
#
# A safetensors file is 8 bytes that say how long its header is, the header, which is
# JSON, and the numbers of all tensors. bf16 is the upper half of fp32; numpy has no
# name for it, so its bits travel as integers.

# %%
def write_tiny_mixtral(folder, H=64, F=96, E=8, K=2, layers=2):
    random = np.random.default_rng(8)
    header, data = {}, b""

    def add(name, *shape):
        nonlocal data
        weights = random.standard_normal(shape) / np.sqrt(shape[-1])
        bits = (weights.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        header[name] = {"dtype": "BF16", "shape": shape,
                        "data_offsets": [len(data), len(data) + bits.nbytes]}
        data += bits.tobytes()

    for layer in range(layers):
        block = f"model.layers.{layer}.block_sparse_moe"
        add(f"{block}.gate.weight", E, H)
        for e in range(E):
            add(f"{block}.experts.{e}.w1.weight", F, H)  # gate
            add(f"{block}.experts.{e}.w3.weight", F, H)  # up
            add(f"{block}.experts.{e}.w2.weight", H, F)  # down
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
        "hidden_size": H, "intermediate_size": F, "num_local_experts": E,
        "num_experts_per_tok": K, "num_hidden_layers": layers, "hidden_act": "silu",
        "router_aux_loss_coef": 0.01, "router_jitter_noise": 0.0, "vocab_size": 256,
        "torch_dtype": "bfloat16"}))


folder = tempfile.TemporaryDirectory()
if DIR is None:
    write_tiny_mixtral(pathlib.Path(folder.name))
found = moe.load_layer(DIR or folder.name, LAYER)
print("layout:", found.layout)
print(f"{len(found.names)} tensors, from {found.names[0]} on")
print("copied:", found.copied)
for note in found.notes:
    print("note:", note)
found.config

# %% [markdown]
# ## Predict
#
# A token visits K experts of E. What part of the layer's weights does it meet?

# %%
prediction = None  # percent, e.g. 50

# %%
config = found.config
E, K = config.num_moe_experts, config.moe_router_topk
sizes = {name: int(np.prod(tensor.shape)) for name, tensor in found.parameters.items()}
met = {name: count * K / E if name.startswith("experts.") else count
       for name, count in sizes.items()}
share = 100 * sum(met.values()) / sum(sizes.values())
say(prediction, f"{share:.1f}", f"%, as K / E = {K} / {E}")

drawn, axes = figure("Weights of the layer", height=0.9 + 0.45 * len(sizes))
axes.barh(list(sizes), list(sizes.values()), color=LIGHT, label="all")
axes.barh(list(met), list(met.values()), color=BLUE, label="met by one token")
axes.set(xlabel=f"numbers; one token meets {share:.1f} %"
         + ("" if prediction is None else f", you said {prediction} %"))
axes.invert_yaxis()
axes.legend()
plt.show()
assert share >= 100 * K / E

# %% [markdown]
# ## Predict
#
# The same tokens now go through the layer in fp64, and are held against fp32, and
# against the naive CUDA tier in bf16, which a CPU emulates. A bf16 number has 8
# significant bits: a rounding is off by 1/256 of the value at most, and by some 0.0017
# as errors of many values are summed up here. What will the relative error of the
# layer's output be, in bf16?

# %%
prediction_error = None  # relative error, e.g. 0.01

# %%
is_small = sum(sizes.values()) < 10**7  # or an emulated tier would take too long
T = 256 if is_small else 16
SPECS = ["reference_cpu:fp32"] + (["naive_gpu:bf16"] if is_small else [])
print(f"{sum(sizes.values()) * 8 / 1e9:.3f} GB for the weights in fp64")
if not is_small:
    print("Too large for bf16, which is emulated here: what follows is fp32's.")
config = config.replace(moe_router_dtype="fp32")  # so that all choose the same experts
hidden = moe.embed_text(text_of(T), config.hidden_size)
gradient = np.random.default_rng(1).standard_normal((T, 1, config.hidden_size))


def run(spec):
    return moe.trace(moe.MoELayer(config, found.parameters, spec), hidden, gradient)


some = np.random.default_rng(0).standard_normal(10000).astype(np.float32)
rounded = np.asarray(moe.Tensor(some).copy("bf16").copy("fp32"))
assert np.abs(rounded / some - 1).max() <= 1 / 256
assert 0.0016 < moe.relative_error(rounded, some) < 0.0018

exact = run("reference_cpu:fp64")
traces = {spec: run(spec) for spec in SPECS}
SHOWN = ("logits", "probs", "dispatched_hidden_states", "fc1_output", "activation_output",
         "expert_output", "output", "d_expert_output", "d_activation_output",
         "d_fc1_output", "d_dispatched_hidden_states", "d_logits")
errors = {spec: [moe.relative_error(trace[name], exact[name]) for name in SHOWN]
          for spec, trace in traces.items()}
for trace in traces.values():
    assert (np.asarray(trace["routing_map"]) == np.asarray(exact["routing_map"])).all()

spec = SPECS[-1]
say(prediction_error, f"{errors[spec][SHOWN.index('output')]:.1e}", f"in {spec}")
drawn, axes = figure("Relative error against fp64, value by value", height=3.6)
for (name, values), colour, marker in zip(errors.items(), (BLUE, ORANGE), "os"):
    shown = [value if value > 0 else np.nan for value in values]  # 0: equal
    axes.semilogy(shown, color=colour, marker=marker, markersize=4, label=name)
draw_prediction(axes, prediction_error)
axes.set(ylabel="‖ got − fp64 ‖ / ‖ fp64 ‖", xticks=range(len(SHOWN)))
axes.set_xticklabels(SHOWN, rotation=35, ha="right")
axes.legend()
plt.show()
assert max(errors["reference_cpu:fp32"]) < 1e-5
if DIR is None:
    of_bf16 = dict(zip(SHOWN, errors["naive_gpu:bf16"]))
    assert of_bf16["fc1_output"] < 1e-5 < of_bf16["activation_output"]
    assert max(of_bf16.values()) < 1e-2

# %% [markdown]
# Where a curve has a gap, the values are equal: rows are copied, not computed. In bf16
# the first rounding is that of the activation, and each product adds one of its own.
#
# ## Its load
#
# These are *not* your model's tokens: the text is embedded by random tables, and a
# trained router expects other hidden states. `python -m moe.capture` takes the real
# ones out of a running model.

# %%
load = np.asarray(exact["routing_map"]).sum(axis=0, dtype=int)
drawn, axes = figure("Rows of each expert, on a text embedded at random")
axes.bar(range(E), load, color=GREEN)
axes.axhline(T * K / E, color=GREY, linewidth=1, label="an even share")
axes.set(xlabel="expert", ylabel="rows")
axes.legend()
plt.show()
assert load.sum() == T * K
folder.cleanup()

# %% [markdown]
# **Try**: `moe compare --checkpoint DIR --layer N` runs your layer through every tier
# and all twenty steps.
