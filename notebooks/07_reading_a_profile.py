# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # 7. Reading a profile
#
# `./moe profile` runs the kernels on a CPU in a build that sees every load and store,
# and counts. Three numbers of bytes tell most: the **floor**, what a step must move;
# **compulsory**, what its kernels touched at least once; and **requested**, 32 bytes
# for every sector that any warp asked for, the same sector as often as it was asked
# for. What is requested beyond compulsory has to come from a cache, if it is there.
#
# The counts below are of Qwen3-30B-A3B with widths divided by 8, 64 tokens, forward and
# backward, in bf16. They were written by the two commands at the top of
# [data/shorten_profile.py](data/shorten_profile.py), and would be the same on any
# machine with the same compiler. **They are no times.**

# %%
import json

import matplotlib.pyplot as plt
import numpy as np

import moe
from pictures import (BLUE, GREY, LIGHT, ORANGE, RED, ROOT, draw_prediction, figure,
                      say)

profile = json.loads(
    (ROOT / "notebooks" / "data" / "profile_qwen3_30b_a3b.json").read_text())
NAIVE, OPTIMIZED = "naive_gpu:bf16", "optimized_gpu:bf16"
steps = {tier: profile["tiers"][tier]["steps"] for tier in (NAIVE, OPTIMIZED)}
assert profile["preset"] == "qwen3_30b_a3b"
assert (profile["scale"], profile["tokens"]) == (8, 64)
print(profile["tokens"], "tokens,", profile["rows"], "rows")

# %% [markdown]
# ## The floor
#
# It follows from the layer's sizes alone, each operand once: `moe.floors` has the
# formulas. FC1 reads N rows and the weights of E experts, and writes 2 F numbers of
# each row.

# %%
config = moe.MoEConfig(profile["preset"], scale=profile["scale"])
floors = moe.floors(config, profile["tokens"], profile["rows"], "bf16")
for step in steps[NAIVE]:
    floor = floors[moe.Step(step["step"])]
    assert floor.bytes + floor.metadata == step["floor_bytes"], step["title"]
E, K, H = config.num_moe_experts, config.moe_router_topk, config.hidden_size
F, N = config.moe_ffn_hidden_size, profile["rows"]
fc1 = next(step for step in steps[NAIVE] if step["title"] == "FC1")
assert floors[moe.Step.fc1].bytes == 2 * (N * H + 2 * E * F * H + 2 * N * F)
weights = 2 * E * F * H / (N * H + 2 * E * F * H + 2 * N * F)
print(f"FC1 must move {fc1['floor_bytes'] / 1e6:.1f} MB, {100 * weights:.0f} % of it "
      f"weights: an expert has only {N / E:.0f} rows here")

# %% [markdown]
# ## Predict
#
# In `naive_gpu` a thread makes one number of the result, by itself: it reads a row of x
# and a row of W. How many times its floor does FC1 request?

# %%
prediction = None  # times, e.g. 10

# %%
ratio = fc1["requested_bytes"] / fc1["floor_bytes"]
say(prediction, f"{ratio:.0f}", "times")
assert fc1["compulsory_bytes"] < 1.05 * fc1["floor_bytes"] and ratio > 20


def draw_bytes(axes, tier):
    entries = steps[tier]
    at = np.arange(len(entries))
    for name, colour, marker in (("floor", GREY, "|"), ("compulsory", BLUE, "o"),
                                 ("requested", ORANGE, "s")):
        values = np.array([entry[f"{name}_bytes"] for entry in entries], float)
        values[values == 0] = np.nan
        axes.plot(values, at, color=colour, marker=marker, linestyle="none", label=name,
                  markersize=12 if marker == "|" else 4)
    for place, entry in zip(at, entries):
        axes.plot([entry["compulsory_bytes"], entry["requested_bytes"]], [place, place],
                  color=LIGHT, zorder=0)
    titles = {step["step"]: step["title"] for step in steps[NAIVE]}
    names = [f"{first} {titles[first]}" if first == last else
             f"{first} to {last}, {titles[first]} …"
             for first, last in ((each["step"], each["last_step"]) for each in entries)]
    axes.set(xscale="log", xlabel="bytes", title=tier, yticks=at, yticklabels=names)
    axes.invert_yaxis()


drawn, axes = figure("Bytes of each step", width=10, height=4.4, across=2, sharex=True)
for axis, tier in zip(axes, (NAIVE, OPTIMIZED)):
    draw_bytes(axis, tier)
