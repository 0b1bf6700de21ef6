"""The layer once more, in plain PyTorch, for its autograd to judge ours.

One function a step, after Megatron's router.py, moe_utils.py and mlp.py, without kernels,
permutation or dispatch: a loop over experts. Scores are float32, as Megatron's are.
"""

import math

import torch
from torch.nn import functional as F


def activation(config, h):
    """(…, 2F or F) -> (…, F)."""
    act = {"silu": F.silu, "gelu": F.gelu,
           "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
           "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
           "squared_relu": lambda x: F.relu(x) ** 2,
           "relu": F.relu}[config.activation_func]
    if not config.gated_linear_unit:
        return act(h)
    gate, up = h.chunk(2, dim=-1)
    clamp = config.activation_func_clamp_value
    if clamp is not None:
        gate, up = gate.clamp(max=clamp), up.clamp(-clamp, clamp)
    return act(gate) * (up + config.glu_linear_offset)


def gates_first(rows, block):
    """Rows of FC1 whose gates and ups come in blocks in turn, as gates, then ups."""
    if block is None:
        return rows
    blocks = rows.unflatten(0, (-1, 2, block))
    return blocks.transpose(0, 1).flatten(0, 2)


def scores(config, logits):
    """Of all experts, (T, E) float32."""
    x = logits.float()
    kind = config.moe_router_score_function
    if kind == "softmax":
        return x.softmax(-1)
    return x.sigmoid() if kind == "sigmoid" else F.softplus(x).sqrt()


def chosen(config, keys):
    """(T, K) experts with the largest keys, within the groups that are chosen first."""
    K, groups = config.moe_router_topk, config.moe_router_num_groups
    if groups and config.moe_router_group_topk:
        limit = config.moe_router_group_topk
        each = config.moe_router_group_score_topk or K // limit
        grouped = keys.unflatten(1, (groups, -1))
        best = grouped.topk(each).values.sum(-1).topk(limit).indices
        allowed = torch.zeros(grouped.shape[:2], dtype=torch.bool).scatter(1, best, True)
        keys = grouped.masked_fill(~allowed[..., None], -math.inf).flatten(1)
    return keys.topk(K).indices


def route(config, parameters, logits):
    """Weights of the chosen experts, (T, E), 0 elsewhere, and the map."""
    K, kind = config.moe_router_topk, config.moe_router_score_function
    if kind == "softmax" and not config.moe_router_pre_softmax:
        ids = chosen(config, logits.detach())
        weights = logits.gather(1, ids).float().softmax(-1)
    else:
        all_scores = scores(config, logits)
        keys = all_scores.detach()
        if config.moe_router_enable_expert_bias:
            keys = keys + parameters["router.expert_bias"]
        ids = chosen(config, keys)
        weights = all_scores.gather(1, ids)
        if kind != "softmax" and K > 1 and config.moe_router_norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    if config.moe_router_topk_scaling_factor:
        weights = weights * config.moe_router_topk_scaling_factor
    probs = torch.zeros_like(logits).scatter(1, ids, weights.to(logits.dtype))
    return probs, torch.zeros(logits.shape, dtype=torch.bool).scatter(1, ids, True)


def drop(config, probs, routed):
    """Every expert keeps C of its tokens."""
    if config.moe_expert_capacity_factor is None:
        return probs, routed
    T, E = probs.shape
    C = math.ceil(T * config.moe_router_topk / E * config.moe_expert_capacity_factor)
    if config.moe_token_drop_policy == "position":
        kept = routed & (routed.long().cumsum(0) <= C)
    else:
        best = probs.detach().topk(min(C, T), dim=0).indices
        kept = routed & torch.zeros_like(routed).scatter(0, best, True)
    return probs * kept, kept


def balance(num_experts, topk, total, score_sums, counts):
    return num_experts * (score_sums * counts).sum() / (topk * total**2)


