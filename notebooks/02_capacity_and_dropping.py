# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # 2. Capacity, and who is dropped
#
# Buffers want sizes known beforehand; routing on real text has none. One way out is a
# capacity: an expert takes at most C = ceil((T K / E) f) rows of a rank's tokens, with
# f the capacity factor, and the rest are dropped. You will see how many that are, whom
# it hits under each of Megatron's two policies, and what padding up to C costs.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np

import moe
from pictures import (BLUE, GREEN, GREY, LIGHT, ORANGE, RED, draw_prediction, figure,
                      say, text_of)

config = moe.MoEConfig("mixtral_8x7b", scale=16)
E, K, H = config.num_moe_experts, config.moe_router_topk, config.hidden_size
T = 1024
hidden = moe.embed_text(text_of(T), H)  # one sequence: token t is byte t of the text
parameters = moe.random_parameters(config)


def route(**fields):
    """probs (T, E) and routing_map (T, E) of the layer with these fields changed."""
    routed = moe.Router(config.replace(**fields), parameters).forward(hidden)
    return np.asarray(routed.probs), np.asarray(routed.routing_map).astype(bool)


probs, wanted = route()
load = wanted.sum(axis=0)
print("rows that each expert is asked to take:", load, "of", T * K)

# %% [markdown]
# ## Predict
#
# With f = 1 every expert has room for exactly an even share, so the room in all is T K.
# What part of the rows will be dropped all the same?

# %%
prediction = None  # percent of T K rows, e.g. 5

# %%
def capacity(factor):
    return math.ceil(T * K / E * factor)


factors = np.arange(0.5, 2.01, 0.125)
kept = {factor: route(moe_expert_capacity_factor=float(factor))[1] for factor in factors}
dropped = [100 * (1 - kept[factor].sum() / (T * K)) for factor in factors]
for factor in factors:  # each expert keeps what it was asked for, or C
    assert (kept[factor].sum(axis=0) == np.minimum(load, capacity(factor))).all()
    assert not (kept[factor] & ~wanted).any()

say(prediction, f"{dropped[list(factors).index(1)]:.1f}", "%")
drawn, axes = figure("Dropped rows, by capacity factor")
axes.plot(factors, dropped, color=BLUE, marker="o", markersize=3)
axes.axvline(1, color=GREY, linewidth=1, label="room in all = rows in all")
draw_prediction(axes, prediction)
axes.set(xlabel="capacity factor f", ylabel="% of T K rows dropped", ylim=(0, None))
axes.legend()
plt.show()
enough = load.max() / (T * K / E)
print(f"Nothing is dropped from f = {enough:.2f} on: the busiest expert's rows over an "
      "even share.")
assert dropped[-1] == 0 and dropped[list(factors).index(1)] > 0

# %% [markdown]
# ## Predict
#
# Both policies drop the same number of rows: an expert's load and C decide that. Policy
# `probs` keeps the rows with the largest probability, `position` the first in the text.
# Under `position` with f = 1, what part of all dropped rows lies in the first half of
# the text?

# %%
prediction_half = None  # percent of the dropped rows, e.g. 25

# %%
policies = ("probs", "position")
of_policy = {policy: wanted & ~route(moe_expert_capacity_factor=1.0,
                                     moe_token_drop_policy=policy)[1]
             for policy in policies}
assert of_policy["probs"].sum() == of_policy["position"].sum()

