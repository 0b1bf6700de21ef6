"""Whether a tensor has been written since: PyTorch counts that, with one gap."""

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


def state_of(tensor):
    """Equal as long as a tensor is where it was and as it was; None if nobody knows: of
    an inference tensor no changes are counted."""
    if tensor.is_inference():
        return None
    tensor._moe_reads = True
    return tensor.data_ptr(), tensor._version, tensor.dtype, tensor.device


def _count_fused(optimizer, *_):
    # Kernels of fused=True write parameters and leave their version as it was (seen in
    # PyTorch 2.15); we count for them, where a layer reads.
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("fused") else ():
            if getattr(parameter, "_moe_reads", False):
                torch.autograd.graph.increment_version(parameter)


register_optimizer_step_post_hook(_count_fused)
