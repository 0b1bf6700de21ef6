"""What all peers compute: a model's experts on random tokens with a given routing, and
the result that everybody is held against."""

import dataclasses

import torch
import torch.nn.functional as F

FC1, FC2 = "experts.linear_fc1.weight", "experts.linear_fc2.weight"
FC1_BIAS, FC2_BIAS = "experts.linear_fc1.bias", "experts.linear_fc2.bias"


@dataclasses.dataclass(frozen=True)
class Model:
    """The experts of a model: E of them, K for each token, H to F and back, gated."""

    name: str
    E: int
    K: int
    H: int
    F: int
    act: str = "silu"
    clamp: float | None = None
    offset: float = 0.0
    bias: bool = False
    tokens: int = 16384  # unless --tokens says otherwise

    def activation(self, h):
        """act(gate) (up + offset) of h = (gate, up), (…, 2F) to (…, F)."""
        gate, up = h.chunk(2, -1)
        if self.clamp is not None:
            gate, up = gate.clamp(max=self.clamp), up.clamp(-self.clamp, self.clamp)
        gate = F.silu(gate) if self.act == "silu" else gate * torch.sigmoid(1.702 * gate)
        return gate * (up + self.offset) if self.offset else gate * up

    def config(self):
        """For our library, in Megatron's words."""
        return {"hidden_size": self.H, "num_moe_experts": self.E,
                "moe_router_topk": self.K, "moe_ffn_hidden_size": self.F,
                "gated_linear_unit": True, "activation_func": self.act,
                "activation_func_clamp_value": self.clamp,
                "glu_linear_offset": self.offset, "add_bias_linear": self.bias,
                "moe_token_dispatcher_type": "alltoall"}

    def flops(self, tokens):
        """Of the matrix products of one forward; the backward has twice as many."""
        return 6 * tokens * self.K * self.H * self.F

    def least_bytes(self, tokens, used_experts, element, both):
        """What must move at least: weights of the experts used, tokens in and out; with
        the backward also weights again, all weight gradients, and tokens' gradients."""
        weights, rows = 3 * self.H * self.F, tokens * self.H
        forward = used_experts * weights + 2 * rows
        backward = used_experts * weights + self.E * weights + 3 * rows
        return element * (forward + (backward if both else 0))


MODELS = {model.name: model for model in [
    Model("mixtral_8x7b", 8, 2, 4096, 14336),
    Model("qwen3_30b_a3b", 128, 8, 2048, 768),
    Model("olmoe", 64, 8, 2048, 1024),
    Model("gpt_oss_20b", 32, 4, 2880, 2880, "quick_gelu", 7.0, 1.0, True),
    # The rows that one of eight ranks gets when every rank has as many tokens: 32 of the
    # 256 experts. Here the 8 experts of a token are all on this rank, as there they are
    # not: fewer, larger copies of tokens, the same products.
    Model("deepseek_v3_ep8", 32, 8, 7168, 2048),
    # For CPUs: few experts with many rows each, and many with as many rows
    Model("e8_h512_f1024", 8, 2, 512, 1024, tokens=2048),
    Model("e64_h1024_f512", 64, 8, 1024, 512, tokens=4096),
]}


def choose_experts(model, tokens, kind, generator, device):
    """(T, K) distinct experts of each token.

    balanced: equally many rows each; uniform: any K alike; skewed: unequally popular;
    hot:N: all tokens go to the first N experts, the others are empty."""
    T, E, K = tokens, model.E, model.K
    if kind == "balanced":
        choice = (torch.arange(T, device=device)[:, None] * K
                  + torch.arange(K, device=device)) % E
        return choice[torch.randperm(T, device=device, generator=generator)]
    logits = torch.randn(T, E, device=device, generator=generator)
    if kind == "skewed":
        order = torch.randperm(E, device=device, generator=generator)
        logits += torch.linspace(2.0, -1.0, E, device=device)[order]
    if kind.startswith("hot:"):
        logits[:, :int(kind[4:])] += 1e3
    return logits.topk(K, -1).indices


