# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # 3. What each dispatcher sends
#
# With expert parallelism every rank has some of the tokens and some of the experts, and
# rows must travel. Megatron has three ways: `allgather` sends every token to everybody,
# `alltoall` one row for each (token, expert), `flex` one row for each (token, rank).
# Here 8 ranks, as threads of this process, run all three, and every byte that crosses a
# link is counted.
#
# The matrices below are of step ⑥, dispatch. Step ⑩ brings as many rows back.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np

import moe
from pictures import (BLUE, GREEN, GREY, ORANGE, draw_prediction, figure, heat_map, say,
                      text_of)

WORLD, TOKENS = 8, 128  # ranks, and tokens of each
one_rank = moe.MoEConfig(hidden_size=64, num_moe_experts=32, moe_router_topk=4,
                         moe_ffn_hidden_size=32, moe_token_dispatcher_type="alltoall")
E, K, H = one_rank.num_moe_experts, one_rank.moe_router_topk, one_rank.hidden_size
L = E // WORLD  # experts of a rank
DISPATCHERS = ("allgather", "alltoall", "flex")
COLOURS = dict(zip(DISPATCHERS, (GREY, ORANGE, BLUE)))

# Rank r has bytes 128 r and following of the README. One router serves all of them.
hidden = np.asarray(moe.embed_text(text_of(WORLD * TOKENS), H)).reshape(-1, H)
routed = moe.Router(one_rank, moe.random_parameters(one_rank)).forward(hidden)
on_text = np.asarray(routed.routing_map)
print(f"{WORLD} ranks with {TOKENS} tokens and {L} experts each; K = {K}")

# %% [markdown]
# ## The run
#
# Each rank calls the dispatcher with its own tokens, weights and map. Between two calls
# of `reset_sent()`, `sent()` says how many bytes went to whom. A dispatcher also tells
# the others a few counts; those are an `all_gather` of their own, and are left out
# where they are not the tokens themselves.

# %%
ROWS = {"allgather": "all_gather", "alltoall": "all_to_all", "flex": "flex_dispatch"}


def dispatch_bytes(dispatcher, routing_map):
    """Bytes of rows from rank (down) to rank (across), for a map of all tokens."""
    config = one_rank.replace(expert_model_parallel_size=WORLD,
                              moe_token_dispatcher_type=dispatcher)
    probs = (routing_map / K).astype(np.float32)

    def program(rank):
        mine = slice(rank.rank * TOKENS, (rank.rank + 1) * TOKENS)
        moves = moe.TokenDispatcher(config, groups=rank.process_groups(config))
        rank.reset_sent()
        moves.dispatch(hidden[mine], probs[mine], routing_map[mine])
        sent = rank.sent().get(ROWS[dispatcher], {})
        return [sent.get(other, 0) for other in range(WORLD)]

    return np.array(moe.run_ranks(WORLD, program))


counted = {dispatcher: dispatch_bytes(dispatcher, on_text) for dispatcher in DISPATCHERS}

# %% [markdown]
# ## What it must be
#
# The map alone says which rows cross a link. A row is H fp32 values; with it go, for
# `allgather`, its line of the map (E bytes) and of the probabilities (4 E), for
# `alltoall` one probability, for `flex` K ids and K probabilities, and where it came
# from (8 bytes).

# %%
row_bytes = {"allgather": 4 * H + 5 * E, "alltoall": 4 * H + 4, "flex": 4 * H + 8 * K + 8}


def rows_by_map(dispatcher, routing_map):
    """Rows from rank (down) to rank (across)."""
    of_ranks = routing_map.reshape(WORLD, TOKENS, WORLD, L)
    rows = of_ranks.sum(axis=3)  # of a token, for a rank
    if dispatcher == "allgather":
        rows = np.ones_like(rows)
    if dispatcher == "flex":
        rows = np.minimum(rows, 1)
    rows = rows.sum(axis=1)
    np.fill_diagonal(rows, 0)  # what stays crosses no link
    return rows


for dispatcher in DISPATCHERS:
    expected = rows_by_map(dispatcher, on_text) * row_bytes[dispatcher]
    assert (counted[dispatcher] == expected).all(), dispatcher
print("Every link of every dispatcher: counted = expected.")

# %% [markdown]
# ## Predict
#
# `alltoall` sends K = 4 rows of a token, less those for experts on its own rank. If the
# K experts of a token were drawn evenly, 7/8 of them would lie elsewhere: 3.5 rows.
# `flex` sends as many rows as there are *other ranks* among them. How many is that for
# even routing, by your estimate?

# %%
prediction = None  # rows of a token, e.g. 2.5

# %%
hit = WORLD * (1 - math.comb(E - L, K) / math.comb(E, K))  # ranks of a token's experts
balanced = {"allgather": WORLD - 1, "alltoall": K * (WORLD - 1) / WORLD,
            "flex": hit * (WORLD - 1) / WORLD}
