"""Whether a block's weights are still those that it ran with."""
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from .blocks import joined
from .copies import FLOATS
from .errors import reject


class FusedSteps:
    """Counts the steps of fused optimizers, which write parameters and leave PyTorch's
    own count of writes as it was."""

    def __init__(self):
        self._steps = {}
        self._handle = register_optimizer_step_post_hook(self._stepped)

    def _stepped(self, optimizer, *_):
        for group in optimizer.param_groups:
            for p in group["params"] if group.get("fused") else ():
                self._steps[id(p)] = self.of(p) + (p.grad is not None)

    def of(self, parameter):
        return self._steps.get(id(parameter), 0)

    def remove(self):
        self._handle.remove()


class Weights:
    """A block's parameters as they are when it has run.

    Writes that nobody counts, by `.data` or a kernel of Megatron's, are seen in the
    router alone, of which a copy is kept: every step of training changes it.
    """

    def __init__(self, whole, name, fused):
        self._fused, self._router = fused, whole.router
        self._writes = [(joined(path, key), p, self._writes_of(p))
                        for path, part in whole.parts(name)
                        for key, p in part.named_parameters()]
        self._name = joined(name, next(
            key for key, part in whole.block.named_children() if part is self._router))
        self._kept = {key: p.detach().clone() for key, p in self._router_parameters()}

    def _router_parameters(self):
        return [(key, p) for key, p in self._router.named_parameters()
                if p.dtype in FLOATS and p.device.type != "meta"
                and not hasattr(p, "_local_tensor")]

    def _writes_of(self, p):
        return 0 if p.is_inference() else p._version + self._fused.of(p)

    def require_unchanged(self):
        """CaptureError with the first that has been written since."""
        changed = [name for name, p, writes in self._writes
                   if self._writes_of(p) != writes]
        changed += [joined(self._name, key) for key, p in self._router_parameters()
                    if key in self._kept and not _same(self._kept[key], p.detach())]
        if changed:
            reject(changed[0], "changed since the block ran",
                   "optimizer.step() must come after the `with`")


def _same(before, now):
    """NaN is as NaN; of another shape, type or place, as a sharded model has it between
    its runs, nothing is known."""
    if (before.shape, before.dtype, before.device) != (now.shape, now.dtype, now.device):
        return True
    return torch.equal(before.nan_to_num(), now.nan_to_num())
