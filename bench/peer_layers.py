"""The peers: everybody's way to compute a Problem (bench/peer_problem.py).

A peer has begin() -> run with .output, finish(run) -> gradients by name, and forward(),
the forward alone, for those who save less for it. run.release() frees what it holds."""

import torch
import torch.nn.functional as F

from moe_library import Layer
from peer_clock import free_memory
from peer_problem import FC1, FC1_BIAS, FC2, FC2_BIAS


class Unfit(Exception):
    """Why a peer cannot compute this problem."""


# ------------------------------------------------------------ rows to experts and back
def sort_rows(problem):
    """(order, tokens, inverse): row r is pair order[r] of token tokens[r] and choice;
    inverse finds it again. The host waits for nothing."""
    order = problem.chosen.reshape(-1).to(torch.int32).sort(stable=True).indices
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    return order, order // problem.model.K, inverse


class Dispatch(torch.autograd.Function):
    """Rows of tokens. torch's own backward of an index adds with sorting or atomics;
    every token has K rows, so a gather and a sum do."""

    @staticmethod
    def forward(ctx, hidden, tokens, inverse, K):
        ctx.save_for_backward(inverse)
        ctx.K = K
        return hidden[tokens]

    @staticmethod
    def backward(ctx, drows):
        (inverse,) = ctx.saved_tensors
        return drows[inverse].view(-1, ctx.K, drows.shape[1]).sum(1), None, None, None


class Combine(torch.autograd.Function):
    """The sum of each token's rows: the other way round."""

    @staticmethod
    def forward(ctx, rows, tokens, inverse, K):
        ctx.save_for_backward(tokens)
        return rows[inverse].view(-1, K, rows.shape[1]).sum(1)

    @staticmethod
    def backward(ctx, doutput):
        (tokens,) = ctx.saved_tensors
        return doutput[tokens], None, None, None


def with_routing(experts):
    """A peer's whole function from experts(problem, rows, weights, order) -> rows."""

    def layer(problem):
        order, tokens, inverse = sort_rows(problem)
        K = problem.model.K
        rows = Dispatch.apply(problem.hidden, tokens, inverse, K)
        weights = problem.weights.view(-1).gather(0, order)[:, None].to(rows.dtype)
        rows = experts(problem, rows, weights, order)
        return Combine.apply(rows, tokens, inverse, K)

    return layer


# ------------------------------------------------------------------ torch's own products
def grouped_experts(problem, rows, weights, order):
    """grouped_mm, the weight on the narrow side of FC2, the offsets on the device."""
    grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm
    model, parameters = problem.model, problem.parameters
    expert = problem.chosen.reshape(-1)[order]
    experts = torch.arange(model.E, device=expert.device)
    offsets = torch.searchsorted(expert, experts, right=True).to(torch.int32)
    h = grouped_mm(rows, parameters[FC1].transpose(1, 2), offs=offsets)
    if model.bias:  # as a product, whose backward adds up without atomics
        select = (expert[:, None] == experts).to(rows.dtype)
        h = h + select @ parameters[FC1_BIAS]
    a = model.activation(h) * weights
    y = grouped_mm(a, parameters[FC2].transpose(1, 2), offs=offsets)
    return y + (select * weights) @ parameters[FC2_BIAS] if model.bias else y


def looped_experts(problem, rows, weights, _):
    """One product after the other; how many rows each expert has is known beforehand."""
    # unbind, not an index: the backward of an index makes a gradient of all experts.
    unbound = {name: parameter.unbind(0) for name, parameter in
               problem.parameters.items()}
    outputs = []
    for e, (x, w) in enumerate(zip(rows.split(problem.counts),
                                   weights.split(problem.counts))):
        b1, b2 = ((unbound[FC1_BIAS][e], unbound[FC2_BIAS][e]) if problem.model.bias
                  else (None, None))
        a = problem.model.activation(F.linear(x, unbound[FC1][e], b1)) * w
        y = F.linear(a, unbound[FC2][e])
        outputs.append(y if b2 is None else y + w * b2)
    return torch.cat(outputs)


def batched_experts(problem, rows, weights, _):
    """One batched product for all experts: what grouping can hope for at best."""
    model, parameters = problem.model, problem.parameters
    x = rows.view(model.E, -1, model.H)
    w = weights.view(model.E, -1, 1)
    h = torch.bmm(x, parameters[FC1].transpose(1, 2))
    if model.bias:
        h = h + parameters[FC1_BIAS][:, None]
    y = torch.bmm(model.activation(h) * w, parameters[FC2].transpose(1, 2))
    if model.bias:
        y = y + w * parameters[FC2_BIAS][:, None]
    return y.view(rows.shape)


