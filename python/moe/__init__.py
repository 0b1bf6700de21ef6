"""Megatron-Core's Mixture-of-Experts layer, written three times, for Python.

    import moe

    config = moe.MoEConfig("mixtral_8x7b", scale=32)
    parameters = moe.random_parameters(config)
    layer = moe.MoELayer(config, parameters, "reference_cpu:fp32")
    forward = layer.forward(hidden_states)           # (S, B, H), of numpy, torch, …
    gradients = forward.backward(grad_output)

Arrays are shared, never copied behind your back: see Tensor. ``moe.torch`` has the layer
as an nn.Module, ``python -m moe.capture`` takes layers out of running models, and
``python -m moe`` is the program of the README.
"""

from moe._moe import (
    CheckpointLayer,
    Dispatched,
    Experts,
    ExpertsForward,
    Floor,
    Forward,
    Gradients,
    InputError,
    InternalError,
    KeptTensor,
    MoEConfig,
    MoELayer,
    ModuleSpec,
    ProcessGroups,
    Rank,
    RankError,
    Routed,
    Router,
    SharedExperts,
    SharedExpertsForward,
    Step,
    Tensor,
    Tier,
    TokenDispatcher,
    Trace,
    TraceStep,
    embed_text,
    floors,
    kept_bytes,
    kept_tensors,
    layer_from_tensors,
    load_layer,
    parameter_shapes,
    permute,
    presets,
    random_parameters,
    relative_error,
    run_ranks,
    sort_chunks_by_idxs,
    tiers,
    trace,
    unpermute,
)

__all__ = [name for name in dir() if not name.startswith("_")]
__version__ = "0.1.0"
