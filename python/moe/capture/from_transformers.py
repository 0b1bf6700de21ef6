"""A call of a transformers model's MoE block, as a golden case.

The expected values are those of a copy of the block on the CPU, by default in fp64, which
gets what the model's own got: so they are of the model's own code, and what the model
loses in its own precision is known apart from them.
"""
import numpy as np
import torch

from . import layout
from .blocks import number_of
from .calls import SHORT, Tokens, Written
from .copies import changed_by_rounding, copy_module, require_finite, rounded, to_numpy
from .errors import CaptureError, counted, reject
from .golden import narrowest, tokens_that_fit, write_golden
from .runs import Runner

# How far a block's second run may be from its first, for the median token
SAME = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2,
        torch.float16: 2e-3}


class Case:
    """A block's call on its way into a file."""

    def __init__(self, model, name, whole, call, options):
        self.name, self.whole, self.call, self.options = name, whole, call, options
        self.number = number_of(name)
        self.where = f"layer {self.number} ({name})" if name else "block"
        self.model, self.tokens = model, Tokens(call)
        self.notes = []
        if options.max_bytes < 1:
            reject("max_bytes", options.max_bytes, "must be positive")
        self.config_json = model.config.to_json_string(use_diff=False)

    def own_dtype(self):
        return self.call.hidden.dtype

    def prepare(self):
        """The copy that is judged by, and the layer in our words."""
        options = self.options
        self.rounds = not options.exact and (
            changed_by_rounding(self.whole) or self.own_dtype() != torch.bfloat16)
        as_it_is = options.dtype == self.own_dtype() == torch.bfloat16
        copy = copy_module(self.whole, None if as_it_is else options.dtype, self.rounds)
        self.run = Runner(copy, self.tokens)
        self.arrays = {name: narrow(to_numpy(value)) for name, value in copy.tensors()}
        self.layer = layout.read_layer(self.config_json, self.arrays, self.number)
        self.config = own_words(self.layer.config, options.dtype)
        for note in self.layer.notes:
            self.notes.append(note)
        if self.rounds:
            self.notes.append(f"inputs and weights of {SHORT[self.own_dtype()]} are "
                              "rounded to bf16, from which every tier can start")

    def choose_tokens(self):
        """@return indices of the tokens that are kept"""
        tokens, options = self.tokens, self.options
        stored = {name: narrowest(value) for name, value in self.layer.parameters.items()}
        self.stored = stored
        backward = self.call.grad_output is not None
        fixed = 8192 + sum(value.nbytes for value in stored.values())
        if backward:
            fixed += sum(4 * value.size for name, value in self.layer.parameters.items()
                         if name not in layout.BUFFERS)
        H, E = tokens.width, self.config["num_moe_experts"]
        each = (12 + 12 * backward) * H + 17 * E + 8
        count = tokens.count if options.max_tokens == 0 else min(options.max_tokens,
                                                                 tokens.count)
        fit = tokens_that_fit(options.max_bytes, fixed, each, count, self.where)
        if fit < tokens.count:
            self.notes.append(f"the first {counted(fit, 'token')} of {tokens.count:,}")
        ids = torch.arange(fit)
        require_finite(
            self.where, hidden_states=tokens.hidden(ids),
            output=tokens.of(self.call.output, ids),
            grad_output=tokens.of(self.call.grad_output, ids) if backward else None)
        look = self.run.ties if options.dtype == torch.bfloat16 else self.run.undecided
        undecided = look(ids, self.input(ids))
        if undecided.any():
            ids = ids[~undecided]
            self.notes.append(
                f"{counted(int(undecided.sum()), 'token')} left out, whose experts hang "
                "on rounding")
        if len(ids) == 0:
            reject(self.where, "no token left", "the experts of every token hang on "
                   "rounding; is the router all zeros?")
        return ids

    def input(self, ids):
        hidden = self.tokens.hidden(ids).cpu()
        return (rounded(hidden) if self.rounds else hidden).to(self.options.dtype)

    def grad_output(self, ids):
        gradient = self.tokens.of(self.call.grad_output, ids).cpu()
        return (rounded(gradient) if self.rounds else gradient).to(self.options.dtype)

    def require_the_same(self, ids):
        """The block, run again on what it got, gives what it gave."""
        device = self.call.hidden.device
        more, named = self.tokens.arguments(ids.to(device), device)
        with torch.no_grad():
            hidden = self.tokens.hidden(ids.to(device)).clone()
            again = self.whole(self.tokens.shaped(hidden), *more, **named)
        again = again.reshape(len(ids), -1).double()
        first = self.tokens.of(self.call.output, ids.to(device)).double()
        off = ((again - first).norm(dim=1) / first.norm(dim=1).clamp_min(1e-300)).median()
        if not off <= SAME[self.own_dtype()]:
            reject(self.where, f"{float(off):.1e} from itself", "a second run on the "
                   "same tokens gives other values: the block has dropout, jitter, or "
                   "depends on more than its input, or its weights have changed between "
                   "its run and the end of the `with`")

    def expectations(self, ids, values):
        """name -> numpy array, what the file expects."""
        T, E = len(ids), self.config["num_moe_experts"]
        expect = {"output": values.output.reshape(T, 1, -1)}
        mapped, probs = values.watch.map_and_probs(T, E, self.config["moe_router_topk"])
        if mapped is not None:
            factor = self.run.factor_after_experts(ids, self.input(ids), values,
                                                   1e3 * SAME[self.options.dtype])
            expect["routing_map"] = mapped
            if factor is not None:
                expect["probs"] = probs * factor
        weight = self.layer.parameters["router.weight"].astype(np.float64)
        logits = self.input(ids).double() @ torch.from_numpy(weight).T
        if "router.bias" in self.layer.parameters:
            bias = self.layer.parameters["router.bias"].astype(np.float64)
            logits = logits + torch.from_numpy(bias)
        logits = values.watch.logits(logits)
        if logits is not None:
            expect["logits"] = logits
        if values.grad_hidden is not None:
            expect["grad.hidden_states"] = values.grad_hidden.reshape(T, 1, -1)
        found = {"expect." + name: to_numpy(value) if value.dtype == torch.uint8
                 else value.detach().double().cpu().numpy()
                 for name, value in expect.items()}
        if values.grad_hidden is not None:
            for name, value in self.our_gradients(values).items():
                found["expect.grad." + name] = value.astype(np.float32)
        return found

    def our_gradients(self, values):
        gradients = {name: to_numpy(g) for name, g in values.gradients.items()}
        return layout.read_gradients(self.config_json, self.arrays, gradients,
                                     self.number)

    def errors_of_lower_precision(self, ids, values, expected):
        """{"fp32": {tensor: relative error}, "bf16": …}, with the same experts."""
        errors, backward = {}, self.call.grad_output is not None
        for dtype in (torch.float32, torch.bfloat16):
            if self.options.exact and dtype == torch.bfloat16:
                continue  # its weights would be others
            self.run.convert(dtype, router_in_fp32=dtype == torch.bfloat16)
            gradient = self.grad_output(ids).to(dtype) if backward else None
            name = SHORT[dtype]
            try:
                got = self.run(ids, self.input(ids).to(dtype), gradient)
            except RuntimeError:
                self.notes.append(f"its own errors in {name} are not known: the block "
                                  "does not run with a router in fp32")
                continue
            if not same_experts(got.watch, values.watch):
                self.notes.append(f"its own errors in {name} are left out: it chose "
                                  "other experts")
                continue
            tensors = {"expect.output": got.output.reshape(len(ids), 1, -1)}
            if backward:
                tensors["expect.grad.hidden_states"] = got.grad_hidden
                for key, value in self.our_gradients(got).items():
                    tensors["expect.grad." + key] = torch.tensor(value)
            errors[name] = {}
            for key, value in tensors.items():
                wanted = torch.from_numpy(expected[key]).double()
                off = (value.double().reshape(wanted.shape) - wanted).norm()
                if wanted.norm() > 0:
                    errors[name][key] = float(f"{float(off / wanted.norm()):.3g}")
        return errors

    def own_run_in_words(self, ids, values):
        """How far the model's own run was, in its precision."""
        if self.rounds or self.own_dtype() == self.options.dtype:
            return
        first = self.tokens.of(self.call.output, ids).double().cpu()
        wanted = values.output.double()
        off = float((first - wanted).norm() / wanted.norm())
        text = f"the model's own output, in {SHORT[self.own_dtype()]}, is {off:.1e} away"
        experts = values.watch.experts()
        if self.call.chosen is not None and experts is not None:
            mine = self.call.chosen.reshape(self.tokens.count, -1)[ids].cpu()
            other = int((mine.sort(1).values != experts).any(1).sum())
            text += f"; it chose other experts for {counted(other, 'token')}"
        self.notes.append(text)

    def write(self, path, source):
        """@return Written"""
        self.prepare()
        ids = self.choose_tokens()
        self.require_the_same(ids)
        hidden, T = self.input(ids), len(ids)
        backward = self.call.grad_output is not None
        gradient = self.grad_output(ids) if backward else None
        values = self.run(ids, hidden, gradient)
        expected = self.expectations(ids, values)
        self.own_run_in_words(ids, values)
        tensors = dict(self.stored)
        tensors["input.hidden_states"] = narrowest(to_numpy(hidden.reshape(T, 1, -1)))
        if backward:
            tensors["input.grad_output"] = narrowest(to_numpy(gradient.reshape(T, 1, -1)))
        if self.config.get("moe_router_hash_vocab_size"):
            ids_of_tokens = self.tokens.token_ids(ids)
            if ids_of_tokens is None:
                reject(self.where, "no token ids", "the block was not given any, and its "
                       "router chooses by them")
            tensors["input.token_ids"] = to_numpy(ids_of_tokens)
        tensors.update(expected)
        more = {"source_dtype": None, "source_errors": None}
        if self.options.dtype != torch.float64:
            more["source_dtype"] = SHORT[self.options.dtype]
            if self.options.dtype == torch.bfloat16:
                # What the model's code says: without, the router is of bf16, too
                router = self.layer.config.get("moe_router_dtype")
                self.config = {**self.config, "moe_router_dtype": router}
        elif self.options.source_errors:
            more["source_errors"] = self.errors_of_lower_precision(ids, values, expected)
        case = f"{self.model.config.model_type}_layer_{self.number}"
        size = write_golden(path, tensors, self.config, case, source,
                            self.options.max_bytes, **more)
        if self.call.calls > 1:
            self.notes.append(f"the first of {self.call.calls} calls")
        return Written(path, self.where, T, size, self.notes)


