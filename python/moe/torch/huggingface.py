"""Layers that take the place of a transformers model's own MoE blocks."""

import moe
from moe.torch.errors import reject
from moe.torch.layer import MoELayer

_BLOCKS = {
    "MixtralSparseMoeBlock": "mixtral",
    "Qwen3MoeSparseMoeBlock": "qwen3_moe",
    "DeepseekV3MoE": "deepseek_v3",
    "GptOssMLP": "gpt_oss",
}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu",
                "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}


def names_of(block):
    """What MoELayer calls the names of this block; InputError for another class."""
    name = type(block).__name__
    if name not in _BLOCKS:
        reject("block", name, "must be one of " + ", ".join(_BLOCKS))
    return _BLOCKS[name]


def to_moe_config(config):
    """A moe.MoEConfig from the config of a transformers model: of model_type mixtral,
    qwen3_moe, deepseek_v3 or gpt_oss.

    InputError for another type, and for a setting that the layer does not represent.
    Source: configuration_<model_type>.py, modeling_<model_type>.py of transformers 5.24.
    """
    make = _CONFIGS.get(config.model_type)
    if make is None:
        reject("model_type", config.model_type, "must be one of " + ", ".join(_CONFIGS))
    fields = dict(
        hidden_size=config.hidden_size, moe_router_topk=config.num_experts_per_tok,
        gated_linear_unit=True, add_bias_linear=False, moe_grouped_gemm=True,
        moe_router_load_balancing_type=["none"], moe_token_dispatcher_type="alltoall")
    return moe.MoEConfig(**fields | make(config))


def _activation(config):
    if config.hidden_act not in _ACTIVATIONS:
        reject("hidden_act", config.hidden_act,
               "must be one of " + ", ".join(_ACTIVATIONS))
    return {"activation_func": _ACTIVATIONS[config.hidden_act]}


def _mixtral(config):
    if config.router_jitter_noise:
        reject("router_jitter_noise", config.router_jitter_noise,
               "must be 0: the model's experts see the noise, the layer's do not")
    return _activation(config) | {"num_moe_experts": config.num_local_experts,
                                  "moe_ffn_hidden_size": config.intermediate_size}


def _qwen3_moe(config):
    # The K largest of a softmax over all, normalised, are a softmax over the K
    return _activation(config) | {"num_moe_experts": config.num_experts,
                                  "moe_ffn_hidden_size": config.moe_intermediate_size,
                                  "moe_router_pre_softmax": not config.norm_topk_prob}


def _deepseek_v3(config):
    width = config.moe_intermediate_size
    fields = _activation(config) | {
        "num_moe_experts": config.n_routed_experts, "moe_ffn_hidden_size": width,
        "moe_shared_expert_intermediate_size": width * config.n_shared_experts,
        "moe_router_score_function": "sigmoid", "moe_router_dtype": "fp32",
        "moe_router_enable_expert_bias": True,
        "moe_router_topk_scaling_factor": config.routed_scaling_factor}
    if config.norm_topk_prob and config.num_experts_per_tok == 1:
        reject("num_experts_per_tok", 1, "must be 2 or more with norm_topk_prob: the "
               "layer leaves a single score as it is")
    if not config.norm_topk_prob:
        fields["moe_router_norm_topk_prob"] = False
    if config.n_group > 1:
        fields |= {"moe_router_num_groups": config.n_group,
                   "moe_router_group_topk": config.topk_group,
                    "moe_router_group_score_topk": 2}
    return fields


def _gpt_oss(config):
    if config.swiglu_alpha != 1.702:
        reject("swiglu_alpha", config.swiglu_alpha, "must be 1.702, which is quick_gelu")
    return {"num_moe_experts": config.num_local_experts,
            "moe_ffn_hidden_size": config.intermediate_size, "add_bias_linear": True,
            "activation_func": "quick_gelu", "glu_linear_offset": 1.0,
            "activation_func_clamp_value": config.swiglu_limit}


_CONFIGS = {"mixtral": _mixtral, "qwen3_moe": _qwen3_moe, "deepseek_v3": _deepseek_v3,
            "gpt_oss": _gpt_oss}


def replace(model, spec="reference_cpu:fp32"):
    """Puts a MoELayer in the place of every MoE block of a transformers model.

    The parameters stay the model's own, by the same names: state_dict(), optimizers and
    save_pretrained() see no difference.
    model: a model of type mixtral, qwen3_moe, deepseek_v3 or gpt_oss.
    Returns the names of the layers. InputError, and nothing is changed, for a model
    without such a block or with one that the layer does not represent.
    """
    layers = {}
    for name, module in model.named_modules():
        if name and type(module).__name__ in _BLOCKS:
            config = model.config.get_text_config()
            layers[name] = MoELayer.from_huggingface(module, config, spec)
    if not layers:
        reject("model", type(model).__name__,
               "must have a block of " + ", ".join(_BLOCKS))
    for name, layer in layers.items():
        path, _, own = name.rpartition(".")
        setattr(model.get_submodule(path), own, layer)
    return list(layers)
