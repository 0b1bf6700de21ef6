"""Running a copy of a block on tokens of a call."""
import contextlib
from dataclasses import dataclass

import torch

from .blocks import Watch

# What is chosen is looked at under that much of relative noise, some ten times what a sum
# in fp32 loses
NOISE = 2.0 ** -18
NOISES = 8


@dataclass
class Values:
    """What a run gave. Gradients are None, and {}, without a backward."""
    output: torch.Tensor  # (T, H)
    grad_hidden: torch.Tensor  # (T, H)
    gradients: dict  # by name, of what the output depends on
    watch: Watch


def one_expert_after_the_other(module):
    """The code of transformers' experts that knows every precision and width."""
    for part in module.modules():
        config = getattr(part, "config", None)
        if hasattr(config, "_experts_implementation"):
            config._experts_implementation = "eager"


class _Enough(Exception):
    """The experts have been chosen."""


class Runner:
    """A copy of a block, on the CPU, and the call whose tokens it gets."""

    def __init__(self, copy, tokens):
        self.copy, self.tokens = copy, tokens
        one_expert_after_the_other(copy)

    def convert(self, dtype, router_in_fp32):
        """The same copy in another precision.

        @param router_in_fp32  in a block of bf16: its choice is then that of the weights
                               and the tokens alone
        """
        self.copy.to(dtype)
        if not router_in_fp32:
            return

        def widen(_, given, named):
            def wide(v):
                floats = isinstance(v, torch.Tensor) and v.is_floating_point()
                return v.float() if floats else v
            return tuple(map(wide, given)), {k: wide(v) for k, v in named.items()}
        self.copy.router.float().register_forward_pre_hook(widen, with_kwargs=True)

    def __call__(self, ids, hidden, grad_output=None):
        """Forward on rows (T, H) for those tokens and, with a gradient, backward."""
        backward = grad_output is not None
        hidden = hidden.detach().clone().requires_grad_(backward)
        more, named = self.tokens.arguments(ids, "cpu")
        with Watch(self.copy) as watch, torch.set_grad_enabled(backward):
            # + 0: a block may work in place, which a leaf does not allow
            output = self.copy(self.tokens.shaped(hidden + 0), *more, **named)
            output = output.reshape(hidden.shape)
        if not backward:
            return Values(output, None, {}, watch)
        trained = {name: p for name, p in self.copy.tensors() if p.requires_grad}
        grads = torch.autograd.grad(output, [hidden, *trained.values()], grad_output,
                                    allow_unused=True)
        gradients = {name: g for name, g in zip(trained, grads[1:]) if g is not None}
        return Values(output.detach(), grads[0], gradients, watch)

    def route(self, ids, hidden):
        """A forward that ends where the experts begin. @return Watch"""
        def enough(*_):
            raise _Enough
        with Watch(self.copy) as watch, torch.no_grad():
            hook = self.copy.block.experts.register_forward_pre_hook(enough)
            more, named = self.tokens.arguments(ids, "cpu")
            with contextlib.suppress(_Enough):
                self.copy(self.tokens.shaped(hidden), *more, **named)
            hook.remove()
        return watch

    def undecided(self, ids, hidden):
        """(T) bool: whose experts change with a little noise in tokens and router."""
        first = self.route(ids, hidden).experts()
        changed = torch.zeros(len(ids), dtype=torch.bool)
        if first is None:
            return changed
        generator = torch.Generator().manual_seed(1)

        def noisy(tensor):
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            return (tensor.double() * (1 + NOISE * (2 * noise - 1))).to(tensor.dtype)

        weights = [p for p in self.copy.router.parameters() if p.is_floating_point()]
        kept = [p.detach().clone() for p in weights]
        for _ in range(NOISES):
            for p, value in zip(weights, kept):
                p.data = noisy(value)
            chosen = self.route(ids, noisy(hidden)).experts()
            changed |= (chosen != first).any(1)
        for p, value in zip(weights, kept):
            p.data = value
        return changed

    def ties(self, ids, hidden):
        """(T) bool: of which a chosen expert's logit in bf16 is as another's, or the next
        number to it, so that the order of a sum decides."""
        watch = self.route(ids, hidden)
        close = torch.zeros(len(ids), dtype=torch.bool)
        experts = watch.experts()
        for logits in watch.of_router:
            if experts is None or logits.dtype != torch.bfloat16 or logits.dim() != 2 or \
                    len(logits) != len(ids) or logits.shape[1] <= experts.shape[1]:
                continue
            logits = logits.float()
            taken = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, experts, True)
            least = logits.masked_fill(~taken, torch.inf).min(1).values
            most = logits.masked_fill(taken, -torch.inf).max(1).values
            close |= least - most <= 2.0 ** -7 * most.abs()
        return close

    def factor_after_experts(self, ids, hidden, values, allowed):
        """By what the block multiplies the experts' sum: 1 where weights hold it already.

        None where what it does is no factor, within the relative error allowed."""
        routed = values.watch.expert_output
        if routed is None or routed.numel() != values.output.numel():
            return 1.0  # experts that are given no weights
        hook = self.copy.block.experts.register_forward_hook(
            lambda _, __, output: torch.zeros_like(output)
            if isinstance(output, torch.Tensor)
            else (torch.zeros_like(output[0]), *output[1:]))
        without = self(ids, hidden).output
        hook.remove()
        routed = routed.reshape(values.output.shape).double()
        share = values.output.double() - without.double()
        factor = float((share * routed).sum() / (routed * routed).sum())
        off = (share - factor * routed).norm() / share.norm()
        if off >= allowed:
            return None
        return 1.0 if abs(factor - 1) < allowed else factor