def narrow(array):
    """The copy's weights as the model has them, in fp32 where it holds them."""
    single = array.astype(np.float32) if array.dtype == np.float64 else array
    return single if np.array_equal(single, array) else array


def same_experts(one, other):
    one, other = one.experts(), other.experts()
    return other is None if one is None else torch.equal(one, other)


def own_words(config, dtype):
    """The config of one layer on one rank. Losses are no part of a block."""
    config = {name: value for name, value in config.items() if value is not None}
    for name in ("moe_aux_loss_coeff", "moe_z_loss_coeff"):
        config.pop(name, None)
    config["moe_router_load_balancing_type"] = "none"
    config["moe_token_dispatcher_type"] = "alltoall"
    config.setdefault("moe_router_dtype", "fp32")
    return config


def write_case(model, name, whole, call, options, path):
    """Writes a call of a block as a golden file. @return Written; CaptureError"""
    import transformers
    config = model.config
    of = getattr(config, "_name_or_path", "") or config.model_type
    source = (f"transformers {transformers.__version__} {type(whole.block).__name__}, "
              f"CPU, {SHORT[options.dtype]}; {of}, {name}")
    try:
        return Case(model, name, whole, call, options).write(path, source)
    except CaptureError as error:
        place = f"layer {number_of(name)}"
        if place in str(error):
            raise
        raise CaptureError(f"{place}: {error}") from None
