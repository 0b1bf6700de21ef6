"""Copies of a block in another precision, apart from the model that they are of."""
import contextlib
import copy

import torch
import torch.distributed

from .errors import counted, reject

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_tensors(module, where):
    """CaptureError unless all weights are plain numbers that lie in one place."""
    for name, p in list(module.named_parameters()) + list(module.named_buffers()):
        what = f"{where}.{name}"
        if p.device.type == "meta":
            reject(what, "on the meta device", "its values must be loaded")
        if hasattr(p, "_local_tensor"):
            reject(what, "a distributed tensor", "must be whole on this rank")
        if isinstance(p, torch.nn.Parameter) and p.dtype not in FLOATS:
            reject(what, p.dtype, "quantized weights are not read; allowed are "
                   + ", ".join(str(d).replace("torch.", "") for d in FLOATS))
        if p.dtype in FLOATS:
            bad = not_finite(p)
            if bad:
                reject(what, bad, "weights must be finite numbers")


def not_finite(tensor):
    """"NaN" or "infinite" by the first that is there; "" for finite numbers."""
    tensor = tensor.detach()
    if torch.isfinite(tensor).all():
        return ""
    return "NaN" if torch.isnan(tensor).any() else "infinite"


def require_finite(where, **values):
    """CaptureError for NaN or infinity in what a block got or gave, (..., H) by name."""
    for name, rows in values.items():
        bad = not_finite(rows) if rows is not None else ""
        if bad:
            tokens = int((~torch.isfinite(rows)).any(-1).sum())
            reject(f"{where}: {name}", f"{bad} for {counted(tokens, 'token')} of "
                   f"{rows[..., 0].numel():,}", "the model must compute finite values")


def rounded(tensor):
    """To bf16's precision, in the same dtype; what bf16 holds stays as it is."""
    return tensor.to(torch.bfloat16).to(tensor.dtype)


def _copy_tensor(p, dtype, rounds, device):
    value = p.detach()
    if p.is_floating_point():
        value = (rounded(value) if rounds else value).to(dtype or p.dtype)
    value = value.to(device or p.device, copy=True)
    if not isinstance(p, torch.nn.Parameter):
        return value
    made = torch.nn.Parameter(value, requires_grad=p.is_floating_point())
    # Marks such as Megatron's `allreduce`; no buffers of gradients
    vars(made).update({key: mark for key, mark in vars(p).items()
                       if isinstance(mark, (bool, int, str))})
    return made


@contextlib.contextmanager
def _shared_as_they_are():
    """Process groups and streams cannot be copied, and need not be."""
    kinds = {kind for kind in (getattr(torch.distributed, "ProcessGroup", None),
                               torch.cuda.Stream, torch.cuda.Event) if kind}
    before = [(kind, kind.__dict__.get("__deepcopy__")) for kind in kinds]
    for kind in kinds:
        kind.__deepcopy__ = lambda self, memo: self
    try:
        yield
    finally:
        for kind, method in before:
            if method is None:
                del kind.__deepcopy__
            else:
                kind.__deepcopy__ = method


def _left_from_last_forward(module, memo):
    """Puts what a forward left in plain attributes, of which autograd forbids copies,
    into the memo: nothing reads it again."""
    seen, todo = set(), list(module.modules())
    while todo:
        owner = todo.pop()
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        for value in vars(owner).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach()
            elif type(value).__module__.startswith("megatron.") and \
                    hasattr(value, "__dict__") and not isinstance(value, type):
                todo.append(value)


def copy_module(module, dtype=None, rounds=False, device="cpu"):
    """A copy whose weights are of `dtype`, on `device` (None: as, and where, they are).

    @param rounds  to bf16's precision first
    """
    memo = {}
    for p in list(module.parameters()) + list(module.buffers()):
        memo[id(p)] = _copy_tensor(p, dtype, rounds, device)
    _left_from_last_forward(module, memo)
    with _shared_as_they_are():
        return copy.deepcopy(module, memo)


def changed_by_rounding(module):
    """Whether any weight has bits that bf16 has not."""
    return any(p.is_floating_point() and p.dtype != torch.bfloat16
               and not torch.equal(rounded(p), p)
               for p in list(module.parameters()) + list(module.buffers()))


def to_numpy(tensor):
    """fp32 of what fp32 holds, else fp64; integers stay."""
    tensor = tensor.detach().cpu()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    return tensor.contiguous().numpy()
