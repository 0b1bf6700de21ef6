# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # 1. Routing and balance on real text
#
# A router gives each token K of E experts. Nothing makes it fair. Here the tokens are
# the first 1024 bytes of this project's README, each embedded with the two bytes before
# it, as `moe compare` takes them, and the layer is Mixtral 8x7B's with widths divided
# by 16.
#
# You will see that language makes popular experts, why, what the auxiliary loss
# measures, and what its gradient does about it.

# %%
import collections

import matplotlib.pyplot as plt
import numpy as np

import moe
from pictures import (BLUE, GREY, LIGHT, ORANGE, draw_prediction, figure, heat_map, say,
                      text_of)

S, B = 256, 4
config = moe.MoEConfig("mixtral_8x7b", scale=16)
E, K, H = config.num_moe_experts, config.moe_router_topk, config.hidden_size
T = S * B
text = text_of(T)
hidden = moe.embed_text(text, H, B)  # (S, B, H)
parameters = moe.random_parameters(config)
print(f"T = {T} tokens, E = {E} experts, K = {K} of them for each token")

# %% [markdown]
# ## Predict
#
# T K rows go to E experts; an even share is T K / E = 256. The router's weights are
# random, so no expert is better than another. How many rows will the busiest expert
# get?

# %%
prediction = None  # rows, e.g. 300

# %%
routed = moe.Router(config, parameters).forward(hidden)
routing_map = np.asarray(routed.routing_map).astype(bool)  # (T, E)
load = routing_map.sum(axis=0)
even = T * K / E
assert even == 256 and load.sum() == T * K
assert (routing_map.sum(axis=1) == K).all()

say(prediction, load.max(), "rows")
drawn, axes = figure("Rows of each expert")
axes.bar(range(E), load, color=BLUE)
axes.axhline(even, color=GREY, linewidth=1, label="an even share")
draw_prediction(axes, prediction)
axes.set(xlabel="expert", ylabel="rows", xticks=range(E))
axes.legend()
plt.show()
assert load.max() > 1.2 * even, "this text is more even than the notebook says"

# %% [markdown]
# ## Why
#
# The router sees nothing but a token's hidden state, and tokens that are alike go the
# same way. Text repeats itself: a few bytes make up much of it. So take the commonest
# bytes and look where *their* tokens go. If a byte decided alone, each line below would
# have two cells of 100 %. If it decided nothing, all lines would look like the first,
# that of all tokens.

# %%
token_bytes = np.frombuffer(text, np.uint8).reshape(B, S).T.reshape(T)  # t = s B + b
common = [byte for byte, _ in collections.Counter(token_bytes.tolist()).most_common(9)]


def share(tokens):
    """Of these tokens, how many go to each expert, in percent."""
    return 100 * routing_map[tokens].mean(axis=0)


lines = [share(np.ones(T, bool))] + [share(token_bytes == byte) for byte in common]
names = ["all tokens"] + [f"{chr(byte)!r}, {(token_bytes == byte).sum()} times"
                          for byte in common]
drawn, axes = figure("Where tokens go, by their byte", height=3.6)
heat_map(axes, lines, vmin=0, vmax=100)
axes.set(xlabel="expert", xticks=range(E), yticks=range(len(names)), yticklabels=names)
drawn.colorbar(axes.images[0], label="% of the byte's tokens")
plt.show()

of_common = np.isin(token_bytes, common).mean()
print(f"These {len(common)} bytes are {100 * of_common:.0f} % of the text.")
assert of_common > 1 / 3
# The two favourite experts of a byte get more of it than the favourites of all tokens do.
assert np.mean([sorted(line)[-2:] for line in lines[1:]]) > np.mean(sorted(lines[0])[-2:])

# %% [markdown]
# ## What the auxiliary loss measures
#
# With n_e the rows of expert e and P_e the mean of its softmax score over all tokens,
# the loss is E times the sum of (n_e / T K) P_e. If both are even it is 1. It grows
# where experts that have many rows also have high scores.

# %%
trace = moe.trace(moe.MoELayer(config, parameters), hidden)
logits = np.asarray(trace["logits"], np.float64)  # (T, E)
scores = np.exp(logits - logits.max(axis=1, keepdims=True))
scores /= scores.sum(axis=1, keepdims=True)
loss = E * np.sum(load / (T * K) * scores.mean(axis=0))
print(f"load_balancing_loss: {loss:.6f}, by moe.Router "
      f"{routed.losses['load_balancing_loss']:.6f}")
assert abs(loss - routed.losses["load_balancing_loss"]) < 1e-5
assert loss > 1

# %% [markdown]
# ## Predict
#
# Counts have no gradient; the scores P_e do. Let us train the router by nothing but
# this loss (the gradient of the output is 0). A step makes the router's weight less by
# 10 times its gradient, which has the loss's coefficient, 0.01, in it. After 60 such
# steps, how many rows will the busiest expert have?

# %%
prediction_after = None  # rows, e.g. 350

# %%
weights = {name: np.asarray(value).copy() for name, value in parameters.items()}
nothing = np.zeros((T, E), np.float32)
losses, busiest = [], []
for step in range(61):
    routed = moe.Router(config, weights).forward(hidden)
    losses.append(routed.losses["load_balancing_loss"])
    after = np.asarray(routed.routing_map).sum(axis=0)
    busiest.append(after.max())
    _, gradients = routed.backward(nothing)
    weights["router.weight"] -= 10 * np.asarray(gradients["router.weight"])
assert config.moe_aux_loss_coeff == [0.01]

say(prediction_after, busiest[-1], "rows")
drawn, (left, right) = figure("Training by the loss alone", across=2)
left.plot(busiest, color=BLUE, label="rows of the busiest expert")
left.axhline(even, color=GREY, linewidth=1, label="an even share")
draw_prediction(left, prediction_after)
left.set(xlabel="steps", ylabel="rows", ylim=(0, None))
left.legend()
right.bar(np.arange(E) - 0.2, load, 0.4, color=LIGHT, label="before")
right.bar(np.arange(E) + 0.2, after, 0.4, color=ORANGE, label="after")
right.axhline(even, color=GREY, linewidth=1)
right.set(xlabel="expert", ylabel="rows", xticks=range(E))
right.legend()
plt.show()
print(f"The loss went from {losses[0]:.4f} to {losses[-1]:.4f}.")
assert losses[-1] < losses[0] and busiest[-1] < busiest[0]

# %% [markdown]
# The loss moves what all tokens share, and the load with it. In training it works
# against the main loss, which may want experts that are popular; the coefficient says
# how hard. DeepSeek-V3's way moves the choice without a gradient:
# `moe_router_enable_expert_bias`.
#
# **Try**: another layer (`"qwen3_30b_a3b"`, `"deepseek_v3"` with `scale=64`), or your
# own text in `text`. `moe compare --text FILE` shows the same load at the end of its
# output.
