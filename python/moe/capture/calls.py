"""A call of an MoE layer by its model, and how it becomes a file."""
from dataclasses import dataclass, field

import torch

SHORT = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16",
         torch.float16: "fp16"}


@dataclass
class Options:
    """How captured calls become files; see capture()."""
    dtype: torch.dtype = torch.float64
    max_bytes: int = 64 << 20
    max_tokens: int = 0  # 0: all
    exact: bool = False
    source_errors: bool = True


@dataclass
class Call:
    hidden: torch.Tensor  # (..., H), before the layer
    more: tuple  # other positional arguments, and
    named: dict  # those with names
    output: torch.Tensor = None
    grad_output: torch.Tensor = None  # None: there was no backward
    chosen: torch.Tensor = None  # (..., K) experts, where they were seen
    calls: int = 1
    watched: bool = False  # its output has a gradient to come
    added: bool = False  # what stands beside the block is in `output`


@dataclass
class Written:
    """A file that capture wrote."""
    path: str
    layer: str
    tokens: int
    size: int
    notes: list = field(default_factory=list)


class Tokens:
    """The tokens of a call; what else the block was given is cut as they are."""

    def __init__(self, call):
        self.call = call
        self.leading = call.hidden.shape[:-1]
        self.count = call.hidden[..., 0].numel()
        self.width = call.hidden.shape[-1]

    def of(self, tensor, ids):
        """The rows, one per token, of a tensor that has an element for each."""
        return tensor.reshape(self.count, *tensor.shape[len(self.leading):])[ids]

    def hidden(self, ids):
        return self.of(self.call.hidden, ids)

    def arguments(self, ids, device):
        """Positional and named ones, without the hidden states."""
        def cut(value):
            if not isinstance(value, torch.Tensor):
                return value
            if value.shape[:len(self.leading)] == self.leading:
                value = self.shaped(self.of(value, ids))
            return value.to(device)
        return (tuple(cut(v) for v in self.call.more),
                {name: cut(v) for name, v in self.call.named.items()})

    def shaped(self, rows):
        """As the block is called: (tokens, …), or (1, tokens, …)."""
        return rows.unsqueeze(0) if len(self.leading) > 1 else rows

    def token_ids(self, ids):
        """(1, T), or None where the block was given none."""
        for value in list(self.call.more) + list(self.call.named.values()):
            if isinstance(value, torch.Tensor) and value.shape == self.leading and \
                    not value.is_floating_point():
                return self.of(value, ids).reshape(1, -1).long()
        return None
