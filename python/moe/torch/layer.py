"""MoELayer: the layer as an nn.Module."""

from typing import NamedTuple

import torch
from torch import nn

import moe
from moe.torch.changes import state_of
from moe.torch.errors import reject
from moe.torch.function import MoEFunction, check_dtype
from moe.torch.layouts import initial_buffer, parameters_of, to_ours
from moe.torch.submodules import call_router, check_submodules, classes_of

_ONE_RANK = ("tensor_model_parallel_size", "context_parallel_size",
             "expert_model_parallel_size", "expert_tensor_parallel_size")


class _Built(NamedTuple):
    """A moe.MoELayer of parameters as they were. They are held, so that no other tensor
    comes to lie where one of them was, and looks like it."""

    state: tuple
    layer: moe.MoELayer
    own: list


class MoELayer(nn.Module):
    """Megatron's MoE layer, run by one of the tiers, in a PyTorch model.

    config: a moe.MoEConfig for one rank.
    spec: who supplies the components, a moe.ModuleSpec or its text; the precision of all
        arithmetic is that of the spec, whatever the tensors are.
    names: whose names and layouts the parameters have, and whose shapes go in and out:

        =========== ====================== ========================================
        names       hidden_states, output  forward() returns
        =========== ====================== ========================================
        megatron    (S, B, H)              (output, None), as Megatron's: the second is
                                           a bias that it never has
        mixtral,    (B, S, H)              output
        qwen3_moe,
        deepseek_v3
        gpt_oss     (B, S, H)              (output, scores): (B S, K), as GptOssMLP's,
                                           computed by PyTorch
        =========== ====================== ========================================

        See moe.parameter_shapes() for Megatron's; the others are those of the block in
        transformers 5.24, so that its state_dict() loads with strict=True.
    dtype, device: of new parameters; PyTorch's defaults if left out. Weights are
        N(0, 0.02), biases 0. Buffers are float32 and stay so.

    **Memory.** Hidden states and parameters are shared with the layer, not copied, where
    they have the dtype and place of the component that reads them. Copied are: hidden
    states that are not contiguous; those of Hugging Face's names where B and S are both
    more than 1, because the layer's token order is (S, B), and the output back; what a
    layout turns or stacks (gpt_oss, shared experts of deepseek_v3), once after a change.
    A parameter that is not contiguous is refused.

    **Changes.** Parameters may be written in place, by an optimizer or load_state_dict(),
    or moved, at any time but between a forward and its backward, where PyTorch raises. A
    write that PyTorch does not count (by ``.data`` or numpy) must be told by refresh().

    **Gradients.** Of the hidden states in their dtype, of parameters in theirs; those of
    the auxiliary losses are within, times main_loss_backward_scale (Megatron's
    MoEAuxLossAutoScaler) as it is when backward() runs. There is no second derivative: a
    backward with create_graph=True is refused.

    **Submodules** hold parameters, and none of them is called: what wraps one (LoRA), its
    hooks and a forward() that was set on it would not run, and forward() refuses them by
    name. Two things do work: torch.nn.utils.parametrize, and forward hooks of a model's
    own router that only look, as those of transformers do for router_logits.

    **Training.** train() and enabled gradients make a training forward: losses are
    computed, and experts counted. Counts are of the forwards since the parameters last
    changed: call update_expert_bias() and update_qb_beta() once per optimizer step. They
    are no part of state_dict(), copies or pickles. Under torch.utils.checkpoint with
    use_reentrant=False both runs of a forward count.

    **And also.** Without gradients nothing is kept. torch.autocast changes nothing in
    here: the output has the dtype of the hidden states as they come. torch.compile breaks
    its graph at this layer. On CUDA devices memory goes both ways by DLPack and kernels
    run in the default stream, which waits for the current one; that has never been run.

    Raises moe.InputError for a config of more than one rank or that `names` cannot
    express, for float16, wrong shapes, and NaN or infinite logits.
    Source: moe_layer.py (MoELayer), router.py, transformers' modeling files.
    """

    def __init__(self, config, spec="reference_cpu:fp32", *, names="megatron", dtype=None,
                 device=None):
        super().__init__()
        self._set_up(config, spec, names)
        for parameter in self.layout:
            for name, shape in zip(parameter.names, parameter.shapes):
                *path, own = name.split(".")
                holder = self
                for step in path:
                    if step not in dict(holder.named_children()):
                        holder.add_module(step, nn.Module())
                    holder = getattr(holder, step)
                if parameter.is_buffer:
                    holder.register_buffer(
                        own, initial_buffer(config, parameter.ours, shape, device))
                else:
                    holder.register_parameter(own, nn.Parameter(
                        torch.empty(shape, dtype=dtype, device=device)))
        self._classes = classes_of(self)
        self.reset_parameters()

    @classmethod
    def from_huggingface(cls, block, config, spec="reference_cpu:fp32", *, layer=None):
        """A layer that takes the place of a block of transformers.

        The block's own submodules become this layer's: parameters, buffers, hooks and
        names are the same objects, and both can run.
        block: MixtralSparseMoeBlock, Qwen3MoeSparseMoeBlock, DeepseekV3MoE or GptOssMLP.
        config: the model's config, or a moe.MoEConfig.
        layer: the block's number in the model, which the model's config may ask for; the
            last layer's if left out.
        InputError for another class, for a config that the layer does not represent, and
        for a block that was changed since its config made it: top_k, act_fn.
        """
        from moe.torch.huggingface import config_of, names_of

        names = names_of(block)
        if not isinstance(config, moe.MoEConfig):
            config = config_of(block, config, layer)
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._set_up(config, spec, names)
        for name, child in block.named_children():
            made.add_module(name, child)
        own = dict(made.named_parameters()) | dict(made.named_buffers())
        for parameter in made.layout:
            for name, shape in zip(parameter.names, parameter.shapes):
                if name not in own:
                    reject(name, "absent", f"a block of {names} has it")
                if own[name].shape != tuple(shape):
                    reject(name, tuple(own[name].shape),
                           f"must be {tuple(shape)} by its config")
        top_k = getattr(made._router(), "top_k", made.config.moe_router_topk)
        if top_k != made.config.moe_router_topk:
            reject(f"{made._router_name}.top_k", top_k,
                   f"must be {made.config.moe_router_topk}, as the config has it")
        made._classes = classes_of(made)
        made._check_submodules()
        made.training = block.training
        return made

    def _set_up(self, config, spec, names):
        if not isinstance(config, moe.MoEConfig):
            reject("config", type(config).__name__, "must be a moe.MoEConfig")
        for field in _ONE_RANK:
            if (getattr(config, field) or 1) != 1:
                reject(field, getattr(config, field), "must be 1 in moe.torch")
        self.config = config
        self.spec = spec if isinstance(spec, moe.ModuleSpec) else moe.ModuleSpec(spec)
        self.names = names
        self.layout = parameters_of(config, names)
        self.parameter_names = [name for parameter in self.layout
                                if not parameter.is_buffer for name in parameter.names]
        self.losses = {}
        self.main_loss_backward_scale = 1.0
        self._built = None
        self._counted = False  # since the last update
        self._missed = False  # forwards of parameters that have changed since

    def reset_parameters(self):
        """Weights N(0, 0.02), biases 0, as Megatron's and transformers' defaults are."""
        for name in self.parameter_names:
            parameter = self.get_parameter(name)
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, hidden_states, padding_mask=None, *, token_ids=None,
                target_topk_idx=None):
        """hidden_states: see names; float64, float32 or bfloat16.
        padding_mask: (B, S) bool, true where padding: no part of losses and counts.
        token_ids: (B, S) int64, with moe_router_hash_vocab_size.
        target_topk_idx: (T, K) int64, with moe_enable_routing_replay; token t = s B + b.

        Returns what `names` says; afterwards `losses` has the auxiliary losses before
        their coefficients, empty if this was no training forward.
        """
        return self._forward(hidden_states, dict(
            padding_mask=padding_mask, token_ids=token_ids,
            target_topk_idx=target_topk_idx))

    @torch.compiler.disable
    def _forward(self, hidden_states, arguments):
        if not torch.is_tensor(hidden_states):
            reject("hidden_states", type(hidden_states).__name__,
                   "must be a tensor of PyTorch; torch.from_numpy() makes one")
        self._check_submodules()
        check_dtype("hidden_states", hidden_states)
        if hidden_states.device.type not in ("cpu", "cuda"):
            reject("hidden_states", hidden_states.device,
                   "must be on the CPU or a CUDA device")
        if hidden_states.dim() != 3 or hidden_states.shape[2] != self.config.hidden_size:
            axes = "(S, B, H)" if self.names == "megatron" else "(B, S, H)"
            reject("hidden_states", tuple(hidden_states.shape),
                   f"must be {axes} with H = {self.config.hidden_size}")
        if self.names == "megatron":
            return self._apply_function(hidden_states, arguments), None
        output = self._apply_function(hidden_states.transpose(0, 1), arguments)
        output = output.transpose(0, 1).contiguous()
        scores = self._router_scores(hidden_states.flatten(0, 1))
        return (output, scores) if self.names == "gpt_oss" else output

    def _apply_function(self, hidden_states, arguments):
        arguments["training"] = self.training and torch.is_grad_enabled()
        parameters = [self._own(name) for name in self.parameter_names]
        return MoEFunction.apply(self, arguments, hidden_states.contiguous(), *parameters)

    def _router_scores(self, tokens):
        """(T, K) by PyTorch, where anybody sees them: gpt_oss's caller, and hooks on the
        block's own router, which give a model its router_logits."""
        router = self._router()
        if router._forward_hooks:
            return call_router(self._router_name, router, tokens)[1]
        if self.names != "gpt_oss":
            return None
        logits = nn.functional.linear(tokens, router.weight, router.bias)
        return logits.topk(self.config.moe_router_topk).values.softmax(-1)

    @property
    def _router_name(self):
        return "router" if self.names in ("megatron", "gpt_oss") else "gate"

    def _router(self):
        return self.get_submodule(self._router_name)

    def _check_submodules(self):
        # Of a new layer the router is no more than a place for parameters
        runs = self._classes[self._router_name] is not nn.Module
        check_submodules(self, self._classes, self._router_name if runs else None)

    def run(self, hidden_states, arguments):
        """A moe.Forward of hidden states (S, B, H) without history."""
        self._build()
        made = self._built.layer.forward(hidden_states, **arguments)
        self.losses = made.losses
        self._counted |= arguments["training"]
        return made

    def _build(self):
        """A moe.MoELayer of the parameters as they are: the one that there is, if none of
        them has changed."""
        own = {name: self._own(name).detach() for p in self.layout for name in p.names}
        state = tuple(state_of(self._own(name)) for name in own)
        if self._built is not None and self._built.state == state:
            return
        for name, tensor in own.items():
            if tensor.is_floating_point():
                check_dtype(name, tensor)
        ours = to_ours(self.layout, own)
        if self._built is None:
            layer = moe.MoELayer(self.config, ours, self.spec)
        else:
            layer = self._built.layer.with_parameters(ours)
            self._missed |= self._counted
        self._counted = False
        self._built = _Built(None if None in state else state, layer, list(own.values()))

    def _own(self, name):
        path, _, own = name.rpartition(".")
        return getattr(self.get_submodule(path), own)

    def refresh(self):
        """Parameters were written in a way that PyTorch does not count."""
        if self._built is not None:
            self._built = self._built._replace(state=None)

    def update_expert_bias(self):
        """Once per optimizer step, before or after it: moves the expert bias towards
        balance by the training forwards since the last call. Writes the buffer, and
        returns it; None without one. Source: finalize_model_grads.py.

        InputError if counts are gone, because forwards came before and after a change of
        the parameters; the next call starts from there.
        """
        return self._update("update_expert_bias", "router.expert_bias")

    def update_qb_beta(self):
        """The same of quantile balancing."""
        return self._update("update_qb_beta", "router.qb_beta")

    @torch.no_grad()
    def _update(self, method, ours):
        names = [p.names[0] for p in self.layout if p.ours == ours]
        if not names:
            return None
        buffer = self._own(names[0])
        if self._built is None:
            return buffer
        missed, self._missed, self._counted = self._missed, False, False
        updated = getattr(self._built.layer, method)()
        if missed:
            reject(f"{method}()", "late",
                   "must come once per optimizer step: forwards before the parameters "
                   "last changed are not in its counts; it starts anew")
        buffer.copy_(torch.from_dlpack(updated.copy()))
        return buffer

    def reset_global_aux_loss_tracker(self):
        """Forgets the counts of the global auxiliary loss, as a change of the parameters
        does: call it where an optimizer step changes none."""
        if self._built is not None:
            self._built.layer.reset_global_aux_loss_tracker()

    def _apply(self, fn, recurse=True):
        """Moves and casts. Buffers stay float32: small steps add up in them."""
        before = {p.names[0]: self._own(p.names[0]) for p in self.layout if p.is_buffer}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            if (moved := self._own(name)).dtype != buffer.dtype:
                path, _, own = name.rpartition(".")
                setattr(self.get_submodule(path), own, buffer.to(moved.device))
        return self

    def __getstate__(self):
        state = self.__dict__.copy()
        spec = ",".join(f"{part}={getattr(self.spec, part)}" for part in
                        ("router", "dispatcher", "experts", "shared_experts"))
        state.update(config=self.config.to_json(), spec=spec, _built=None, _counted=False,
                     _missed=False)
        del state["layout"]
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        self.config = moe.MoEConfig.from_json(self.config)
        self.spec = moe.ModuleSpec(self.spec)
        self.layout = parameters_of(self.config, self.names)

    def extra_repr(self):
        return f"{self.config}, {self.spec}, names={self.names!r}"
