# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # 4. Permutation is data movement
#
# An expert wants its rows side by side, as one matrix. Tokens come in the order of the
# text. Between the two lies a permutation: a copy of each token for each of its
# experts, sorted by expert, and by token within an expert. No number is computed, but
# much is moved. You will see it on twelve tokens, as a matrix, and in bytes.

# %%
import matplotlib.pyplot as plt
import numpy as np

import moe
from pictures import (BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, draw_prediction, figure,
                      say, text_of)

# %% [markdown]
# ## Twelve tokens, four experts
#
# The map says who goes where; here it is made by hand so that you can follow it.

# %%
T, E, K, H = 12, 4, 2, 3
experts_of = np.array([[0, 1], [1, 2], [0, 3], [1, 3], [0, 1], [0, 2], [1, 2], [2, 3],
                       [0, 1], [1, 3], [0, 1], [1, 2]])
routing_map = np.zeros((T, E), np.uint8)
np.put_along_axis(routing_map, experts_of, 1, axis=1)
tokens = np.arange(T * H, dtype=np.float32).reshape(T, H)
print("token: experts", {t: tuple(map(int, e)) for t, e in enumerate(experts_of)})

# %% [markdown]
# ## Predict
#
# Token 5 goes to experts 0 and 2. Rows are numbered from 0, those of expert 0 first.
# Count above: which is the row of token 5 for expert 2?

# %%
prediction = None  # a row number, e.g. 12

# %%
rows, _, row_token = moe.permute(tokens, routing_map)
rows, row_token = np.asarray(rows), np.asarray(row_token)
N = len(row_token)
load = routing_map.sum(axis=0, dtype=int)
row_expert = np.repeat(np.arange(E), load)
assert (rows == tokens[row_token]).all() and N == T * K

place = int(np.flatnonzero((row_token == 5) & (row_expert == 2))[0])
assert place == load[:2].sum() + routing_map[:5, 2].sum()  # those before it
say(prediction, place)

colours = (BLUE, ORANGE, GREEN, PURPLE)
drawn, axes = figure("Tokens (above) and the rows of the experts (below)", height=3)
at_token = (np.arange(T) + 0.5) * N / T - 0.5
for row, (token, expert) in enumerate(zip(row_token, row_expert)):
    axes.plot([at_token[token], row], [1, 0], color=colours[expert], linewidth=1,
              zorder=1)
    axes.text(row, 0, token, ha="center", va="center", color="white", fontsize=8,
              bbox={"boxstyle": "square", "facecolor": colours[expert], "linewidth": 0})
for token in range(T):
    axes.text(at_token[token], 1, token, ha="center", va="center", fontsize=8,
              bbox={"boxstyle": "square", "facecolor": LIGHT, "linewidth": 0})
for expert in range(E):
    middle = np.flatnonzero(row_expert == expert).mean()
    axes.text(middle, -0.22, f"expert {expert}", ha="center", color=colours[expert])
if prediction is not None:
    axes.annotate("your prediction", (prediction, 0.08), (prediction, 0.4), ha="center",
                  bbox={"facecolor": "white", "linewidth": 0},
                  arrowprops={"arrowstyle": "->"})
axes.set(ylim=(-0.3, 1.15), xlim=(-1, N))
axes.axis("off")
plt.show()

# %% [markdown]
# ## As a matrix
#
# rows = P tokens, where P is N x T with a single 1 in each line. The way back,
# unpermute, is its transpose: it adds up the rows of each token. So permuting and
# unpermuting gives each token as often as it has experts, and the backward of one is
# the forward of the other: a gather becomes a sum, and a sum a gather. A row's
# probability travels the same way.

# %%
P = np.zeros((N, T), np.float32)
P[np.arange(N), row_token] = 1
assert (P @ tokens == rows).all()
assert (P.T @ rows == np.asarray(moe.unpermute(rows, routing_map))).all()
assert (P.T @ P == np.diag(routing_map.sum(axis=1))).all()  # K on the diagonal

drawn, axes = figure("P: a line for each row, a column for each token", width=4.2,
                     height=4.6)
