# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # 6. The backward's memory schedule
#
# A forward leaves tensors for its backward: each gradient of a product needs the other
# factor. Between the two the whole rest of the model runs, so what is kept counts once
# for every layer of it. You will see what the MoE layer keeps, from which step to
# which, where most is needed, and what recomputing buys.
#
# Steps are numbered as everywhere in this project: ② gating, ⑥ dispatch, ⑦ FC1, ⑧
# activation, ⑨ FC2, ⑩ combine; step n is undone by step 21 − n.

# %%
import matplotlib.pyplot as plt
import numpy as np

import moe
from pictures import (BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, SKY, draw_prediction,
                      figure, say, text_of)

T, SPEC = 256, "reference_cpu:fp32"
config = moe.MoEConfig("mixtral_8x7b", scale=16)
H, F, K = config.hidden_size, config.moe_ffn_hidden_size, config.moe_router_topk
N = T * K
parameters = moe.random_parameters(config)
hidden = moe.embed_text(text_of(T), H)
gradient = np.random.default_rng(1).standard_normal((T, 1, H)).astype(np.float32)
layer = moe.MoELayer(config, parameters, SPEC)
trace = moe.trace(layer, hidden, gradient)

# %% [markdown]
# ## Predict
#
# The layer's input is T H numbers, and that much is kept anyway: ② needs it again. How
# many times T H is kept in all? Here K = 2 and F = 3.5 H, and the experts are gated, so
# FC1 makes 2 F numbers of a row.

# %%
prediction = None  # times T H, e.g. 6

# %%
kept = moe.kept_tensors(config, SPEC, T)
counted = moe.kept_bytes(layer, hidden)
for tensor in kept:
    print(f"{tensor.name:10} {tensor.formula:4} {tensor.bytes / 1e6:6.2f} MB")
metadata = counted - sum(tensor.bytes for tensor in kept)
print(f"counted in a run: {counted / 1e6:.2f} MB, {metadata / 1e3:.0f} kB of it logits, "
      "maps and counts")
assert F == 3.5 * H and 0 < metadata < 0.02 * counted
times = sum(tensor.bytes for tensor in kept) / (4 * T * H)
assert times == 1 + K + 3 * K * 3.5  # TH + NH + 3NF
say(prediction, f"{times:.0f}", "times")

# %% [markdown]
# ## From when to when
#
# Below stands, for each large tensor, the step that makes it and the last one that
# reads it. A product y = W x reads x for dW; the activation reads h to know its slope.
# The pictures have each let go after its last reader.

# %%
NEEDED = {  # name in the trace: (made in, last read in)
    "hidden_states": (2, 19),  # ② and its dW; ⑥
    "dispatched_hidden_states": (6, 14),  # ⑦, dW1
    "fc1_output": (7, 13),  # ⑧, its slope
    "activation_output": (8, 12),  # ⑨, dW2
    "expert_output": (9, 10),
    "d_expert_output": (11, 12),
    "d_activation_output": (12, 13),
    "d_fc1_output": (13, 14),
    "d_dispatched_hidden_states": (14, 15),
    "d_hidden_states_routed": (15, 19),
}
KEPT = ("hidden_states", "dispatched_hidden_states", "fc1_output", "activation_output")
megabytes = {name: 4 * T * H / 1e6 if name == "hidden_states"
             else np.asarray(trace[name]).nbytes / 1e6 for name in NEEDED}
assert [round(1e6 * megabytes[name]) for name in KEPT] == [t.bytes for t in kept]
STEPS = range(2, 20)


def needed_in(step, schedule):
    """Megabytes of each tensor in that step."""
    return {name: megabytes[name] for name, spans in schedule.items()
            if any(first <= step <= last for first, last in spans)}


everything = {name: [span] for name, span in NEEDED.items()}
assert sum(needed_in(10.5, everything).values()) == sum(megabytes[n] for n in KEPT)

# %% [markdown]
# ## Predict
#
# In which step is most needed? (Gradients of weights are left out: they stay.)

# %%
prediction_step = None  # a step, e.g. 9

# %%
most = max(STEPS, key=lambda step: sum(needed_in(step, everything).values()))
say(prediction_step, most)
COLOURS = dict(zip(KEPT, (BLUE, ORANGE, GREEN, PURPLE)))


