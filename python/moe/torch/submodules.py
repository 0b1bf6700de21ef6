"""What stands around a layer's submodules, and would not run: the layer reads their
parameters and calls none of them but a model's own router, for those who look on."""

import threading

import torch
from torch.nn.utils.parametrize import is_parametrized

from moe.torch.errors import reject

_HOOKS = {"_forward_pre_hooks": "forward pre-hook", "_forward_hooks": "forward hook",
          "_backward_pre_hooks": "backward pre-hook", "_backward_hooks": "backward hook"}


def classes_of(layer):
    """{dotted name: class} of a layer's submodules."""
    return {name: type(module) for name, module in layer.named_modules() if name}


def check_submodules(layer, classes, router):
    """InputError for what would not run: a submodule in the place of the one that was
    there, a forward() of its own, a hook.

    classes: of when the layer was made. Parametrized ones are the same: reading a
        parameter computes it.
    router: the name of the submodule that is called if it has forward hooks, or None.
    """
    modules = dict(layer.named_modules(remove_duplicate=False))
    for name, made_with in classes.items():
        module = modules.get(name)
        kind = type(module)
        if module is not None and is_parametrized(module) and kind is not made_with:
            kind = kind.__mro__[1]
        if kind is not made_with:
            reject(name, kind.__name__,
                   f"must be the {made_with.__name__} that the layer was made with; the "
                   "layer reads its parameters alone, and what wraps it would not run")
        if "forward" in vars(module):
            reject(f"{name}.forward", "set on it",
                   f"must be that of {made_with.__name__}; another would not run")
        for field, hook in _HOOKS.items():
            if getattr(module, field) and not (
                    field == "_forward_hooks" and name == router):
                reject(f"hook of {name}", hook,
                       f"must not be there; the layer does not call {name}, and it would "
                       "not run")


def call_router(name, router, tokens):
    """What a model's own router gives, before its hooks, which may look at it: InputError
    if they make something else of it, because the layer would not see that."""
    thread, seen = threading.get_ident(), []

    def first(_, __, output):
        if threading.get_ident() == thread:
            seen.append((output, [tensor.detach().clone() for tensor in output]))

    handle = router.register_forward_hook(first, prepend=True)
    try:
        given = router(tokens)
    finally:
        handle.remove()
    output, values = seen[0]
    if not isinstance(given, tuple) or len(given) != len(output) or not all(
            got is own and torch.equal(got, value)
            for got, own, value in zip(given, output, values)):
        reject(f"hook of {name}", "changes its output",
               "may only look at it; the layer would not see the change")
    return output
