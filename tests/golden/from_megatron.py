"""Golden cases from Megatron-Core's own MoELayer, run on a CPU in fp64, or in bf16.

  python from_megatron.py FOLDER [CASE...]          writes them
  python from_megatron.py --check FOLDER [CASE...]  holds those in a folder against it

Needs torch, safetensors and megatron-core, from pip or by PYTHONPATH (0.19.2 wrote the
files here). Every number comes from Megatron's code, but for what `megatron_without_gpu`
puts in its place on a CPU.
"""
import json
import os
import sys
import tempfile
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from megatron_without_gpu import without_gpu

CASE_FORMAT = "moe-golden-1"
GATED = {"gated_linear_unit": True, "activation_func": "silu", "add_bias_linear": False,
         "moe_router_dtype": "fp64"}
AUX = {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.01}
QUANTILE = {"moe_router_load_balancing_type": "quantile_balancing",
            "moe_router_quantile_balancing_ema": 0.25, "moe_z_loss_coeff": 0.5}
# The layer's dtype, bf16, is the router's
OF_BF16 = {"gated_linear_unit": True, "activation_func": "silu", "add_bias_linear": False,
           "moe_token_dispatcher_type": "alltoall", "moe_router_dtype": None}


@dataclass
class Case:
    config: dict
    sizes: tuple  # S, B of a rank
    seed: int
    world: int = 1
    shows: tuple = ()  # what else is in the file: see Layer.watch
    dtype: torch.dtype = torch.float64


CASES = {
    "latent_shared": Case(
        {"hidden_size": 24, "num_moe_experts": 6, "moe_router_topk": 3,
         "moe_ffn_hidden_size": 14, "moe_latent_size": 10,
         "moe_token_dispatcher_type": "alltoall",
         "moe_shared_expert_intermediate_size": 20, "moe_shared_expert_gate": True,
         "moe_router_score_function": "sigmoid", "moe_z_loss_coeff": 0.001}
        | AUX | GATED, (13, 3), 1, shows=("source_errors",)),
    "latent_bias_drop": Case(
        {"hidden_size": 20, "num_moe_experts": 5, "moe_router_topk": 2,
         "moe_ffn_hidden_size": 11, "moe_latent_size": 9,
         "moe_token_dispatcher_type": "allgather", "moe_router_pre_softmax": True,
         "moe_expert_capacity_factor": 0.9, "moe_router_load_balancing_type": "none",
         "moe_router_dtype": "fp64", "gated_linear_unit": False,
         "activation_func": "squared_relu", "add_bias_linear": True},
        (11, 3), 1, shows=("source_errors",)),
    "quantile_balancing": Case(
        {"hidden_size": 12, "num_moe_experts": 6, "moe_router_topk": 2,
         "moe_ffn_hidden_size": 10, "moe_token_dispatcher_type": "alltoall"}
        | QUANTILE | GATED, (5, 3), 20, shows=("z_loss", "qb_beta")),
    "ranks/dp2_tp2_quantile_balancing": Case(
        {"hidden_size": 16, "num_moe_experts": 8, "moe_router_topk": 3,
         "moe_ffn_hidden_size": 12, "moe_token_dispatcher_type": "alltoall",
         "tensor_model_parallel_size": 2, "context_parallel_size": 1,
         "expert_model_parallel_size": 2, "expert_tensor_parallel_size": 1,
         "sequence_parallel": True, "moe_router_score_function": "sigmoid"}
        | QUANTILE | GATED, (2, 4), 20, world=4, shows=("z_loss", "qb_beta")),
    "ranks/tp2_ep2_etp2_latent": Case(
        {"hidden_size": 16, "num_moe_experts": 4, "moe_router_topk": 2,
         "moe_ffn_hidden_size": 12, "moe_latent_size": 6,
         "moe_token_dispatcher_type": "alltoall", "tensor_model_parallel_size": 2,
         "expert_model_parallel_size": 2, "expert_tensor_parallel_size": 2,
         "sequence_parallel": True, "moe_shared_expert_intermediate_size": 14}
        | AUX | GATED, (5, 2), 1, world=4, shows=("exchange",)),
    # Seeds by which bf16 chooses other experts than fp64 for some token
    "bf16_router": Case(
        OF_BF16 | {"hidden_size": 24, "num_moe_experts": 9, "moe_router_topk": 2,
                   "moe_ffn_hidden_size": 14} | AUX | {"moe_aux_loss_coeff": 0.02},
        (17, 3), 30, dtype=torch.bfloat16),
    "bf16_router_sigmoid_drop": Case(
        OF_BF16 | {"hidden_size": 20, "num_moe_experts": 12, "moe_router_topk": 3,
                   "moe_ffn_hidden_size": 10, "moe_router_score_function": "sigmoid",
                   "moe_router_num_groups": 4, "moe_router_group_topk": 2,
                   "moe_router_topk_scaling_factor": 2.5,
                   "moe_router_enable_expert_bias": True,
                   "moe_expert_capacity_factor": 1.0,
                   "moe_router_load_balancing_type": "seq_aux_loss",
                   "moe_aux_loss_coeff": 0.01},
        (14, 3), 76, dtype=torch.bfloat16),
    "bf16_router_pre_softmax_bias": Case(
        OF_BF16 | {"add_bias_linear": True, "gated_linear_unit": False,
                   "activation_func": "gelu", "hidden_size": 16, "num_moe_experts": 7,
                   "moe_router_topk": 3, "moe_ffn_hidden_size": 12,
                   "moe_router_pre_softmax": True,
                   "moe_router_load_balancing_type": "none"},
        (13, 3), 16, dtype=torch.bfloat16),
}