assert balanced["alltoall"] == 3.5
say(prediction, f"{balanced['flex']:.2f}", "rows")

drawn, axes = figure("What a rank sends to each other in ⑥, kB", width=10, across=3)
itself = np.where(np.eye(WORLD), np.nan, 0)
for axis, dispatcher in zip(axes, DISPATCHERS):
    heat_map(axis, counted[dispatcher] / 1000 + itself, vmin=0,
             vmax=max(m.max() for m in counted.values()) / 1000)
    axis.set(title=dispatcher, xlabel="to", xticks=range(WORLD), yticks=range(WORLD))
axes[0].set_ylabel("from")
drawn.colorbar(axes[-1].images[0], label="kB")
plt.show()

rows = {d: counted[d].sum() / row_bytes[d] / (WORLD * TOKENS) for d in DISPATCHERS}
drawn, axes = figure("Rows that leave their rank, per token")
at = np.arange(len(DISPATCHERS))
axes.bar(at - 0.2, [balanced[d] for d in DISPATCHERS], 0.4, color=GREEN, label="if even")
axes.bar(at + 0.2, [rows[d] for d in DISPATCHERS], 0.4, color=BLUE, label="on this text")
draw_prediction(axes, prediction, label="your prediction, of flex")
axes.set(ylabel="rows per token", xticks=at, xticklabels=DISPATCHERS)
axes.legend()
plt.show()
assert rows["flex"] < rows["alltoall"] < rows["allgather"]

# %% [markdown]
# ## Hot spots
#
# Now let one expert be everybody's favourite: each token's first expert is expert 0, on
# rank 0, the others are drawn evenly. The slowest rank ends the exchange, so look at
# what the busiest one *receives*.

# %% [markdown]
# ## Predict
#
# In `alltoall`, how many times as much as the mean rank does rank 0 receive?

# %%
prediction_hot = None  # times, e.g. 3

# %%
random = np.random.default_rng(0)
drawn_evenly = np.zeros((WORLD * TOKENS, E), np.uint8)
np.put_along_axis(drawn_evenly, random.permuted(
    np.tile(np.arange(E), (WORLD * TOKENS, 1)), axis=1)[:, :K], 1, axis=1)
hot = np.zeros_like(drawn_evenly)
hot[:, 0] = 1
np.put_along_axis(hot, random.permuted(
    np.tile(np.arange(1, E), (WORLD * TOKENS, 1)), axis=1)[:, :K - 1], 1, axis=1)
assert (drawn_evenly.sum(axis=1) == K).all() and (hot.sum(axis=1) == K).all()

drawn, axes = figure("What each rank receives in ⑥", across=2, sharey=True,
                     width=9)
times = {}
maps = {"even": drawn_evenly, "expert 0 is hot": hot}
for axis, (name, routing_map) in zip(axes, maps.items()):
    for number, dispatcher in enumerate(DISPATCHERS):
        matrix = dispatch_bytes(dispatcher, routing_map)
        received = matrix.sum(axis=0) / 1000
        times[name, dispatcher] = received.max() / received.mean()
        axis.bar(np.arange(WORLD) + 0.27 * (number - 1), received, 0.27,
                 color=COLOURS[dispatcher], label=dispatcher)
        if routing_map is hot and dispatcher == "alltoall" and prediction_hot is not None:
            draw_prediction(axis, prediction_hot * received.mean(),
                            label="your prediction, of alltoall")
    axis.set(title=name, xlabel="rank", xticks=range(WORLD))
axes[0].set_ylabel("kB received")
axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
say(prediction_hot, f"{times['expert 0 is hot', 'alltoall']:.1f}", "times the mean")
for (name, dispatcher), value in times.items():
    print(f"{name:>16}, {dispatcher:9}: the busiest receives {value:.2f} times the mean")
assert times["expert 0 is hot", "allgather"] == 1  # it never looks at the map
assert times["expert 0 is hot", "alltoall"] > 2 > 1.3 > times["even", "alltoall"]
assert rows_by_map("flex", hot)[:, 0].sum() == (WORLD - 1) * TOKENS
assert times["expert 0 is hot", "flex"] < times["expert 0 is hot", "alltoall"]

# %% [markdown]
# `allgather` is blind to routing: always the same, and the most. `alltoall` follows it
# exactly, hot spots included. `flex` cannot send a token to a rank twice, so even the
# hottest rank receives no more than all the tokens. All of this is bytes; what they
# take on a wire, [docs/wire.md](../docs/wire.md) models.
#
# **Try**: K = 8 of 32 experts, or 4 ranks. Where does `flex` save most? (docs/ranks.md
# has the formula.)