def draw_schedule(axes, schedule, title):
    at = [step if step <= 10 else step + 2 for step in STEPS]  # room for the others
    bottom = np.zeros(len(STEPS) + 1)
    for name in (*KEPT, "the others"):
        names = [n for n in schedule if n not in KEPT] if name == "the others" else [name]
        high = [sum(needed_in(step, schedule).get(n, 0) for n in names)
                for step in (*STEPS, 10.5)]
        axes.bar([*at, 11.5], high, [*[0.9] * len(STEPS), 1.6], bottom=bottom,
                 color=COLOURS.get(name, LIGHT), label=name)
        bottom += high
    axes.set(title=title, ylabel="MB", xticks=[*at, 11.5],
             xticklabels=[*map(str, STEPS), "rest of\nthe model"])
    axes.set_xlabel("step")
    return bottom.max()


drawn, axes = figure("What is needed, step by step", height=3.6)
draw_schedule(axes, everything, "nothing recomputed")
if prediction_step is not None:
    draw_prediction(axes, prediction_step + 2 * (prediction_step > 10), upright=True)
axes.legend(fontsize=8)
plt.show()
assert most == 13

# %% [markdown]
# In the middle of ⑬ the gradient of h stands beside h. That peak is one layer's; the
# bar in the middle is what *all* layers hold at once.
#
# ## Recomputing
#
# `recompute_modules = ["moe_act"]` keeps no activation: it follows from h, at the price
# of the cheap step ⑧. `["moe"]` keeps the input alone, and runs ⑥ to ⑩ again before ⑪.

# %%
def recomputing(*modules):
    return config.replace(recompute_granularity="selective", recompute_modules=modules)


schedules = {"moe_act": dict(everything, activation_output=[(8, 9), (12, 12)]),
             "moe": dict(everything, dispatched_hidden_states=[(6, 7), (11, 14)],
                         fc1_output=[(7, 8), (11, 13)],
                         activation_output=[(8, 9), (11, 12)])}
drawn, axes = figure("The same, recomputing", height=5, down=2, sharex=True, sharey=True)
for axis, (module, schedule) in zip(axes, schedules.items()):
    draw_schedule(axis, schedule, f'"{module}" again')
    again = moe.MoELayer(recomputing(module), parameters, SPEC)
    forward = again.forward(hidden)
    made = forward.backward(gradient)
    for name, value in made.parameters.items():  # no bit differs
        assert (np.asarray(value)
                == np.asarray(trace.gradients.parameters[name])).all(), name
    by_schedule = sum(needed_in(10.5, schedule).values())
    by_formula = sum(t.bytes for t in
                     moe.kept_tensors(recomputing(module), SPEC, T)) / 1e6
    by_count = moe.kept_bytes(again, hidden) / 1e6
    assert abs(by_schedule - by_formula) < 1e-9 and 0 < by_count - by_formula < 0.2
    print(f"{module:8} keeps {by_formula:.2f} MB; nothing recomputed: "
          f"{sum(t.bytes for t in kept) / 1e6:.2f} MB")
axes[0].legend(fontsize=8)
axes[0].set_xlabel("")
plt.show()

# %% [markdown]
# ## Predict
#
# Now Mixtral's own widths, 8192 tokens, 32 layers, in bf16, as `optimized_gpu` keeps
# them: no copied rows, no activation. How many GB do all layers keep?

# %%
prediction_gb = None  # GB, e.g. 40

# %%
full = moe.MoEConfig("mixtral_8x7b")
ways = {"naive_gpu": ("naive_gpu:bf16", full),
        "optimized_gpu": ("optimized_gpu:bf16", full),
        'optimized_gpu,\n"moe" again': ("optimized_gpu:bf16", full.replace(
            recompute_granularity="selective", recompute_modules=["moe"]))}
gigabytes = {name: 32 * sum(t.bytes for t in moe.kept_tensors(c, spec, 8192)) / 1e9
             for name, (spec, c) in ways.items()}
say(prediction_gb, f"{gigabytes['optimized_gpu']:.0f}", "GB")
drawn, axes = figure("Kept by 32 layers of Mixtral 8x7B for 8192 tokens", height=2.6)
bars = axes.barh(list(gigabytes), list(gigabytes.values()), color=[GREY, BLUE, SKY])
axes.bar_label(bars, fmt="%.0f GB", padding=3)
draw_prediction(axes, prediction_gb, upright=True)
if prediction_gb is not None:
    axes.legend(loc="lower right")
axes.set(xlabel="GB", xlim=(0, 1.15 * max(gigabytes.values())))
axes.invert_yaxis()
plt.show()
assert gigabytes["optimized_gpu"] < gigabytes["naive_gpu"] / 2

# %% [markdown]
# **Try**: `deepseek_v3`, where F is small and K large. Which tensor is the largest now?