place = steps[NAIVE].index(fc1)
if prediction is not None:
    axes[0].plot(prediction * fc1["floor_bytes"], place, color=RED, marker="X",
                 linestyle="none", markersize=8, label="your prediction")
axes[1].legend(*axes[0].get_legend_handles_labels(), loc="upper right")
plt.show()

# %% [markdown]
# Read it so: **compulsory beyond floor** is data that need not exist: a cast, a map,
# scores that another kernel reads again. That is what fusion takes away. **Requested
# beyond compulsory** is data asked for again. Some of that is what tiles are for:
# `optimized_gpu` asks for a weight once for each tile of rows, `naive_gpu` once for
# each row.

# %%
totals = {tier: {name: sum(step[f"{name}_bytes"] for step in steps[tier])
                 for name in ("floor", "compulsory", "requested")}
          for tier in (NAIVE, OPTIMIZED)}
for tier, total in totals.items():
    print(f"{tier:20} {sum(s['launches'] for s in steps[tier])} launches;",
          ", ".join(f"{name} {count / 1e6:.0f} MB" for name, count in total.items()))
assert totals[OPTIMIZED]["requested"] < 2 * totals[OPTIMIZED]["floor"]
assert totals[NAIVE]["requested"] > 10 * totals[NAIVE]["floor"]

# %% [markdown]
# ## Predict
#
# A warp's load is one request of 32 lanes. If they ask for 32 neighbours of 2 bytes,
# that is 64 bytes, 2 sectors; if each asks elsewhere, 32 sectors. How many are they on
# average in the line of `naive_gpu` that wastes most?

# %%
prediction_sectors = None  # sectors in a request, e.g. 4

# %%
lines = {tier: profile["tiers"][tier]["lines"] for tier in (NAIVE, OPTIMIZED)}
worst = max(lines[NAIVE], key=lambda line: line["sectors"] - line["ideal_sectors"])
mean = worst["sectors"] / worst["requests"]
say(prediction_sectors, f"{mean:.1f}", "sectors in a request")
print(f"{worst['file']}:{worst['line']}  {worst['code']}")
source = (ROOT / worst["file"]).read_text().splitlines()
assert " ".join(source[worst["line"] - 1].split()) == worst["code"], "make the data again"
assert (worst["file"], worst["line"]) == ("naive_gpu/linear.cu", 42) and 16 < mean <= 32

drawn, axes = figure("Lines of code: how often they ask, and for how much at once")
for tier, colour, marker in ((NAIVE, ORANGE, "s"), (OPTIMIZED, BLUE, "o")):
    axes.scatter([line["requests"] for line in lines[tier]],
                 [line["sectors"] / line["requests"] for line in lines[tier]],
                 s=18, color=colour, marker=marker, label=tier)
axes.annotate(f"{worst['file'].split('/')[-1]}:{worst['line']}",
              (worst["requests"], mean), (0.55, 0.8), textcoords="axes fraction",
              arrowprops={"arrowstyle": "-", "color": GREY})
draw_prediction(axes, prediction_sectors)
axes.set(xscale="log", xlabel="requests of warps", ylabel="sectors in a request",
         ylim=(0, 33))
axes.legend(loc="center right")
plt.show()

# %% [markdown]
# Neighbouring lanes make neighbouring columns, so they share a row of x, but each reads
# *its own row of W*: addresses are a row apart, and of a sector of 32 bytes a lane uses
# 2. Sectors alone do not condemn a line: `optimized_gpu` has lines with 16 sectors in a
# request, because a lane asks for 16 bytes at once, and uses all of them. (What its TMA
# fetches, most of its operands, no warp asks for: that is in the bytes above, not in
# this picture.)

# %%
print(f"{'used':>5} {'of sectors':>12}  line")
for tier in (NAIVE, OPTIMIZED):
    for line in sorted(lines[tier], key=lambda each: -each["sectors"])[:4]:
        used = 100 * line["ideal_sectors"] / line["sectors"]
        print(f"{used:4.0f}% {line['sectors']:12,}  {line['file']}:{line['line']}")
assert worst["ideal_sectors"] / worst["sectors"] < 0.1
wide = [line for line in lines[OPTIMIZED] if line["sectors"] / line["requests"] == 16]
assert wide and all(line["ideal_sectors"] == line["sectors"] for line in wide)

# %% [markdown]
# **Try**: `./moe profile --annotate naive_gpu/linear.cu` prints these figures beside
# the source, and `--draw naive_gpu/linear.cu:42 --svg lanes.svg` draws which lane
# touches which sector. [A kernel under the microscope](../docs/microscope.md) mends
# that line in four steps.