# ---------------------------------------------------------------------- weights, inputs
def shapes_of(c):
    """Of the whole layer's weights, by name, in the order in which they are drawn."""
    H, E, width = c["hidden_size"], c["num_moe_experts"], c["moe_ffn_hidden_size"]
    latent = c.get("moe_latent_size", H)
    fc1 = width * (2 if c["gated_linear_unit"] else 1)
    shapes = {"router.weight": (E, H)}
    if c["moe_router_load_balancing_type"] == "quantile_balancing":
        shapes["router.qb_beta"] = (E,)
    if latent != H:
        shapes["fc1_latent_proj.weight"] = (latent, H)
        shapes["fc2_latent_proj.weight"] = (H, latent)
    shapes["experts.linear_fc1.weight"] = (E, fc1, latent)
    shapes["experts.linear_fc2.weight"] = (E, latent, width)
    if c["add_bias_linear"]:
        shapes["router.bias"] = (E,)
        if latent != H:
            shapes |= {"fc1_latent_proj.bias": (latent,), "fc2_latent_proj.bias": (H,)}
        shapes |= {"experts.linear_fc1.bias": (E, fc1),
                   "experts.linear_fc2.bias": (E, latent)}
    if shared := c.get("moe_shared_expert_intermediate_size"):
        shapes["shared_experts.linear_fc1.weight"] = (2 * shared, H)
        shapes["shared_experts.linear_fc2.weight"] = (H, shared)
        if c.get("moe_shared_expert_gate"):
            shapes["shared_experts.gate_weight"] = (1, H)
    if c.get("moe_router_enable_expert_bias"):
        shapes["router.expert_bias"] = (E,)
    return shapes


def draw_case(case):
    """The weights, and (hidden states, gradient of the output) of every rank; bf16 holds
    all of them exactly."""
    generator = torch.Generator().manual_seed(case.seed)

    def draw(shape, deviation):
        return (torch.randn(shape, generator=generator) * deviation).bfloat16().float()

    def deviation(name, shape):
        if name.endswith("qb_beta"):
            return 0.4
        return 0.1 if name.endswith("bias") else shape[-1] ** -0.5

    weights = {n: draw(s, deviation(n, s)) for n, s in shapes_of(case.config).items()}
    shape = (*case.sizes, case.config["hidden_size"])
    inputs = [(draw(shape, 1.0), draw(shape, 1.0)) for _ in range(case.world)]
    require_no_ties(case, weights, inputs)
    return weights, inputs


def require_no_ties(case, weights, inputs):
    """Of two keys that rounding may swap each precision would choose another expert.
    That is what a case in bf16 is for."""
    if case.dtype == torch.bfloat16:
        return
    tokens = torch.cat([x.flatten(0, 1) for x, _ in inputs]).double()
    keys = tokens @ weights["router.weight"].double().T
    keys = keys + weights.get("router.bias", 0.0) - weights.get("router.qb_beta", 0.0)
    best = keys.sort(descending=True).values
    k = case.config["moe_router_topk"]
    assert (best[:, k - 1] - best[:, k]).min() > 1e-3, "take another seed"