class Problem:
    """Tokens, routing and parameters, the same tensors for every peer.

    hidden, grad_output (T, H); chosen (T, K) i64 and weights (T, K) f32; the same routing
    as probs (T, E) f32 and routing_map (T, E) u8; parameters by name."""

    def __init__(self, model, tokens, routing, dtype, device, seed):
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape, deviation=1.0):
            values = torch.randn(*shape, device=device, generator=generator, dtype=dtype)
            return values.mul_(deviation)

        E, H, ffn = model.E, model.H, model.F
        self.model, self.routing, self.device = model, routing, device
        self.parameters = {FC1: normal(E, 2 * ffn, H, deviation=H ** -0.5),
                           FC2: normal(E, H, ffn, deviation=ffn ** -0.5)}
        if model.bias:
            self.parameters[FC1_BIAS] = normal(E, 2 * ffn, deviation=0.1)
            self.parameters[FC2_BIAS] = normal(E, H, deviation=0.1)
        self._set_tokens(
            normal(tokens, H), normal(tokens, H),
            choose_experts(model, tokens, routing, generator, device),
            torch.randn(tokens, model.K, device=device, generator=generator).softmax(-1))
        for parameter in self.parameters.values():
            parameter.requires_grad_()

    def _set_tokens(self, hidden, grad_output, chosen, weights):
        self.tokens = hidden.shape[0]
        self.hidden, self.grad_output = hidden.requires_grad_(), grad_output
        self.chosen, self.weights = chosen, weights
        shape = (self.tokens, self.model.E)
        self.probs = weights.new_zeros(shape).scatter_(1, chosen, weights)
        self.routing_map = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        self.routing_map.scatter_(1, chosen, 1)
        self.weights.requires_grad_()
        self.counts = self.routing_map.sum(0, dtype=torch.int64).tolist()

    def head(self, tokens):
        """The same problem for its first tokens only."""
        part = object.__new__(Problem)
        part.model, part.routing, part.device = self.model, self.routing, self.device
        part.parameters = self.parameters
        part._set_tokens(self.hidden.detach()[:tokens].clone(),
                         self.grad_output[:tokens], self.chosen[:tokens],
                         self.weights.detach()[:tokens].clone())
        return part

    def leaves(self):
        """What gradients are wanted of, by the name of the gradient."""
        return {"hidden_states": self.hidden, "probs": self.weights, **self.parameters}


def reference(problem):
    """Output and gradients in fp32, expert by expert: (output, gradients by name).

    The only place where the layer is written for clarity: y_t = Σ_k w_tk (W2 a + b2) with
    a = act(W1 x_t + b1)."""
    model = problem.model
    output = torch.zeros(problem.tokens, model.H, device=problem.device)
    gradients = {name: torch.zeros(leaf.shape, device=problem.device)
                 for name, leaf in problem.leaves().items()}
    for e in range(model.E):
        tokens, slots = torch.where(problem.chosen == e)
        if tokens.numel() == 0:
            continue
        x = problem.hidden.detach()[tokens].float().requires_grad_()
        w = problem.weights.detach()[tokens, slots].requires_grad_()
        mine = {name: parameter.detach()[e].float().requires_grad_()
                for name, parameter in problem.parameters.items()}
        a = model.activation(F.linear(x, mine[FC1], mine.get(FC1_BIAS)))
        y = w[:, None] * F.linear(a, mine[FC2], mine.get(FC2_BIAS))
        dx, dw, *dparameters = torch.autograd.grad(
            y, [x, w, *mine.values()], problem.grad_output[tokens].float())
        output.index_add_(0, tokens, y.detach())
        gradients["hidden_states"].index_add_(0, tokens, dx)
        gradients["probs"][tokens, slots] = dw
        for name, gradient in zip(mine, dparameters):
            gradients[name][e] = gradient
    return output, gradients


def relative_error(got, expected):
    """Frobenius norm of the difference over that of what is expected; NaN stays NaN."""
    difference = torch.linalg.vector_norm(got.float() - expected)
    return float(difference / torch.linalg.vector_norm(expected))
