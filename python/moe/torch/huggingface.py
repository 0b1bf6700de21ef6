"""Layers that take the place of a transformers model's own MoE blocks."""

import re

import torch

import moe
from moe.torch.errors import reject
from moe.torch.layer import MoELayer

_BLOCKS = {
    "MixtralSparseMoeBlock": "mixtral",
    "Qwen3MoeSparseMoeBlock": "qwen3_moe",
    "DeepseekV3MoE": "deepseek_v3",
    "GptOssMLP": "gpt_oss",
}


def names_of(block):
    """What MoELayer calls the names of this block; InputError for another class."""
    name = type(block).__name__
    if name not in _BLOCKS:
        reject("block", name, "must be one of " + ", ".join(_BLOCKS))
    return _BLOCKS[name]


def config_of(block, config, layer=None):
    """The moe.MoEConfig of a block, from its model's config (moe.layer_from_tensors()).

    layer: the block's number in the model; the last layer's if left out.
    InputError for what the layer does not represent.
    """
    if not hasattr(config, "to_json_string"):
        reject("config", type(config).__name__,
               "must be the config of the block's model, or a moe.MoEConfig")
    if getattr(config, "router_jitter_noise", 0.0):
        reject("router_jitter_noise", config.router_jitter_noise,
               "must be 0: the model's experts see the noise, the layer's do not")
    if layer is None:
        layer = config.num_hidden_layers - 1
    tensors = {name: tensor.detach() for name, tensor in block.state_dict().items()}
    made = moe.layer_from_tensors(config.to_json_string(), tensors, layer).config
    _check_unchanged(block, config)
    return made


def _check_unchanged(block, config):
    """InputError where the block is not what its config makes: a number, a class. The
    layer goes by the config alone."""
    if not type(block).__module__.startswith("transformers."):
        return
    with torch.device("meta"):
        fresh = type(block)(config)
    modules = dict(block.named_modules(remove_duplicate=False))
    for path, want in fresh.named_modules(remove_duplicate=False):
        module = modules.get(path)
        if type(module) is not type(want):
            reject(path, type(module).__name__,
                   f"must be {type(want).__name__}, as the config makes it")
        for name, value in vars(want).items():
            own = getattr(module, name, None)
            if name == "training" or name.startswith("_"):
                continue
            if isinstance(value, (bool, int, float, str)) and own != value:
                reject(f"{path}.{name}".lstrip("."), own,
                       f"must be {value}, as the config makes it")


def replace(model, spec="reference_cpu:fp32"):
    """Puts a MoELayer in the place of every MoE block of a transformers model.

    The parameters stay the model's own, by the same names: state_dict(), optimizers and
    save_pretrained() see no difference.
    model: a model of type mixtral, qwen3_moe, deepseek_v3 or gpt_oss.
    Returns the names of the layers. InputError, and nothing is changed, for a model
    without such a block, or with one that the layer does not represent, that was changed
    since its config made it, or that has hooks which would not run.
    """
    if not isinstance(model, torch.nn.Module):
        reject("model", type(model).__name__, "must be a model of transformers")
    layers = {}
    for name, module in model.named_modules():
        if name and type(module).__name__ in _BLOCKS:
            if not hasattr(getattr(model, "config", None), "get_text_config"):
                reject("model", type(model).__name__,
                       "must be a model of transformers, with its config; "
                       "MoELayer.from_huggingface() takes a block and a config")
            config = model.config.get_text_config()
            number = re.search(r"\.(\d+)\.[^.]*$", name)
            layers[name] = MoELayer.from_huggingface(
                module, config, spec, layer=int(number[1]) if number else None)
    if not layers:
        for name, module in model.named_modules():
            if isinstance(module, MoELayer):
                reject(name or "model", "MoELayer", "the model's blocks are replaced "
                       "already")
        reject("model", type(model).__name__,
               "must have a block of " + ", ".join(_BLOCKS))
    for name, layer in layers.items():
        path, _, own = name.rpartition(".")
        setattr(model.get_submodule(path), own, layer)
    return list(layers)
