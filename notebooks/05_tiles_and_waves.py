# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # 5. Tiles and waves of a grouped GEMM
#
# The experts' products are one kernel over all experts. It cuts each expert's rows into
# tiles 128 high, the result's columns into tiles 256 wide, and the multiprocessors of a
# GPU take tile after tile. Two roundings up lose work: an expert's last tile is partly
# empty, and so is the last wave of tiles. Both follow from counts alone.
#
# **A model, not a measurement**: every tile is taken to last equally long. No time of a
# GPU is known in this project.

# %%
import matplotlib.pyplot as plt
import numpy as np

import moe
from pictures import (BLUE, GREEN, GREY, LIGHT, ORANGE, ROOT, SKY, draw_prediction,
                      figure, say, text_of)

HIGH, WIDE = 128, 256  # rows and columns of a tile, third rung of optimized_gpu
SMS = 132  # multiprocessors of an H100
folder = ROOT / "optimized_gpu" / "grouped_gemm"
assert "kLines = 128;" in (folder / "tile.h").read_text()
assert "kWideColumns = 256;" in (folder / "ws_products.h").read_text()

full = moe.MoEConfig("qwen3_30b_a3b")
E, K, F = full.num_moe_experts, full.moe_router_topk, full.moe_ffn_hidden_size
COLUMNS = {"FC1": 2 * F, "FC2": full.hidden_size}  # gate and up; back to H
print(f"Qwen3-30B-A3B: E = {E}, K = {K}, FC1 has {COLUMNS['FC1']} columns, "
      f"FC2 {COLUMNS['FC2']}")

# %% [markdown]
# The rows of each expert come from a router on the README, one of the same E and K with
# widths divided by 32.

# %%
small = moe.MoEConfig("qwen3_30b_a3b", scale=32)
router = moe.Router(small, moe.random_parameters(small))
LENGTHS = 2 ** np.arange(8, 15)  # tokens: 256 to 16384
hidden = np.asarray(moe.embed_text(text_of(int(LENGTHS[-1])), small.hidden_size))


def load_of(tokens):
    """Rows of each expert, (E)."""
    routing_map = router.forward(hidden[:tokens]).routing_map
    return np.asarray(routing_map).sum(axis=0, dtype=int)