def auxiliary_losses(config, logits, padding, S, B):
    """Name -> (loss before its coefficient, what the layer adds to the main loss)."""
    E, K = config.num_moe_experts, config.moe_router_topk
    valid = ~padding.T.reshape(-1)  # (T) in the order (S, B)
    losses, per_token = {}, config.calculate_per_token_loss
    if config.moe_z_loss_coeff:
        squares = logits.logsumexp(-1) ** 2
        z = (squares * valid).sum() / valid.sum().clamp(min=1)
        losses["z_loss"] = (z, config.moe_z_loss_coeff *
                            z * (valid.sum() if per_token else 1))
    all_scores = scores(config, logits)
    if config.moe_router_score_function != "softmax":
        all_scores = all_scores / (all_scores.sum(-1, keepdim=True) + 1e-20)
    ids = all_scores.topk(K).indices
    routed = torch.zeros(logits.shape, dtype=torch.bool).scatter(1, ids, True)
    routed, all_scores = routed & valid[:, None], all_scores * valid[:, None]
    kinds = zip(config.moe_router_load_balancing_type, config.moe_aux_loss_coeff)
    for kind, coefficient in kinds:
        if not coefficient:
            continue
        total = routed.sum() / K
        if kind == "seq_aux_loss":
            loss = balance(E, K, total / B, all_scores.reshape(S, B * E).sum(0),
                           routed.reshape(S, B * E).sum(0)) / B
        else:
            loss = balance(E, K, total, all_scores.sum(0), routed.sum(0))
        name = {"aux_loss": "load_balancing_loss",
                "seq_aux_loss": "seq_load_balancing_loss",
                "global_aux_loss": "global_load_balancing_loss"}[kind]
        losses[name] = (loss, coefficient * loss * (total if per_token else 1))
    return losses


def expert(config, parameters, e, rows, probs):
    """What one expert makes of its rows (N, ℓ), weighted by probs (N, 1)."""
    block = config.moe_mlp_glu_interleave_size
    if config.moe_apply_probs_on_input:
        rows, probs = rows * probs, torch.ones_like(probs)
    h = rows @ gates_first(parameters["experts.linear_fc1.weight"][e], block).T
    if config.add_bias_linear:
        h = h + gates_first(parameters["experts.linear_fc1.bias"][e], block)
    rows = (activation(config, h) * probs) @ parameters["experts.linear_fc2.weight"][e].T
    if config.add_bias_linear:
        rows = rows + probs * parameters["experts.linear_fc2.bias"][e]
    return rows


def shared_experts(config, parameters, x):
    h = x @ parameters["shared_experts.linear_fc1.weight"].T
    rows = activation(config, h) @ parameters["shared_experts.linear_fc2.weight"].T
    if config.moe_shared_expert_gate:
        rows = rows * torch.sigmoid(x @ parameters["shared_experts.gate_weight"].T)
    return rows


def moe_layer(config, parameters, hidden, padding=None, training=True):
    """hidden: (S, B, H). padding: (B, S) bool.

    Returns the output (S, B, H), the auxiliary losses by name, before their coefficients,
    and their sum as it is added to the main loss.
    """
    S, B, H = hidden.shape
    if padding is None:
        padding = torch.zeros(B, S, dtype=torch.bool)
    x = hidden.reshape(S * B, H)
    logits = x @ parameters["router.weight"].T
    if config.add_bias_linear:
        logits = logits + parameters["router.bias"]
    probs, routed = drop(config, *route(config, parameters, logits))
    losses = auxiliary_losses(config, logits, padding, S, B) if training else {}

    def project(name, rows):
        rows = rows @ parameters[name + ".weight"].T
        return rows + parameters[name + ".bias"] if config.add_bias_linear else rows

    sent = project("fc1_latent_proj", x) if config.moe_latent_size else x
    output = torch.zeros_like(sent)
    for e in range(config.num_moe_experts):
        t = routed[:, e].nonzero()[:, 0]
        output = output.index_add(
            0, t, expert(config, parameters, e, sent[t], probs[t, e, None]))
    if config.moe_latent_size:
        output = project("fc2_latent_proj", output)
    if config.moe_shared_expert_intermediate_size:
        output = output + shared_experts(config, parameters, x)
    total = sum((attached for _, attached in losses.values()), torch.zeros(()).double())
    return (output.reshape(S, B, H), {name: loss.item() for name, (loss, _) in
                                      losses.items()}, total)
