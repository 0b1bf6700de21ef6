"""A call of Megatron-Core's MoELayer, as a golden case.

Names, layouts and config are Megatron's own, so nothing is looked up. Many ranks whose
layer is cut between them (tensor or expert parallel) make one file together, which rank 0
writes; ranks that each have a whole layer make a file each.
"""
import contextlib
import json
import re

import numpy as np
import torch

from .blocks import number_of
from .calls import SHORT, Written
from .copies import changed_by_rounding, copy_module, require_finite, rounded, to_numpy
from .errors import counted, reject
from .golden import narrowest, tokens_that_fit, write_golden

BUFFERS = ("router.expert_bias", "router.qb_beta")
EXPERT = re.compile(r"experts\.local_experts\.(\d+)\.(linear_fc[12]\.(?:weight|bias))"
                    r"|experts\.(linear_fc[12]\.(?:weight|bias))(\d+)")
PLAIN = re.compile(r"router\.(weight|bias)|fc[12]_latent_proj\.(weight|bias)"
                   r"|shared_experts\.(linear_fc[12]\.weight|gate_weight)")
# How the layer is computed, which changes no value
HOW = ("moe_grouped_gemm", "moe_permute_fusion", "moe_router_fusion", "moe_enable_deepep",
       "moe_flex_dispatcher_backend", "recompute_granularity", "recompute_modules",
       "overlap_dispatch_backward_with_experts_wgrad", "fp8_recipe",
       "moe_router_padding_for_fp8", "moe_router_padding_for_quantization",
       "moe_expert_rank_capacity_factor", "moe_shared_expert_overlap",
       "moe_router_bias_update_rate")
PARALLEL = ("tensor_model_parallel_size", "context_parallel_size",
            "expert_model_parallel_size", "expert_tensor_parallel_size",
            "sequence_parallel")
# Fields of Megatron's that change values, and what they must be
REFUSED = {"moe_router_topk_limited_devices": None, "moe_token_dropping": False,
           "moe_router_force_load_balancing": False, "moe_router_force_biased": None,
           "moe_input_jitter_eps": None, "moe_enable_routing_replay": False,
           "fp8": None, "fp4": None}


def name_of_activation(function):
    import torch.nn.functional as F
    from megatron.core import activations
    names = {F.silu: "silu", F.gelu: "gelu", activations.squared_relu: "squared_relu",
             getattr(activations, "quick_gelu", None): "quick_gelu"}
    if function not in names:
        reject("activation_func", getattr(function, "__name__", function),
               "the layer has " + ", ".join(names.values()))
    return names[function]


def read_config(config, ranks):
    """TransformerConfig's fields that this layer has, as a dict."""
    import moe
    for name, off in REFUSED.items():
        if getattr(config, name, off) not in (off, False, None):
            reject(name, getattr(config, name), "cannot be captured: values would be "
                   "random, or this layer lacks it")
    words = {}
    for name in moe.MoEConfig("mixtral_8x7b").to_dict():
        value = getattr(config, name, None)
        skip = name in HOW or (ranks == 1 and name in PARALLEL)
        if value is not None and not skip:
            words[name] = value
    words["activation_func"] = name_of_activation(config.activation_func)
    return words


def gathered(named, where):
    """{Megatron's name: tensor}, with a rank's experts in one tensor each, (L, …)."""
    whole, experts = {}, {}
    for name, value in named:
        found = EXPERT.fullmatch(name)
        if found:
            expert, rest = found[1] or found[4], found[2] or found[3]
            experts.setdefault("experts." + rest, {})[int(expert)] = value
        elif PLAIN.fullmatch(name) or name in BUFFERS:
            whole[name] = value
        else:
            reject(where, name, "a parameter that this layer does not have")
    for name, parts in experts.items():
        whole[name] = torch.stack([parts[e] for e in sorted(parts)])
    return whole


def weights_of(layer, where):
    named = list(layer.named_parameters())
    buffers = dict(layer.named_buffers())
    named += [(name, buffers[name]) for name in BUFFERS if name in buffers]
    return gathered([(name, p.detach()) for name, p in named], where)


