"""What lets Megatron-Core's MoELayer run on a CPU, over gloo.

Stand-ins for what it asks of a GPU, of NCCL and of Transformer Engine. None of them
computes but two: top-k, by a stable sort, so that of equal keys the lower index wins, and
the latent projections, by torch's linear.
"""
import contextlib

import torch
import torch.distributed as dist
import torch.nn.functional as F


class Nothing:
    """A stream, or an event: every method is there, and gives another nothing."""

    def __init__(self, *_, **__):
        pass

    def __getattr__(self, _):
        return lambda *_, **__: self


class DuplicatedLinear(torch.nn.Module):
    """A latent projection, as Transformer Engine's "duplicated" linear layer has it."""

    def __init__(self, inputs, outputs, *, config, bias, **_):
        super().__init__()
        dtype = config.params_dtype
        self.weight = torch.nn.Parameter(torch.empty(outputs, inputs, dtype=dtype))
        self.bias = None
        if bias:
            self.bias = torch.nn.Parameter(torch.empty(outputs, dtype=dtype))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias), None


def stable_topk(x, k, dim=-1, largest=True, sorted=True):
    ids = x.argsort(dim=dim, descending=largest, stable=True).narrow(dim, 0, k)
    return torch.return_types.topk((x.gather(dim, ids), ids))


def without_gpu():
    """Before Megatron is imported."""
    for name in ("Stream", "Event", "current_stream"):
        setattr(torch.cuda, name, Nothing)
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.stream = lambda _: contextlib.nullcontext()
    torch.cuda.synchronize = lambda *_: None
    torch.topk = torch.Tensor.topk = stable_topk

    # gloo wants splits as lists, knows no average, and has only parts of one size
    exchange, gather, add_up = (dist.all_to_all_single, dist.all_gather,
                                dist.all_reduce)

    def all_to_all_single(out, own, output_split_sizes=None, input_split_sizes=None,
                          **more):
        lists = [sizes.tolist() if torch.is_tensor(sizes) else sizes
                 for sizes in (output_split_sizes, input_split_sizes)]
        return exchange(out, own, *lists, **more)

    def all_gather(parts, own, group=None, **_):
        most = max(part.shape[0] for part in parts)
        padded = F.pad(own, [0, 0] * (own.dim() - 1) + [0, most - own.shape[0]])
        whole = [torch.empty_like(padded) for _ in parts]
        gather(whole, padded.contiguous(), group=group)
        for part, came in zip(parts, whole):
            part.copy_(came[:part.shape[0]])

    def reduce_scatter(own, parts, group=None, **_):
        whole = torch.cat(parts)
        add_up(whole, group=group)
        sizes = [part.shape[0] for part in parts]
        own.copy_(whole.split(sizes)[dist.get_rank(group)])

    def all_reduce(tensor, op=dist.ReduceOp.SUM, group=None, **more):
        if op != dist.ReduceOp.AVG:
            return add_up(tensor, op=op, group=group, **more)
        add_up(tensor, group=group)
        tensor.div_(dist.get_world_size(group))

    dist.all_to_all_single, dist.all_gather = all_to_all_single, all_gather
    dist.reduce_scatter, dist.all_reduce = reduce_scatter, all_reduce

    import megatron.core.transformer.moe.moe_layer as moe_layer
    from megatron.core.tensor_parallel import mappings
    moe_layer.HAVE_TE, moe_layer.TELinear = True, DuplicatedLinear
    # On one rank it returns what it was given, to which a bias is added in place
    reduce = mappings._ReduceFromModelParallelRegion
    forward = reduce.forward
    reduce.forward = staticmethod(lambda *given: forward(*given).clone())