half = 100 * of_policy["position"][:T // 2].sum() / of_policy["position"].sum()
say(prediction_half, f"{half:.0f}", "%")
drawn, (left, right) = figure("Who is dropped, f = 1", across=2)
for policy, colour in zip(policies, (ORANGE, BLUE)):
    tokens, experts = np.nonzero(of_policy[policy])
    so_far = np.cumsum(of_policy[policy].sum(axis=1))
    left.plot(100 * so_far / so_far[-1], color=colour, label=policy)
    right.hist(probs[tokens, experts], np.arange(0, 1.01, 0.05), histtype="step",
               linewidth=1.5, color=colour, label=policy)
left.axvline(T // 2, color=GREY, linewidth=1, label="half of the text")
if prediction_half is not None:
    left.plot(T // 2, prediction_half, color=RED, marker="X", markersize=9,
              linestyle="none", label="your prediction")
left.set(xlabel="place in the text, bytes", ylabel="% of dropped rows up to there")
right.set(xlabel="probability of the row", ylabel="dropped rows")
left.legend(loc="upper left")
right.legend()
plt.show()
mean = {policy: probs[of_policy[policy]].mean() for policy in policies}
print("mean probability of a dropped row:",
      ", ".join(f"{policy} {mean[policy]:.2f}" for policy in policies))
assert half < 10, "position drops late tokens"
assert mean["probs"] < mean["position"]

# %% [markdown]
# `position` needs no probabilities, and what it drops depends on who stands later in
# the batch; `probs` drops what counts least, but a token's fate depends on tokens
# *after* it.
#
# ## What is left of a token
#
# Nothing is renormalised after dropping: a token that lost a row sums to less than 1,
# and one that lost all of them gets exactly 0 from the layer. Outside of the layer its
# residual goes on as if there had been none.

# %%
tight = dict(moe_expert_capacity_factor=0.5)
left_probs, left_map = route(**tight)
rows_left = left_map.sum(axis=1)
sums = left_probs.sum(axis=1)
output = np.asarray(moe.MoELayer(config.replace(**tight), parameters)
                    .forward(hidden).output).reshape(T, H)
assert (output[rows_left == 0] == 0).all()
assert (output[rows_left > 0] != 0).any(axis=1).all()
assert np.allclose(sums[rows_left == K], 1, atol=1e-6)
assert (sums[rows_left == 1] < 1).all()

drawn, axes = figure("f = 0.5: what a token's probabilities still sum to")
bins = np.arange(-0.025, 1.03, 0.05)
axes.hist([sums[rows_left == n] for n in range(K + 1)], bins, stacked=True,
          color=[GREY, ORANGE, BLUE],
          label=[f"{n} of {K} rows left: {(rows_left == n).sum()} tokens"
                 for n in range(K + 1)])
axes.set(xlabel="sum of the token's probabilities", ylabel="tokens")
axes.legend(loc="upper left", bbox_to_anchor=(0.07, 1))
plt.show()

# %% [markdown]
# ## What padding costs
#
# With `moe_pad_expert_input_to_capacity` every expert gets C rows, some of probability
# 0, so all sizes are known before routing, and the host need not wait for counts. The
# rows that nobody asked for are computed like any other.

# %%
shown = (0.75, 1.0, 1.25, 1.5, 2.0)
asked = [int(np.minimum(load, capacity(factor)).sum()) for factor in shown]
rows = [int(route(moe_expert_capacity_factor=factor,
                  moe_pad_expert_input_to_capacity=True)[1].sum()) for factor in shown]
assert rows == [E * capacity(factor) for factor in shown]
padding = np.subtract(rows, asked)

drawn, axes = figure("Rows that the experts compute when padded to C")
at = np.arange(len(shown))
axes.bar(at, asked, color=BLUE, label="asked for")
axes.bar(at, padding, bottom=asked, color=LIGHT, label="padding")
axes.bar(at, T * K - np.array(asked), bottom=rows, fill=False, edgecolor=ORANGE,
         linestyle=":", label="dropped, so not computed")
axes.axhline(T * K, color=GREEN, linewidth=1, label="without a capacity: T K")
axes.set(xlabel="capacity factor f", ylabel="rows", xticks=at, xticklabels=shown)
axes.legend(loc="upper left")
plt.show()
print("padding, % of all rows:", [round(100 * p / n) for p, n in zip(padding, rows)])
assert (np.diff(padding) > 0).all()

# %% [markdown]
# **Try**: the text in two sequences (`moe.embed_text(text, H, 2)`): which tokens does
# `position` now call early? The order is t = s B + b, so the sequences take turns.