class Run:
    """A copy of the layer in one precision, where the layer is."""

    def __init__(self, layer, dtype, rounds):
        as_it_is = dtype == torch.bfloat16
        copy = copy_module(layer, None if as_it_is else dtype, rounds, device=None)
        self.copy, config = copy, copy.config
        if not as_it_is:
            config.params_dtype, config.bf16, config.fp16 = dtype, False, False
            wide = dtype == torch.float64
            config.moe_router_dtype = "fp64" if wide else config.moe_router_dtype
        for name in ("bias_activation_fusion", "gradient_accumulation_fusion",
                     "moe_router_fusion", "moe_permute_fusion"):
            setattr(config, name, False)
        for part in copy.modules():
            for name in ("gradient_accumulation_fusion", "moe_layer_recompute",
                         "shared_experts_recompute"):
                if getattr(part, name, False):
                    setattr(part, name, False)
        if hasattr(copy.router, "reset_global_aux_loss_tracker"):
            copy.router.reset_global_aux_loss_tracker()
        self.seen = {}
        self._after("gating", lambda y: {"logits": y})
        self._after("routing", lambda y: {"probs": y[0], "routing_map": y[1]})

    def _after(self, name, look):
        method = getattr(self.copy.router, name)

        def watched(*given, **named):
            result = method(*given, **named)
            self.seen.update(look(result))
            return result
        setattr(self.copy.router, name, watched)

    def __call__(self, hidden, more, named, grad_output):
        """@return name -> tensor, without "expect." """
        hidden = hidden.detach().clone().requires_grad_(grad_output is not None)
        with torch.set_grad_enabled(grad_output is not None), _loss_scale_of_one():
            output = self.copy(hidden, *more, **named)
            output = output[0] if isinstance(output, tuple) else output
            experts = self.copy.config.num_moe_experts
            seen = {name: value.detach().reshape(-1, experts)
                    for name, value in self.seen.items()}
            seen["output"] = output.detach()
            if grad_output is None:
                return seen
            trained = dict(self.copy.named_parameters())
            grads = torch.autograd.grad(output, [hidden, *trained.values()], grad_output,
                                        allow_unused=True)
        seen["grad.hidden_states"] = grads[0]
        pairs = [(name, torch.zeros_like(p) if g is None else g)
                 for (name, p), g in zip(trained.items(), grads[1:])]
        seen.update(("grad." + name, g) for name, g in gathered(pairs, "layer").items())
        return seen


@contextlib.contextmanager
def _loss_scale_of_one():
    """Of the losses that the router attaches: as in a golden case."""
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler as Scaler
    before, Scaler.main_loss_backward_scale = Scaler.main_loss_backward_scale, None
    try:
        yield
    finally:
        Scaler.main_loss_backward_scale = before


# ------------------------------------------------------------------------------- ranks
def joined(name, shards, gated):
    """A weight of the whole layer. @param shards  [ep][etp or tp] -> array"""
    expert = name.startswith("experts.")

    def join(parts):
        axis = 1 if expert else 0
        if "linear_fc1" in name:
            halves = [np.split(p, 2, axis) if gated else [p] for p in parts]
            return np.concatenate([np.concatenate(half, axis) for half in zip(*halves)],
                                  axis)
        if name.endswith("linear_fc2.weight"):
            return np.concatenate(parts, -1)
        return parts[0]
    return np.concatenate([join(parts) for parts in shards]) if expert \
        else join(shards[0])


def whole_layer(ranks, gated):
    """@param ranks  [{"place": (ep, etp, tp), "weights": …}] of all ranks"""
    whole = {}
    for name in ranks[0]["weights"]:
        by_place = {}
        for rank in ranks:
            ep, etp, tp = rank["place"]
            at = (ep, etp) if name.startswith("experts.") else (0, tp)
            by_place.setdefault(at, rank["weights"][name])
        rows = sorted({at[0] for at in by_place})
        whole[name] = joined(name, [[by_place[at] for at in sorted(by_place)
                                     if at[0] == row] for row in rows], gated)
    return whole


