"""From a model's names and layouts to this layer's, by the one table that there is.

`moe.layer_from_tensors` knows how models lay their MoE layer out; here it is asked for a
block's tensors, and for their gradients, which lie as the weights do.
"""
import numpy as np

from .errors import CaptureError


class Layer:
    """A block in this layer's words: config (a dict), parameters (name -> fp32 array)."""

    def __init__(self, config, parameters, layout="", notes=()):
        self.config, self.parameters = config, parameters
        self.layout, self.notes = layout, tuple(notes)


def _ask(config_json, tensors, number):
    import moe
    try:
        return moe.layer_from_tensors(config_json, tensors, number)
    except moe.InputError as error:
        if "--fc1-layout" in str(error):
            # Of files in which both are met; in memory transformers has rows
            return moe.layer_from_tensors(config_json, tensors, number, "rows")
        raise CaptureError(" ".join(str(error).split())) from None


def _arrays(found):
    return {name: np.asarray(array) for name, array in found.parameters.items()}


def read_layer(config_json, tensors, number):
    """@param tensors  the block's parameters and buffers, name -> numpy array"""
    found = _ask(config_json, tensors, number)
    return Layer(found.config.to_dict(), _arrays(found), found.layout, found.notes)


BUFFERS = ("router.expert_bias", "router.qb_beta", "router.tid2eid")


def read_gradients(config_json, tensors, gradients, number):
    """Gradients of this layer's parameters, name -> array.

    A parameter of ours is c times one of theirs, element by element, and nearly always c
    is 1; its gradient is then theirs over c. What c is, tensors of ones tell.

    @param tensors    as read_layer's
    @param gradients  of those that the output depends on, under the same names
    """
    # What nothing depends on, say a bias that only chooses, must not be refused as ones
    ones = {name: np.ones_like(gradients[name], dtype=np.float32) if name in gradients
            else value if value.dtype.kind in "iu" else np.zeros_like(value)
            for name, value in tensors.items()}
    scales = _arrays(_ask(config_json, ones, number))
    found = _arrays(_ask(config_json, {**ones, **gradients}, number))
    result = {}
    for name, value in found.items():
        scale = scales[name]
        if name not in BUFFERS and scale.any():
            plain = (scale == 1).all()
            result[name] = value if plain else value / np.square(scale, dtype=np.float64)
    return result