# -------------------------------------------------------------------- Megatron's layer
class Layer:
    """Megatron's layer on this rank, with its share of the weights."""

    def __init__(self, case, dtype, router_dtype="fp64"):
        from megatron.core import parallel_state as groups
        from megatron.core.activations import squared_relu
        from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
        from megatron.core.transformer.transformer_config import TransformerConfig
        self.case, self.dtype, self.groups = case, dtype, groups
        c = dict(case.config)
        c["activation_func"] = {"silu": F.silu, "gelu": F.gelu,
                                "squared_relu": squared_relu}[c["activation_func"]]
        c["moe_router_dtype"] = router_dtype
        self.config = TransformerConfig(
            num_layers=1, num_attention_heads=2, kv_channels=8,
            use_cpu_initialization=True, perform_initialization=False,
            params_dtype=dtype, bf16=dtype == torch.bfloat16,
            bias_activation_fusion=False, gradient_accumulation_fusion=False, **c)
        spec = get_moe_module_spec(use_te=False, num_experts=c["num_moe_experts"],
                                   moe_grouped_gemm=False)
        self.layer = spec(config=self.config).to(dtype)
        self.layer.set_layer_number(1)
        self.layer.train()
        ep_size = groups.get_expert_model_parallel_world_size()
        self.num_local = c["num_moe_experts"] // ep_size

    def load(self, weights):
        for name, parameter in self.layer.named_parameters():
            part = self.part_of(weights, name)
            assert part.shape == parameter.shape, (name, part.shape, parameter.shape)
            parameter.data = part.to(parameter.dtype).contiguous()
        if (bias := weights.get("router.expert_bias")) is not None:
            self.layer.router.expert_bias = bias.clone()
        if (beta := weights.get("router.qb_beta")) is not None:
            router = self.layer.router
            router.qb_beta, router.qb_beta_accum = beta.clone(), torch.zeros_like(beta)

    def part_of(self, weights, name):
        """This rank's rows, or columns, of a weight: of gates, and then of ups."""
        if "local_experts" in name:
            expert, rest = name.removeprefix("experts.local_experts.").split(".", 1)
            first = self.groups.get_expert_model_parallel_rank() * self.num_local
            whole = weights["experts." + rest][first + int(expert)]
            rank = self.groups.get_expert_tensor_parallel_rank()
            shards = self.groups.get_expert_tensor_parallel_world_size()
        else:
            whole = weights[name]
            rank = self.groups.get_tensor_model_parallel_rank()
            shards = self.groups.get_tensor_model_parallel_world_size()
            if "linear_fc" not in name:
                return whole
        if shards == 1:
            return whole
        if "fc2" in name:
            return whole.chunk(shards, -1)[rank]
        halves = whole.chunk(2) if self.case.config["gated_linear_unit"] else [whole]
        return torch.cat([half.chunk(shards)[rank] for half in halves])

    def watch(self, seen):
        """Puts what the layer computes on its way into `seen`."""
        from megatron.core.transformer.moe import router as router_module
        layer, E = self.layer, self.case.config["num_moe_experts"]

        def after(owner, name, look):
            method = getattr(owner, name)

            def watched(*given, **more):
                result = method(*given, **more)
                look(given, result)
                return result
            setattr(owner, name, watched)

        def routed(_, result):
            seen["probs"], seen["routing_map"] = result[0], result[1].to(torch.uint8)

        def computed(given, result):
            seen["dispatched_hidden_states"], _, seen["dispatched_probs"] = given[:3]
            seen["tokens_per_expert"] = given[1].long()
            seen["expert_output"] = result[0]

        def exchanged(given, result):
            seen["sent_hidden_states"] = given[0]
            seen["received_hidden_states"] = result[0]

        after(layer.router, "gating", lambda _, y: seen.update(logits=y.reshape(-1, E)))
        after(layer.router, "routing", routed)
        after(layer.experts, "forward", computed)
        if "exchange" in self.case.shows:
            after(layer.token_dispatcher, "token_dispatch", exchanged)
        if "z_loss" in self.case.shows:  # before its coefficient, given[1]
            after(router_module, "z_loss_func", lambda given, loss: seen.update(
                {"loss.z_loss": (loss / given[1]).double()}))

    def run(self, weights, hidden, doutput):
        """@return by name, without "expect.": fp64, but for counts and maps"""
        self.load(weights)
        seen = {}
        self.watch(seen)
        x = hidden.to(self.dtype, copy=True).requires_grad_(True)
        output, bias = self.layer(x)
        assert bias is None
        (output * doutput.to(self.dtype)).sum().backward()
        seen["output"], seen["grad.hidden_states"] = output, x.grad
        parameters = dict(self.layer.named_parameters())
        for name in shapes_of(self.case.config):
            if name.startswith("experts."):
                rest = name.removeprefix("experts.")
                seen["grad." + name] = torch.stack(
                    [parameters[f"experts.local_experts.{e}.{rest}"].grad
                     for e in range(self.num_local)])
            elif name in parameters:
                seen["grad." + name] = parameters[name].grad
        if "qb_beta" in self.case.shows:
            seen["qb_beta_updated"] = self.updated_beta()
        return {name: (v.double() if v.is_floating_point() else v).detach().clone()
                for name, v in seen.items()}

    def updated_beta(self):
        from megatron.core.distributed import finalize_model_grads
        update = sys.modules[finalize_model_grads.__module__]._update_router_qb_beta
        update([self.layer], self.config, dp_cp_group=self.groups.get_data_parallel_group(
            with_context_parallel=True))
        return self.layer.router.qb_beta