def place():
    """(ep, etp, tp) of this rank."""
    from megatron.core import parallel_state as groups
    return (groups.get_expert_model_parallel_rank(),
            groups.get_expert_tensor_parallel_rank(),
            groups.get_tensor_model_parallel_rank())


def is_cut(config):
    """Whether ranks have parts of one layer, or a loss over the tokens of all."""
    kinds = config.moe_router_load_balancing_type
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "global_aux_loss" in kinds or "quantile_balancing" in kinds:
        dist = torch.distributed
        return dist.is_initialized() and dist.get_world_size() > 1
    return max(config.tensor_model_parallel_size, config.expert_model_parallel_size,
               getattr(config, "expert_tensor_parallel_size", 1) or 1,
               config.context_parallel_size) > 1


# -------------------------------------------------------------------------------- file
class Case:
    def __init__(self, name, whole, call, options):
        self.layer, self.call, self.options = whole.block, call, options
        self.where = f"layer {number_of(name)}"
        self.notes = []
        dist = torch.distributed
        cut = is_cut(self.layer.config)
        self.ranks = dist.get_world_size() if cut else 1
        self.rank = dist.get_rank() if cut else 0
        self.config = read_config(self.layer.config, self.ranks)
        if self.ranks > 1 and self.layer.config.pipeline_model_parallel_size > 1:
            reject("pipeline_model_parallel_size",
                   self.layer.config.pipeline_model_parallel_size,
                   "must be 1 where ranks have parts of one layer")
        if options.dtype == torch.float64 and any(
                type(part).__module__.startswith("transformer_engine")
                for part in self.layer.modules()):
            reject("dtype", "float64", "Transformer Engine has no fp64; allowed are "
                   "float32, bfloat16")
        self.rounds = not options.exact and (
            changed_by_rounding(self.layer) or call.hidden.dtype != torch.bfloat16)
        if self.rounds:
            self.notes.append(f"inputs and weights of {SHORT[call.hidden.dtype]} are "
                              "rounded to bf16, from which every tier can start")

    def cut(self, rows):
        """Hidden states, other arguments and the gradient of the first rows of S."""
        def given(value):
            value = value[:rows]
            return (rounded(value) if self.rounds else value).to(self.options.dtype)
        named = dict(self.call.named)
        mask = named.get("padding_mask")
        if mask is not None:
            named["padding_mask"] = mask[:, :rows]
        gradient = self.call.grad_output
        return (given(self.call.hidden), self.call.more, named,
                None if gradient is None else given(gradient))

    def rows_that_fit(self, weights):
        """Of S, on every rank: what all ranks' tokens and the weights leave room for."""
        S, B, H = self.call.hidden.shape
        backward = self.call.grad_output is not None
        fixed = 8192 + self.ranks * sum(
            (2 if narrowest(v).nbytes < 4 * v.size else 4) * v.size
            + 4 * backward * v.size for v in weights.values())
        each = self.ranks * B * ((12 + 12 * backward) * H
                                 + 17 * self.config["num_moe_experts"] + 8)
        limit = self.options.max_tokens
        rows = S if limit == 0 else min(S, max(1, limit // B))
        fit = tokens_that_fit(self.options.max_bytes, fixed, each, rows, self.where)
        if fit < S:
            self.notes.append(f"the first {fit} of {S} rows of the sequence")
        return fit

    def weights(self):
        found = weights_of(self.layer, self.where)
        return {name: to_numpy((rounded(value) if self.rounds else value).float())
                for name, value in found.items()}

    def run(self):
        """This rank's tensors, as in the file but for "rank.<r>.", and its values."""
        weights = self.weights()
        rows, call = self.rows_that_fit(weights), self.call
        require_finite(
            self.where, hidden_states=call.hidden[:rows], output=call.output[:rows],
            grad_output=None if call.grad_output is None else call.grad_output[:rows])
        hidden, more, named, gradient = self.cut(rows)
        values = Run(self.layer, self.options.dtype, self.rounds)(
            hidden, more, named, gradient)
        if self.config.get("moe_pad_expert_input_to_capacity"):
            values.pop("routing_map")  # which token fills a slot has no meaning
            values.pop("probs")
        tensors = {"input.hidden_states": narrowest(to_numpy(hidden))}
        if gradient is not None:
            tensors["input.grad_output"] = narrowest(to_numpy(gradient))
        if named.get("padding_mask") is not None:
            tensors["input.padding_mask"] = to_numpy(
                named["padding_mask"].to(torch.uint8))
        for name, value in values.items():
            if name == "routing_map":
                array = to_numpy(value.to(torch.uint8))
            else:
                array = to_numpy(value.double())
                if name.startswith("grad.") and name != "grad.hidden_states":
                    array = array.astype(np.float32)
            tensors["expect." + name] = array
        return weights, tensors, values

    def source_errors(self, values):
        """What fp32 and bf16 cost Megatron's own layer, with a router in fp32."""
        rows = values["output"].shape[0]
        hidden, more, named, gradient = self.cut(rows)
        errors = {}
        for dtype in (torch.float32, torch.bfloat16):
            if self.options.exact and dtype == torch.bfloat16:
                continue
            run = Run(self.layer, torch.float32, self.rounds)
            run.copy.to(dtype)
            run.copy.config.params_dtype = dtype
            run.copy.config.moe_router_dtype = "fp32"
            got = run(hidden.to(dtype), more, named,
                      None if gradient is None else gradient.to(dtype))
            name = SHORT[dtype]
            if not torch.equal(got["routing_map"], values["routing_map"]):
                self.notes.append(f"its own errors in {name} are left out: it chose "
                                  "other experts")
                continue
            errors[name] = {}
            for key, wanted in values.items():
                norm = wanted.double().norm()
                if (key == "output" or key.startswith("grad.")) and norm > 0:
                    off = (got[key].double() - wanted.double()).norm() / norm
                    errors[name]["expect." + key] = float(f"{float(off):.3g}")
        return errors

    def write(self, path):
        dist = torch.distributed
        weights, tensors, values = self.run()
        more = {"source_errors": None, "source_dtype": None, "world_size": None}
        if self.options.dtype == torch.float64:
            self.config["moe_router_dtype"] = "fp64"
            if self.ranks == 1 and self.options.source_errors:
                more["source_errors"] = self.source_errors(values)
        else:
            more["source_dtype"] = SHORT[self.options.dtype]
        if not self.layer.training:
            more["training"] = "false"
        tokens = values["output"].shape[0] * values["output"].shape[1]
        if self.ranks > 1:
            mine = {"place": place(), "weights": weights, "tensors": tensors}
            all_ranks = [None] * self.ranks if self.rank == 0 else None
            dist.gather_object(mine, all_ranks)
            if self.rank != 0:
                return None
            weights = whole_layer(all_ranks, self.config.get("gated_linear_unit"))
            tensors = {f"rank.{r}.{name}": value for r, one in enumerate(all_ranks)
                       for name, value in one["tensors"].items()}
            more["world_size"] = str(self.ranks)
        tensors.update((name, narrowest(value)) for name, value in weights.items())
        import megatron.core
        source = (f"Megatron-Core {megatron.core.__version__} "
                  f"{type(self.layer).__name__}, {self.call.hidden.device.type}, "
                  f"{SHORT[self.options.dtype]}, {counted(self.ranks, 'rank')}")
        json.dumps(self.config)  # says which field is no plain value
        size = write_golden(path, tensors, self.config, f"megatron_{self.where}".replace(
            " ", "_"), source, self.options.max_bytes, **more)
        if self.call.calls > 1:
            self.notes.append(f"the first of {self.call.calls} calls")
        return Written(path, self.where, tokens, size, self.notes)


def write_case(name, whole, call, options, path):
    """Writes a call of a layer as a golden file.

    @return Written; None on ranks whose part went into rank 0's file. CaptureError.
    """
    if is_cut(whole.block.config):
        path = re.sub(r"\.rank_\d+\.safetensors$", ".safetensors", path)
    return Case(name, whole, call, options).write(path)
