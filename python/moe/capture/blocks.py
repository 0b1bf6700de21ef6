"""A transformers model's MoE blocks: which they are, how one is called, what it chose.

A block is a module with children `experts` and `router` or `gate`, whatever its class;
what it computes is for `moe.layer_from_tensors` to know. Models whose decoder layer adds
a shared expert beside it (`shared_mlp`) have that counted in.
"""
import re

import torch

from .errors import reject

ROUTERS = ("router", "gate")
BESIDE = ("shared_mlp",)


def joined(path, name):
    return f"{path}.{name}" if path else name


class Whole(torch.nn.Module):
    """An MoE block with the shared expert that its decoder layer adds, if any."""

    def __init__(self, block, name="", beside=None, beside_name=""):
        super().__init__()
        self.names = (name, beside_name)
        self.block, self.beside = block, beside

    @property
    def router(self):
        return next(child for name, child in self.block.named_children()
                    if name in ROUTERS)

    def parts(self, name):
        """[(path in the model, module)] @param name  the block's path"""
        found = [(name, self.block)]
        if self.beside is not None:
            parent = name.rpartition(".")[0]
            found.append((joined(parent, self.names[1]), self.beside))
        return found

    def tensors(self):
        """Parameters and buffers under the names that they have in a checkpoint."""
        parts = [(self.names[0] + "." if self.beside is not None else "", self.block)]
        if self.beside is not None:
            parts.append((self.names[1] + ".", self.beside))
        for prefix, part in parts:
            for found in (part.named_parameters(), part.named_buffers()):
                for name, value in found:
                    yield prefix + name, value

    def forward(self, hidden, *more, **named):
        output = first_tensor(self.block(hidden, *more, **named)).reshape(hidden.shape)
        if self.beside is not None:
            output = output + first_tensor(self.beside(hidden)).reshape(hidden.shape)
        return output


def first_tensor(output):
    """Of a block that returns its router's logits beside its output."""
    return output if isinstance(output, torch.Tensor) else output[0]


def is_moe_block(module):
    children = dict(module.named_children())
    return "experts" in children and any(name in children for name in ROUTERS)


def number_of(name):
    """"model.layers.3.mlp": 3. 0 for a block that stands alone."""
    numbers = re.findall(r"(?:^|\.)(\d+)(?=\.|$)", name)
    return int(numbers[-1]) if numbers else 0


def is_ours(module):
    """A layer of this project's, which is no model's to be judged by."""
    return any(kind.__name__ == "MoELayer" and kind.__module__.startswith("moe.torch.")
               for kind in type(module).__mro__)


def refuse_ours(model, chosen):
    """CaptureError where moe.torch.MoELayer is a block that is asked for, or in one.

    @param chosen  {name: Whole}; None: all of the model
    """
    parts = [("", model)] if chosen is None else [
        part for name, whole in chosen.items() for part in whole.parts(name)]
    for path, part in parts:
        for name, module in part.named_modules():
            if is_ours(module):
                own = joined(path, name) if name else path
                reject(own or "model", "moe.torch.MoELayer", "is this project's own "
                       "layer, not the model's: capture a model whose blocks it has not "
                       "replaced")


def find_blocks(model):
    """@return {name: Whole} of all MoE blocks, in the order of the model"""
    modules = dict(model.named_modules())
    found = {}
    for name, module in modules.items():
        if not is_moe_block(module):
            continue
        parent, _, own = name.rpartition(".")
        beside = None
        for sibling in BESIDE:
            other = modules.get(f"{parent}.{sibling}" if parent else sibling)
            if own and isinstance(other, torch.nn.Module):
                beside = (other, sibling)
        found[name] = Whole(module, own, *(beside or ()))
    return found


def choose_blocks(found, layers, model_class):
    """Those of the layers asked for, by number or by a module's name; all for None.

    @return {name: whole}. CaptureError for a model without MoE blocks, a dense layer, a
            number that two blocks have.
    """
    numbers = sorted({number_of(name) for name in found})
    if not found:
        reject("model", model_class, "has no MoE block: no module with children "
               "experts and " + " or ".join(ROUTERS))
    chosen = {}
    for layer in numbers if layers is None else layers:
        names = [name for name in found
                 if name == layer or (str(layer).isdigit()
                                      and number_of(name) == int(layer))]
        if not names:
            reject("layers", layer, "no MoE block there; MoE blocks are in "
                   + in_words(numbers))
        if len(names) > 1 and layers is not None:
            reject("layers", layer, "several blocks have that number, give the name of "
                   "one: " + ", ".join(names))
        chosen.update((name, found[name]) for name in names)
    return chosen


def in_words(numbers):
    """[1, 2, 3, 5]: "layers 1 to 3, 5"."""
    runs = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return "layers " + ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in runs)


class Watch:
    """What a block's router and experts exchange in a forward; used as a context."""

    def __init__(self, whole):
        self.whole = whole
        self.chosen = self.weights = self.expert_output = None
        self.of_router = []

    def __enter__(self):
        experts = self.whole.block.experts
        self._hooks = [
            experts.register_forward_pre_hook(self._enters, with_kwargs=True),
            experts.register_forward_hook(self._leaves),
            self.whole.router.register_forward_hook(self._routed)]
        return self

    def __exit__(self, *_):
        for hook in self._hooks:
            hook.remove()

    def _enters(self, _, given, named):
        given = [v for v in list(given) + list(named.values())
                 if isinstance(v, torch.Tensor)]
        if len(given) == 3 and not given[1].is_floating_point():
            self.chosen, self.weights = given[1].detach(), given[2].detach()

    def _leaves(self, _, __, output):
        self.expert_output = first_tensor(output).detach()

    def _routed(self, _, __, output):
        outputs = [output] if isinstance(output, torch.Tensor) else list(output)
        self.of_router = [v.detach() for v in outputs if isinstance(v, torch.Tensor)]

    def experts(self):
        """(T, K), ascending; None where nothing shows them."""
        if self.chosen is None:
            return None
        chosen = self.chosen.reshape(-1, self.chosen.shape[-1])
        return chosen.long().cpu().sort(1).values

    def map_and_probs(self, tokens, experts, topk):
        """(T, E) both, probs as the experts are given them; None where nothing shows
        them."""
        if self.chosen is not None and self.chosen.numel() == tokens * topk:
            chosen = self.chosen.reshape(tokens, topk).long()
            probs = torch.zeros(tokens, experts, dtype=torch.float64)
            weights = self.weights.reshape(tokens, topk).double().cpu()
            probs.scatter_(1, chosen.cpu(), weights)
            mapped = torch.zeros(tokens, experts, dtype=torch.uint8)
            return mapped.scatter_(1, chosen.cpu(), 1), probs
        for value in self.of_router:  # a row of scores in which all others are zero
            if value.shape == (tokens, experts) and \
                    ((value != 0).sum(1) == topk).all():
                return (value != 0).to(torch.uint8).cpu(), value.double().cpu()
        return None, None

    def logits(self, expected):
        """What the router shows that is x W^T + b, within fp32's rounding; else None."""
        for value in self.of_router:
            if value.shape == expected.shape and value.is_floating_point():
                value = value.double().cpu()
                if (value - expected).norm() <= 1e-5 * expected.norm():
                    return value
        return None