def ceil_div(number, by):
    return -(-number // by)


# %% [markdown]
# ## Predict
#
# 4096 tokens give 32768 rows, 256 for an expert if they were even: exactly two tiles
# each. On the text, how many percent of all rows of tiles will be empty?

# %%
prediction = None  # percent, e.g. 10

# %%
load = load_of(4096)
assert load.sum() == 32768 and load.mean() == 2 * HIGH
room = ceil_div(load, HIGH) * HIGH
empty = 100 * (1 - load.sum() / room.sum())
say(prediction, f"{empty:.0f}", "%")

order = np.argsort(-load)
drawn, axes = figure("Rows of tiles, by expert, 4096 tokens")
axes.bar(range(E), room[order], 1.0, color=LIGHT, label="empty")
axes.bar(range(E), load[order], 1.0, color=BLUE, label="rows")
if prediction is not None:
    axes.plot([], [], " ", label=f"empty: you said {prediction} %, it is {empty:.0f} %")
axes.set(xlabel="experts, busiest first", ylabel="rows", xlim=(-1, E),
         yticks=range(0, int(room.max()) + 1, HIGH))
axes.grid(axis="y", color="white", linewidth=1)
axes.legend()
plt.show()
assert 0 < empty < 50

# %% [markdown]
# ## With how many tokens does it matter?
#
# A last tile is half empty on the mean. With m rows an expert, m / (m + 64) of what is
# multiplied counts. Half a tile without rows need not be multiplied, and on the third
# rung and the fourth it is not, which makes it m / (m + 32). Even routing is another
# world: it fills tiles wholly or not at all.

# %%
def filled(load, high):
    return load.sum() / (ceil_div(load, high) * high).sum()


loads = [load_of(int(tokens)) for tokens in LENGTHS]
m = LENGTHS * K / E
whole = [100 * filled(load, HIGH) for load in loads]
halves = [100 * filled(load, HIGH // 2) for load in loads]
drawn, axes = figure("Rows of tiles that are used")
axes.semilogx(m, halves, color=GREEN, marker="o", markersize=4, base=2,
              label="text, empty halves left out")
axes.semilogx(m, whole, color=BLUE, marker="o", markersize=4, base=2, label="text")
for half, colour in ((HIGH // 2, BLUE), (HIGH // 4, GREEN)):
    axes.plot(m, 100 * m / (m + half), color=colour, linestyle=":", linewidth=1,
              label=f"m / (m + {half})")
axes.set(xlabel="m, rows of an expert on the mean", ylabel="%", ylim=(0, 100), xticks=m,
         xticklabels=[f"{rows:.0f}" for rows in m])
axes.legend(loc="lower right")
plt.show()
for used, half in ((whole, HIGH // 2), (halves, HIGH // 4)):
    assert np.abs(used - 100 * m / (m + half))[-3:].max() < 5

# %% [markdown]
# ## Predict
#
# 1024 tokens, FC1. Tiles are handed out in turn to 132 multiprocessors. How many waves
# does it take?

# %%
prediction_waves = None  # waves, e.g. 4

# %%
load = load_of(1024)
tiles = ceil_div(load, HIGH) * ceil_div(COLUMNS["FC1"], WIDE)
waves = int(ceil_div(tiles.sum(), SMS))
say(prediction_waves, waves, f"waves, for {tiles.sum()} tiles")

owner = np.full(waves * SMS, np.nan)
owner[:tiles.sum()] = np.repeat(np.arange(E), tiles) % 3
drawn, axes = figure("Who multiplies what: FC1, 1024 tokens", height=2.6)
axes.imshow(owner.reshape(waves, SMS), aspect="auto", interpolation="nearest",
            cmap=plt.matplotlib.colors.ListedColormap([BLUE, ORANGE, SKY]))
if prediction_waves is not None:
    draw_prediction(axes, prediction_waves - 0.5)
    axes.legend(loc="lower right")
axes.set(xlabel="multiprocessor (white: idle; the colour changes with the expert)",
         ylabel="wave", yticks=range(waves), yticklabels=range(1, waves + 1),
         ylim=(max(waves, prediction_waves or 0) - 0.4, -0.5))
plt.show()
assert (waves - 1) * SMS < tiles.sum() <= waves * SMS
print(f"{100 * (1 - tiles.sum() / (waves * SMS)):.0f} % of the multiprocessors' time is "
      "lost to the last wave.")

# %% [markdown]
# ## Both together
#
# More tokens mend both: tiles fill up, and a last wave is one of many. What is left is
# the most that the tensor cores' work can count for, before any cache, any epilogue,
# any launch.

# %%
drawn, axes = figure("Share of multiplications that count", across=2, sharey=True)
for axis, (product, columns) in zip(axes, COLUMNS.items()):
    count = np.array([ceil_div(load, HIGH).sum() for load in loads]) * columns // WIDE
    in_waves = 100 * count / (ceil_div(count, SMS) * SMS)
    both = in_waves * whole / 100
    axis.semilogx(LENGTHS, in_waves, color=ORANGE, marker="o", markersize=3, base=2,
                  label="of waves")
    axis.semilogx(LENGTHS, whole, color=BLUE, marker="o", markersize=3, base=2,
                  label="of tiles")
    axis.semilogx(LENGTHS, both, color=GREY, marker="o", markersize=3, base=2,
                  label="of both")
    axis.set(title=f"{product}, {columns // WIDE} tiles across", xlabel="tokens",
             xticks=LENGTHS[::2], xticklabels=LENGTHS[::2], ylim=(0, 102))
    assert (np.diff(whole) > 0).all() and in_waves[-1] > 90
axes[0].set_ylabel("%")
axes[1].legend(loc="lower right")
plt.show()

# %% [markdown]
# **Try**: a GPU of 108 multiprocessors (`SMS`), or `mixtral_8x7b` with its 8 experts.
# Who suffers from tiles, and who from waves?
# [docs/optimized_gpu.md](../docs/optimized_gpu.md) has the rest of the model.
