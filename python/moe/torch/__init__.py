"""Megatron's MoE layer in PyTorch: an nn.Module that a tier computes.

    import moe, moe.torch

    layer = moe.torch.MoELayer(moe.MoEConfig("mixtral_8x7b", scale=32))
    output, _ = layer(hidden_states)             # (S, B, H), and it has gradients

    moe.torch.replace(model)                     # every block of a transformers model

PyTorch is no part of the package moe and must be installed.
"""

from moe.torch.huggingface import replace
from moe.torch.layer import MoELayer

__all__ = ["MoELayer", "replace"]
