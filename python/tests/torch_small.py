"""Small layers of moe.torch, for its tests."""

import re

import pytest

torch = pytest.importorskip("torch")
import moe
import moe.torch

torch.set_num_threads(1)  # two pools of threads would wait for each other

S, B, H, E, K, F = 7, 3, 10, 5, 2, 6
FIELDS = dict(hidden_size=H, num_moe_experts=E, moe_router_topk=K, moe_ffn_hidden_size=F,
              gated_linear_unit=True, activation_func="silu", add_bias_linear=False,
              moe_router_load_balancing_type=["aux_loss"], moe_aux_loss_coeff=[0.1])
BIASED = FIELDS | dict(moe_router_score_function="sigmoid",
                       moe_router_enable_expert_bias=True)


def make(spec="reference_cpu:fp32", dtype=None, names="megatron", **fields):
    torch.manual_seed(1)
    layer = moe.torch.MoELayer(moe.MoEConfig(**FIELDS | fields), spec, names=names,
                               dtype=dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


def hidden(seed=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(S, B, H, generator=generator).to(dtype)


def gradients(layer, x=None):
    layer.zero_grad()
    leaf = (hidden() if x is None else x).detach().requires_grad_()
    layer(leaf)[0].square().sum().backward()
    return [leaf.grad, *(p.grad.clone() for p in layer.parameters())]


def refused(text):
    return pytest.raises(moe.InputError, match="^" + re.escape(text) + "[^\n]*$")