# ------------------------------------------------------------------------------- files
def source_errors(case, weights, inputs, expected):
    """What Megatron's own layer loses in fp32 and bf16, to three digits."""
    errors = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        got = Layer(case, dtype, "fp32").run(weights, *inputs)
        assert torch.equal(got["routing_map"], expected["routing_map"]), name
        errors[name] = {
            "expect." + key: float(f"{((got[key] - v).norm() / v.norm()).item():.3g}")
            for key, v in sorted(expected.items())
            if key == "output" or key.startswith("grad.")}
    return errors


def run_rank(rank, name, meeting, path):
    """One rank of a case; rank 0 writes the file."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    case = CASES[name]
    without_gpu()
    from megatron.core import parallel_state as groups
    dist.init_process_group("gloo", init_method="file://" + meeting, rank=rank,
                            world_size=case.world)
    groups.initialize_model_parallel(
        create_gloo_process_groups=False,
        **{k: v for k, v in case.config.items() if k.endswith("_parallel_size")})
    weights, inputs = draw_case(case)
    router_dtype = case.config["moe_router_dtype"]
    got = Layer(case, case.dtype, router_dtype).run(weights, *inputs[rank])
    everybody = [None] * case.world
    dist.all_gather_object(everybody, got)
    if rank == 0:
        write(path, name, weights, inputs, everybody)
    dist.barrier()
    dist.destroy_process_group()


def write(path, name, weights, inputs, everybody):
    case, one = CASES[name], CASES[name].world == 1
    tensors = dict(weights)
    for r, (got, (hidden, doutput)) in enumerate(zip(everybody, inputs)):
        of_rank = {"expect." + key: value for key, value in got.items()}
        of_rank |= {"input.hidden_states": hidden, "input.grad_output": doutput}
        tensors |= {("" if one else f"rank.{r}.") + key: value.contiguous()
                    for key, value in of_rank.items()}
    name_of_dtype = "fp64"
    if case.dtype == torch.bfloat16:
        name_of_dtype = "bf16 throughout"
        tensors = {key: value.bfloat16() if value.is_floating_point() else value
                   for key, value in tensors.items()}
    source = f"Megatron-Core 0.19.2 MoELayer, CPU, {name_of_dtype}, " + (
        "one rank" if one else "gloo ranks")
    if "moe_latent_size" in case.config:
        source += "; latent projections by torch.nn.functional.linear"
    metadata = {"format": CASE_FORMAT, "case": name.split("/")[-1], "source": source,
                "moe_config": json.dumps(case.config)}
    if case.dtype == torch.bfloat16:
        metadata["source_dtype"] = "bf16"
        metadata["source"] += "; ties go to the lower expert"
    if not one:
        metadata["world_size"] = str(case.world)
    if "source_errors" in case.shows:
        metadata["source_errors"] = json.dumps(
            source_errors(case, weights, inputs[0], everybody[0]))
    save_file(tensors, path, metadata=metadata)


def make(name, path):
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(run_rank, (name, folder + "/meeting", path),
                                    CASES[name].world)


def differences(ours, theirs):
    """What two files differ in, to the last bit; the order of their tensors is none."""
    with safe_open(ours, "pt") as a, safe_open(theirs, "pt") as b:
        for field in ("moe_config", "source_errors", "world_size", "source_dtype"):
            texts = [f.metadata().get(field, "null") for f in (a, b)]
            if field != "source_dtype":
                texts = [json.loads(text) for text in texts]
            if texts[0] != texts[1]:
                yield f"{field}: {texts[0]} is not {texts[1]}"
    a, b = load_file(ours), load_file(theirs)
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b:
            yield f"{name}: only in {theirs if name in b else ours}"
        elif a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name]):
            worst = (a[name].double() - b[name].double()).norm() / b[name].double().norm()
            yield f"{name}: relative difference {worst:.1e}"


def refuse(line):
    print(line, file=sys.stderr)
    sys.exit(2)


def main(arguments):
    checks = arguments[:1] == ["--check"]
    if len(arguments) == checks:
        refuse(__doc__)
    folder, *names = arguments[checks:]
    for name in names:
        if name not in CASES:
            refuse(f"case = {name}: known are {', '.join(CASES)}")
    ok = True
    for name in names or CASES:
        path = f"{folder}/{name}.safetensors"
        if checks and not os.path.exists(path):
            refuse(f"file = {path}: must be there, to be checked")
        with tempfile.TemporaryDirectory() as made:
            if not checks:
                os.makedirs(os.path.dirname(path), exist_ok=True)
            ours = made + "/case.safetensors" if checks else path
            make(name, ours)
            found = list(differences(ours, path)) if checks else []
        ok = ok and not found
        print(name, "differs: " + "; ".join(found) if found else
              "the same bits" if checks else "written")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
