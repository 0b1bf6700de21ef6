"""capture(): watch a model's MoE layers while it runs, and write what they did."""
import os

import torch

from . import blocks, from_transformers
from .calls import Call, Options
from .copies import check_tensors
from .errors import CaptureError, reject
from .folders import require_folder
from .weights import FusedSteps, Weights

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


class capture:  # noqa: N801, it is used as a function
    """Golden files of a running model's MoE layers, one per layer and rank.

        with moe.capture.capture(model, out="captured", layers=[1, 3]) as c:
            model(input_ids, labels=input_ids).loss.backward()
        print(c.files)

    then `moe verify captured/*.safetensors`. The first call of each block is kept: its
    hidden states, and the gradient that arrives at its output in the backward; without a
    backward inside the `with` only the forward is written. Files are written when the
    `with` ends, and not at all if it ends with an exception. What files expect is what a
    copy of the block on the CPU makes of that.

    @param model   of transformers, or anything that has a Megatron-Core MoELayer in it
    @param out     folder; made where it is missing. Files of the same name are replaced.
    @param layers  numbers, or names of modules ("model.layers.3.mlp"); None: all
    @param dtype   "float64", by which every precision can be judged; "float32" or
                   "bfloat16": the layer in that precision, as the model has it
    @param max_bytes   of a file: tokens are left out, from the last, until it fits
    @param max_tokens  of a file; None: all that fit
    @param exact   keep inputs and weights that bf16 does not hold as they are. Else they
                   are rounded to bf16, so that tiers of every precision start from the
                   same numbers.
    @param source_errors  also run the copy in fp32 and bf16, and say what that costs
    @param progress  called with a line about what is being done; None: nobody is told
    CaptureError, with one line, for a model without such layers, with one that this
    layer is not, or with moe.torch's; for weights that cannot be read, are not finite, or
    were changed inside the `with`, say by optimizer.step(); for a folder that cannot be
    written.
    """

    def __init__(self, model, out, layers=None, dtype="float64", max_bytes=64 << 20,
                 max_tokens=None, exact=False, source_errors=True, progress=None):
        if dtype not in DTYPES:
            reject("dtype", dtype, "allowed are " + ", ".join(DTYPES))
        if max_tokens is not None and max_tokens < 1:
            reject("max_tokens", max_tokens, "must be at least 1")
        if max_bytes < 1:
            reject("max_bytes", max_bytes, "must be at least 1")
        if not isinstance(model, torch.nn.Module):
            reject("model", type(model).__name__, "must be a torch.nn.Module")
        if not isinstance(out, (str, os.PathLike)):
            reject("out", out, "must be the path of a folder")
        layers = _as_list(layers)
        while not hasattr(model, "config") and \
                isinstance(getattr(model, "module", None), torch.nn.Module):
            model = model.module  # of DistributedDataParallel and its kin
        self.model, self.out = model, os.fspath(out)
        self.options = Options(DTYPES[dtype], max_bytes, max_tokens or 0, exact,
                               source_errors)
        self.files = []
        self._say = progress or (lambda line: None)
        self._megatron = _megatron_layers(model)
        found = self._megatron or blocks.find_blocks(model)
        if layers is None:
            blocks.refuse_ours(model, None)
        self.blocks = blocks.choose_blocks(found, layers, type(model).__name__)
        blocks.refuse_ours(model, self.blocks)
        if not self._megatron and not hasattr(model, "config"):
            reject("model", type(model).__name__, "must be a model of transformers, with "
                   "its config")
        if _rank()[0] == 0:
            require_folder("out", self.out)
        self.calls, self._hooks, self._open = {}, [], {}
        self._weights, self._fused = {}, None

    def __enter__(self):
        self._fused = FusedSteps()
        for name, whole in self.blocks.items():
            if not self._megatron:
                self._hooks.append(whole.block.experts.register_forward_pre_hook(
                    self._choosing(name), with_kwargs=True))
            self._hooks += [
                whole.block.register_forward_pre_hook(self._entering(name),
                                                      with_kwargs=True),
                whole.block.register_forward_hook(self._leaving(name))]
            if whole.beside is not None:
                self._hooks.append(
                    whole.beside.register_forward_hook(self._adding(name)))
        return self

    def __exit__(self, kind, *_):
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._fused.remove()
        if kind is None:
            self._write()

    # ------------------------------------------------------------------------- hooks
    def _entering(self, name):
        def entering(_, given, named):
            named = dict(named)
            hidden = given[0] if given else named.pop("hidden_states", None)
            if not isinstance(hidden, torch.Tensor):
                reject(name, "called without hidden_states", "they must be its first "
                       "argument, or have that name")
            # The clone: a block may work in place
            self._open[name] = Call(hidden.detach().clone(), tuple(given[1:]), named)
        return entering

    def _choosing(self, name):
        def choosing(_, given, named):
            given = list(given) + list(named.values())
            if name in self._open and len(given) == 3:
                self._open[name].chosen = given[1].detach().clone()
        return choosing

    def _leaving(self, name):
        def leaving(_, __, output):
            call = self._open.pop(name, None)
            if call is None:
                return
            output = blocks.first_tensor(output)
            call.output = output.detach().clone().reshape(call.hidden.shape)
            first = self.calls.get(name)
            if first is not None:
                first.calls += 1
                # Recomputed for the backward, of which the first call knew nothing
                again = (output.requires_grad and not first.watched
                         and torch.equal(first.hidden, call.hidden))
                if not again:
                    return
            call.watched = output.requires_grad
            self.calls[name] = call
            self._weights[name] = Weights(self.blocks[name], name, self._fused)
            if output.requires_grad:
                def arrived(gradient):
                    call.grad_output = gradient.detach().clone().reshape(
                        call.hidden.shape)
                output.register_hook(arrived)
        return leaving

    def _adding(self, name):
        def adding(_, given, output):
            call = self.calls.get(name)
            if call is not None and not call.added and \
                    torch.equal(given[0], call.hidden.reshape(given[0].shape)):
                call.added = True
                call.output = call.output + output.detach().reshape(call.hidden.shape)
        return adding

    # ------------------------------------------------------------------------- files
    def _write(self):
        idle = [name for name in self.blocks if name not in self.calls]
        if idle:
            reject("layers", ", ".join(idle), "not called while they were watched")
        for weights in self._weights.values():
            weights.require_unchanged()
        for name, whole in self.blocks.items():  # first: one's NaN is soon in all values
            for path, part in whole.parts(name):
                check_tensors(part, path or "block")
        rank, ranks = _rank()
        for i, (name, whole) in enumerate(self.blocks.items()):
            self._say(f"{name or 'block'} ({i + 1} of {len(self.blocks)})")
            path = os.path.join(self.out, self._file_name(name, rank, ranks))
            if self._megatron:
                from . import from_megatron
                written = from_megatron.write_case(name, whole, self.calls[name],
                                                   self.options, path)
            else:
                written = from_transformers.write_case(
                    self.model, name, whole, self.calls[name], self.options, path)
            if written is not None:
                self.files.append(written)

    def _file_name(self, name, rank, ranks):
        number = blocks.number_of(name)
        same = [other for other in self.blocks if blocks.number_of(other) == number]
        stem = f"layer_{number}" if len(same) == 1 else name
        return stem + (f".rank_{rank}" if ranks > 1 else "") + ".safetensors"


def _as_list(layers):
    """None for None: all."""
    if layers is None:
        return None
    if isinstance(layers, (str, bytes)) or not hasattr(layers, "__iter__"):
        reject("layers", layers, "must be a list of numbers or names, or None for all")
    layers = list(layers)
    if not layers:
        reject("layers", "[]", "must have a number or name; None is for all")
    return layers


def _megatron_layers(model):
    """{name: Whole} of Megatron-Core's MoELayers; empty for other models."""
    found = {}
    for name, module in model.named_modules():
        if any(kind.__name__ == "BaseMoELayer" and kind.__module__.startswith("megatron.")
               for kind in type(module).__mro__):
            found[name] = blocks.Whole(module)
    return found


def _rank():
    dist = torch.distributed
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


__all__ = ["capture", "CaptureError"]
