"""The layer in PyTorch's graph: one node, whose backward is the layer's own."""

import itertools
import weakref

import numpy
import torch

from moe.torch.errors import reject
from moe.torch.layouts import to_module


def check_dtype(field, tensor):
    """InputError for a floating-point type that the layer does not have."""
    if tensor.dtype not in (torch.float64, torch.float32, torch.bfloat16):
        reject(field, str(tensor.dtype).removeprefix("torch."),
               "must be float64, float32 or bfloat16; .to() converts")


def shared(tensor):
    """The same memory without its history, ready for kernels of the default stream."""
    if tensor.is_cuda:
        current = torch.cuda.current_stream(tensor.device)
        torch.cuda.default_stream(tensor.device).wait_stream(current)
    return tensor.detach()


def to_torch(tensor, like):
    """A moe.Tensor as PyTorch's, in the dtype of `like` and beside it: the same memory,
    unless the layer works in another; then a copy."""
    if tensor.space == "device" and not like.is_cuda:
        tensor = tensor.copy()
    return torch.from_dlpack(tensor).to(like)


class _Kept(numpy.ndarray):
    """A number in memory that a moe.Forward lives as long as."""

    forward = None


_numbers = itertools.count()
_kept = weakref.WeakValueDictionary()


def _keep(forward):
    """A tensor to save for the backward in place of a Forward, which is none.

    Whoever saves tensors' memory, and makes them once more when they are needed, does so
    with the Forward then: torch.utils.checkpoint lets go of the first, and its second run
    makes another.
    """
    number = next(_numbers)
    kept = numpy.full((1,), number).view(_Kept)
    kept.forward = forward
    _kept[number] = kept
    return torch.from_numpy(kept)


def _forward_of(saved):
    kept = _kept.get(int(saved))
    if kept is None:
        reject("saved tensors", "copies",
               "must be those that were saved: what this layer keeps is no tensor, and "
               "hooks cannot move it (torch.autograd.graph.save_on_cpu)")
    return kept.forward


class MoEFunction(torch.autograd.Function):
    """From hidden states (S, B, H) and a module's parameters to the output (S, B, H)."""

    @staticmethod
    def forward(ctx, layer, arguments, hidden, *parameters):
        """layer: the MoELayer module; arguments: of moe.MoELayer.forward()."""
        made = layer.run(shared(hidden), arguments)
        # PyTorch notices when one of these was written to before the backward
        ctx.save_for_backward(hidden, *parameters, _keep(made))
        ctx.layer = layer
        return to_torch(made.output, hidden)

    @staticmethod
    def backward(ctx, grad_output):
        if torch.is_grad_enabled():
            reject("create_graph", True,
                   "must be False; this layer has no second derivative")
        hidden, *parameters, kept = ctx.saved_tensors
        layer = ctx.layer
        made = _forward_of(kept).backward(
            shared(grad_output.contiguous()),
            main_loss_backward_scale=float(layer.main_loss_backward_scale))
        like = dict(zip(layer.parameter_names, parameters))
        ours = {p.ours: to_torch(made.parameters[p.ours], like[p.names[0]])
                for p in layer.layout if not p.is_buffer}
        gradients = to_module(layer.layout, ours)
        return (None, None, to_torch(made.hidden_states, hidden),
                *(gradients[name] for name in layer.parameter_names))