class TorchRun:
    """A forward whose graph waits for its backward."""

    def __init__(self, output):
        self.output = output

    def release(self):
        self.output = None


class TorchPeer:
    """A function of a Problem that autograd can follow."""

    ours = False

    def __init__(self, name, problem, function):
        self.name, self.problem, self._function = name, problem, function

    def forward(self):
        with torch.no_grad():
            return TorchRun(self._function(self.problem))

    def begin(self):
        return TorchRun(self._function(self.problem))

    def finish(self, run):
        leaves = self.problem.leaves()
        gradients = torch.autograd.grad(run.output, list(leaves.values()),
                                        self.problem.grad_output)
        return dict(zip(leaves, gradients))


def grouped_peer(problem, _):
    return TorchPeer("torch_grouped_mm", problem, with_routing(grouped_experts))


def compiled_peer(problem, _):
    torch.compiler.reset()  # nothing of another problem's shapes
    function = torch.compile(with_routing(grouped_experts), dynamic=False)
    return TorchPeer("torch_grouped_mm_compiled", problem, function)


def loop_peer(problem, _):
    return TorchPeer("expert_loop", problem, with_routing(looped_experts))


def bmm_peer(problem, _):
    if len(set(problem.counts)) != 1:
        raise Unfit("needs equally many rows for every expert")
    return TorchPeer("torch_bmm", problem, with_routing(batched_experts))


# ----------------------------------------------------------------------- transformers
def require_memory_for_gathered(problem):
    """batched_mm makes a copy of the expert's weights for every row, and as much for
    their gradients. Unfit where that is more than half of what is free."""
    rows = problem.tokens * problem.model.K
    weights = 3 * problem.model.H * problem.model.F * problem.hidden.itemsize
    wanted, free = 2 * rows * weights, free_memory(problem.device)
    if wanted > free / 2:
        raise Unfit(f"copies the weights of {rows} rows, {wanted / 2 ** 30:.0f} GiB of "
                    f"{free / 2 ** 30:.0f} GiB free")


def transformers_peer(implementation):
    """transformers' experts, on our very parameters."""

    def make(problem, _):
        from transformers import Qwen3MoeConfig
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

        model = problem.model
        if model.bias:
            raise Unfit("its experts with biases interleave gate and up")
        if implementation == "batched_mm":
            require_memory_for_gathered(problem)
        config = Qwen3MoeConfig(hidden_size=model.H, moe_intermediate_size=model.F,
                                num_experts=model.E, num_experts_per_tok=model.K,
                                hidden_act="silu")
        # What set_experts_implementation() sets
        config._experts_implementation_internal = implementation
        with torch.device("meta"):
            experts = Qwen3MoeExperts(config)
        del experts.gate_up_proj, experts.down_proj
        # Not as torch Parameters, which would be other tensors
        experts.gate_up_proj = problem.parameters[FC1]
        experts.down_proj = problem.parameters[FC2]

        def function(given):
            return experts(given.hidden, given.chosen,
                           given.weights.to(given.hidden.dtype))

        return TorchPeer(f"transformers_{implementation}", problem, function)

    return make


# ------------------------------------------------------------------------------- ours
class OurRun:
    def __init__(self, forward):
        self.forward, self.output = forward, forward.output

    def release(self):
        self.output = None
        self.forward.release()


class OurPeer:
    """A supplier of libmoe.so. It saves for the backward in every forward."""

    ours = True

    def __init__(self, name, problem, library):
        self.name, self.problem = name, problem
        self._layer = Layer(library, problem.model.config(), name, problem.parameters)

    def forward(self):
        return self.begin()

    def begin(self):
        problem = self.problem
        return OurRun(self._layer.forward(problem.hidden, problem.probs,
                                          problem.routing_map))

    def finish(self, run):
        run.forward.last_backward(self.problem.grad_output)
        gradients = {name: run.forward.gradient(name) for name in self.problem.leaves()}
        return gradients


def our_peer(supplier):
    return lambda problem, library: OurPeer(supplier, problem, library)


PEERS = {
    "torch_grouped_mm": grouped_peer,
    "torch_grouped_mm_compiled": compiled_peer,
    "transformers_grouped_mm": transformers_peer("grouped_mm"),
    "transformers_batched_mm": transformers_peer("batched_mm"),
    "transformers_eager": transformers_peer("eager"),
    "expert_loop": loop_peer,
    "torch_bmm": bmm_peer,
}

# Not something that can be had for any routing: what the others are held against.
BOUNDS_ONLY = {"torch_bmm"}
