"""How models name and lay out the parameters of their layer in memory.

A layout says of each of the layer's parameters, by Megatron's names, which tensors of a
module it is made of, and how. What lies in memory as ours does is that very tensor, and
shared; what does not is copied when its parameter has changed. Gradients go back the same
way: every layout here only moves elements.
Source: the blocks of transformers 5.24, models/<name>/modeling_<name>.py.
"""

from dataclasses import dataclass
from typing import Callable

import torch

import moe
from moe.torch.errors import reject


@dataclass(frozen=True)
class Layout:
    """Where a module has one of the layer's parameters.

    names: of the module's tensors, dotted.
    split: our shape -> the shapes of these.
    join: these -> ours; None where the one tensor lies in memory as ours does.
    back: the gradient of ours -> those of these.
    """

    names: tuple
    split: Callable = lambda shape: [shape]
    join: Callable = None
    back: Callable = lambda gradient: [gradient]


@dataclass(frozen=True)
class Parameter:
    """One of a layer's parameters. ours: its name, Megatron's. shapes: of the module's
    tensors that it is made of."""

    ours: str
    shapes: list
    layout: Layout

    @property
    def names(self):
        return self.layout.names

    @property
    def is_buffer(self):
        return self.ours in ("router.expert_bias", "router.qb_beta", "router.tid2eid")


def _stacked(gate, up):
    """Gates above ups, from two linear layers: (F, H), (F, H) <-> (2F, H)."""
    return Layout((gate, up), lambda s: [(s[0] // 2, s[1])] * 2, torch.cat,
                lambda w: w.chunk(2))


def _transposed(name):
    """(E, F, H) <-> (E, H, F)."""
    return Layout((name,), lambda s: [(s[0], s[2], s[1])],
                lambda w: w[0].transpose(1, 2).contiguous(),
                lambda w: [w.transpose(1, 2)])


def _transposed_in_turn(name):
    """Columns gate, up, gate, up, …: (E, H, 2F) <-> (E, 2F, H)."""
    return Layout((name,), lambda s: [(s[0], s[2], s[1])],
                lambda w: w[0].unflatten(2, (-1, 2)).permute(0, 3, 2, 1).flatten(1, 2),
                lambda w: [w.unflatten(1, (2, -1)).permute(0, 3, 2, 1).flatten(2)])


def _in_turn(name):
    """Elements gate, up, gate, up, …: (E, 2F) <-> (E, 2F)."""
    return Layout((name,), join=lambda w: w[0].unflatten(1, (-1, 2)).mT.flatten(1),
                back=lambda w: [w.unflatten(1, (2, -1)).mT.flatten(1)])


_PACKED = {
    "router.weight": Layout(("gate.weight",)),
    "experts.linear_fc1.weight": Layout(("experts.gate_up_proj",)),
    "experts.linear_fc2.weight": Layout(("experts.down_proj",)),
}
_SHARED = "shared_experts."

LAYOUTS = {
    "megatron": {},  # every name is ours
    "mixtral": _PACKED,
    "qwen3_moe": _PACKED,
    "deepseek_v3": {
        **_PACKED,
        "router.expert_bias": Layout(("gate.e_score_correction_bias",)),
        "shared_experts.linear_fc1.weight":
            _stacked(_SHARED + "gate_proj.weight", _SHARED + "up_proj.weight"),
        "shared_experts.linear_fc2.weight": Layout((_SHARED + "down_proj.weight",)),
    },
    "gpt_oss": {
        "router.weight": Layout(("router.weight",)),
        "router.bias": Layout(("router.bias",)),
        "experts.linear_fc1.weight": _transposed_in_turn("experts.gate_up_proj"),
        "experts.linear_fc1.bias": _in_turn("experts.gate_up_proj_bias"),
        "experts.linear_fc2.weight": _transposed("experts.down_proj"),
        "experts.linear_fc2.bias": Layout(("experts.down_proj_bias",)),
    },
}


def parameters_of(config, names):
    """A Parameter for each that a layer of this config has.

    InputError for names that are not known, and for a config with a parameter that a
    model of that name does not have, or the other way round.
    """
    if names not in LAYOUTS:
        reject("names", names, "must be " + ", ".join(LAYOUTS))
    layouts, shapes, result = LAYOUTS[names], moe.parameter_shapes(config), []
    for ours, shape in shapes.items():
        layout = Layout((ours,)) if names == "megatron" else layouts.get(ours)
        if layout is None:
            reject("names", names, f"this config has {ours}, and that model does not")
        result.append(Parameter(ours, layout.split(shape), layout))
    for ours in layouts:
        if ours not in shapes:
            reject("names", names, f"that model has {ours}, and this config does not")
    if names != "megatron" and not config.gated_linear_unit:
        reject("gated_linear_unit", False, f"must be true with names {names}")
    return result


def initial_buffer(config, ours, shape, device):
    """What a buffer starts with: zeros, or K different experts for each token id."""
    if ours != "router.tid2eid":
        return torch.zeros(shape, dtype=torch.float32, device=device)
    choices = torch.arange(shape[0] * shape[1], device=device).reshape(shape)
    return choices % config.num_moe_experts


def to_ours(parameters, of_module):
    """The layer's parameters, without history, by Megatron's names.

    of_module: dict of a module's tensors by their dotted names.
    """
    result = {}
    for parameter in parameters:
        sources = [of_module[name].detach() for name in parameter.names]
        join = parameter.layout.join
        result[parameter.ours] = join(sources) if join else sources[0]
    return result


def to_module(parameters, gradients):
    """The gradients of a module's tensors, by dotted name, from the layer's."""
    result = {}
    for parameter in parameters:
        if not parameter.is_buffer:
            back = parameter.layout.back(gradients[parameter.ours])
            result.update(zip(parameter.names, back))
    return result