axes.imshow(np.where(P, row_expert[:, None], np.nan), aspect="auto",
            cmap=plt.matplotlib.colors.ListedColormap(colours))
for line in np.cumsum(load)[:-1]:
    axes.axhline(line - 0.5, color=GREY, linewidth=0.5)
axes.set(xlabel="token", ylabel="row (colour: expert)", xticks=range(T))
plt.show()

# %% [markdown]
# ## What it moves
#
# Sorted copies cost bytes and not one operation: each token is read, and K copies are
# written, K + 1 times T H numbers. Combine reads K and writes one. Beside them lie maps
# and row numbers (m). What stands below is the least that must move, in bf16, for
# Mixtral's own widths.

# %%
config = moe.MoEConfig("mixtral_8x7b")
T, K, H = 4096, config.moe_router_topk, config.hidden_size
floors = moe.floors(config, T, dtype="bf16")
for step in (moe.Step.dispatch, moe.Step.combine, moe.Step.fc1):
    floor = floors[step]
    megabytes = (floor.bytes + floor.metadata) / 1e6
    print(f"{step.name:8}  {floor.formula:24} {megabytes:6.1f} MB"
          f"  {floor.flops / 1e9:8.1f} GFLOP")
assert floors[moe.Step.combine].bytes == 2 * (K + 1) * T * H
assert floors[moe.Step.dispatch].flops == floors[moe.Step.combine].flops == 0
assert floors[moe.Step.dispatch].bytes >= 2 * (K + 1) * T * H

# %% [markdown]
# `naive_gpu` moves them. `optimized_gpu`, on one rank and with `moe_permute_fusion`,
# copies no row: its first product reads the tokens through the row numbers while it
# loads its tiles, and ⑥ is only the list of numbers. To see what such a gather meets,
# look at a real list.
#
# ## Predict
#
# Take one expert's rows on the README. From one row to the next, how many tokens
# further is its token, on the mean? (Mixtral scaled down: E = 8, K = 2.)

# %%
prediction_gap = None  # tokens, e.g. 2

# %%
small = moe.MoEConfig("mixtral_8x7b", scale=16)
T, E, K = 4096, small.num_moe_experts, small.moe_router_topk
hidden = moe.embed_text(text_of(T), small.hidden_size)
routed = moe.Router(small, moe.random_parameters(small)).forward(hidden)
routing_map = np.asarray(routed.routing_map)
_, _, row_token = moe.permute(np.zeros((T, 1), np.float32), routing_map)
ends = np.cumsum(routing_map.sum(axis=0))[:-1]
gaps = [np.diff(part) for part in np.split(np.asarray(row_token), ends)]
assert all((gap > 0).all() for gap in gaps)  # in the order of the text
mean = np.concatenate(gaps).mean()

say(prediction_gap, f"{mean:.1f}", "tokens")
drawn, axes = figure("Steps from a row's token to the next row's, all experts")
edges = np.arange(0.5, 25)
steps = np.concatenate(gaps)
axes.hist(steps, edges, weights=np.full(len(steps), 1 / len(steps)), color=BLUE,
          label="this text")
by_chance = K / E * (1 - K / E) ** np.arange(len(edges) - 1)
axes.plot(np.arange(1, len(edges)), by_chance, color=ORANGE, marker="o", markersize=3,
          label="if each token went there by chance, K / E")
draw_prediction(axes, prediction_gap, upright=True)
axes.set(xlabel="tokens", ylabel="share of steps")
axes.legend()
plt.show()
next_to = np.mean(np.concatenate(gaps) == 1)
print(f"E / K = {E / K:.0f}. {100 * next_to:.0f} % of steps are to the very next token.")
assert abs(mean - E / K) < 0.2 * E / K and next_to < 0.5

# %% [markdown]
# The mean is close to E / K whatever the text: an expert has a share of the tokens,
# spread over all of them. So most rows of a gather are no neighbours in memory. Each, H
# numbers long, is a stretch of its own: long enough to be read whole, and that is what
# matters.
#
# **Try**: `moe.sort_chunks_by_idxs`, which `alltoall` uses after its exchange: rows
# come sorted by rank and expert, and have to lie by expert and rank.
