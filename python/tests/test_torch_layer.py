"""moe.torch.MoELayer against PyTorch's own autograd, on random configs."""

import random

import pytest

torch = pytest.importorskip("torch")
import moe
import moe.torch
import torch_layer

torch.set_num_threads(1)  # two pools of threads would wait for each other


def random_config(seed, **fixed):
    """One of the layers that this config can say, with odd sizes, and None if the draw
    breaks a rule."""
    r = random.Random(seed)
    some = lambda probability: r.random() < probability
    E, K = r.choice([(3, 1), (5, 2), (6, 3), (8, 4), (12, 4)])
    F = r.choice([3, 4, 6, 10])
    score = r.choice(["softmax", "softmax", "sigmoid", "sqrtsoftplus"])
    gated = some(0.7)
    types = r.choice([["aux_loss"], ["seq_aux_loss"], ["global_aux_loss"], ["none"],
                      ["aux_loss", "seq_aux_loss", "global_aux_loss"]])
    coefficients = [0.0 if t == "none" else r.choice([0.01, 0.3]) for t in types]
    fields = dict(
        hidden_size=r.choice([5, 9, 14]), num_moe_experts=E, moe_router_topk=K,
        moe_ffn_hidden_size=F, gated_linear_unit=gated, add_bias_linear=some(0.4),
        activation_func=r.choice(["silu", "gelu", "quick_gelu", "squared_relu",
                                  "gelu_tanh"]),
        moe_router_score_function=score,
        moe_router_pre_softmax=score == "softmax" and (K == 1 or some(0.4)),
        moe_router_topk_scaling_factor=r.choice([None, 2.5]),
        moe_router_load_balancing_type=types, moe_aux_loss_coeff=coefficients,
        moe_z_loss_coeff=r.choice([None, 0.02]), calculate_per_token_loss=some(0.2),
        moe_token_dispatcher_type=r.choice(["allgather", "alltoall"]))
    if score != "softmax":
        fields["moe_router_enable_expert_bias"] = some(0.6)
        fields["moe_router_norm_topk_prob"] = K == 1 or not some(0.2)
    if K == 1:
        fields["moe_apply_probs_on_input"] = some(0.5)
    if K == 4 and some(0.6):
        fields |= dict(moe_router_num_groups=4, moe_router_group_topk=2)
        if score != "softmax" and some(0.5):
            fields["moe_router_group_score_topk"] = 1
    if gated:
        fields["activation_func_clamp_value"] = r.choice([None, None, 0.4])
        fields["glu_linear_offset"] = r.choice([0.0, 0.0, 1.0])
        if some(0.2) and F % 2 == 0:
            fields["moe_mlp_glu_interleave_size"] = 2
    if some(0.4) and types != ["sinkhorn"]:
        fields["moe_expert_capacity_factor"] = r.choice([0.5, 1.0])
        fields["moe_token_drop_policy"] = r.choice(["probs", "position"])
        fields["moe_pad_expert_input_to_capacity"] = some(0.3)
    if some(0.4) and not fields["add_bias_linear"]:
        fields["moe_shared_expert_intermediate_size"] = F + 1
        fields["moe_shared_expert_gate"] = some(0.5)
    if some(0.2):
        fields["moe_latent_size"] = 4
    try:
        return moe.MoEConfig(**fields | fixed)
    except moe.InputError:
        return None


def case(seed, **fixed):
    """A config, a module of it, and the tensors that go in."""
    number = seed
    while (config := random_config(number, **fixed)) is None:
        number += 1000
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator).bfloat16().double()
    S, B = random.Random(seed + 7).choice([(1, 9), (6, 3), (11, 1), (5, 4)])
    hidden = draw(S, B, config.hidden_size)
    grad = draw(S, B, config.hidden_size)
    padding = torch.rand(B, S, generator=generator) < 0.3 if seed % 3 == 0 else None
    parameters = {name: draw(*shape) * 0.5 for name, shape in
                  moe.parameter_shapes(config).items()}
    return config, parameters, hidden, grad, padding


def module_of(config, parameters, spec, dtype):
    layer = moe.torch.MoELayer(config, spec, dtype=dtype)
    layer.load_state_dict(parameters)
    return layer


def expected(config, parameters, hidden, grad, padding, scale, training=True):
    leaves = {name: p.clone().requires_grad_("expert_bias" not in name)
              for name, p in parameters.items()}
    x = hidden.clone().requires_grad_()
    output, losses, total = torch_layer.moe_layer(config, leaves, x, padding, training)
    ((output * grad).sum() + scale * total).backward()
    gradients = {name: p.grad if p.grad is not None else torch.zeros_like(p)
                 for name, p in leaves.items() if p.requires_grad}
    return output.detach(), losses, gradients | {"hidden_states": x.grad}


def check(seed, spec, dtype, bound, **fixed):
    config, parameters, hidden, grad, padding = case(seed, **fixed)
    scale = [1.0, 0.25][seed % 2]
    want, want_losses, want_gradients = expected(config, parameters, hidden, grad,
                                                 padding, scale)
    layer = module_of(config, parameters, spec, dtype)
    layer.main_loss_backward_scale = scale
    x = hidden.to(dtype).requires_grad_()
    output, bias = layer(x, padding)
    assert bias is None and output.dtype == dtype
    output.backward(grad.to(dtype))
    got = {name: p.grad for name, p in layer.named_parameters()}
    got["hidden_states"] = x.grad

    assert layer.losses.keys() == want_losses.keys()
    for name, loss in want_losses.items():
        assert layer.losses[name] == pytest.approx(loss, rel=bound, abs=1e-12), name
    assert got.keys() == want_gradients.keys()
    size = max(float(g.norm()) for g in want_gradients.values())
    for name, value in {"output": want, **want_gradients}.items():
        mine = (output if name == "output" else got[name]).detach()
        assert mine.dtype == dtype and mine.shape == value.shape
        # What is almost zero is so by cancellation: it is held against the largest
        error = float((mine.double() - value).norm())
        assert error <= bound * max(float(value.norm()), 1e-3 * size), (name, error)


@pytest.mark.parametrize("seed", range(60))
def test_fp64_is_autograd(seed):
    check(seed, "reference_cpu:fp64", torch.float64, 2e-6)


@pytest.mark.parametrize("seed", range(60, 84))
def test_fp32_is_autograd(seed):
    check(seed, "reference_cpu:fp32", torch.float32, 2e-5)


@pytest.mark.parametrize("seed", range(84, 90))
def test_naive_gpu_is_autograd(seed):
    check(seed, "naive_gpu:fp32", torch.float32, 2e-5)


@pytest.mark.parametrize("seed", range(90, 95))
def test_optimized_gpu_is_autograd_in_bf16(seed):
    check(seed, "optimized_gpu:bf16", torch.bfloat16, 5e-2, moe_router_dtype="fp32",
          hidden_size=16, moe_ffn_hidden_size=24, moe_latent_size=None,
          moe_mlp_glu_interleave_size=None)


@pytest.mark.parametrize("seed", range(95, 99))
def test_evaluation_has_no_losses(seed):
    config, parameters, hidden, grad, padding = case(seed, moe_z_loss_coeff=0.1)
    want, losses, gradients = expected(config, parameters, hidden, grad, padding, 1.0,
                                       training=False)
    layer = module_of(config, parameters, "reference_cpu:fp64", torch.float64).eval()
    x = hidden.requires_grad_()
    output, _ = layer(x, padding)
    output.backward(grad)
    assert layer.losses == {} and losses == {}
    torch.testing.assert_close(output, want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.router.weight.grad, gradients["router.weight"],
                               rtol=1e-6, atol=1e-6)


def test_the_draws_reach_every_feature():
    configs = [case(seed)[0].to_dict() for seed in range(60)]
    counts = {field: len({str(c[field]) for c in configs}) for field in configs[0]}
    for field, values in {
            "moe_router_score_function": 3, "moe_router_pre_softmax": 2,
            "moe_router_enable_expert_bias": 2, "moe_router_norm_topk_prob": 2,
            "moe_router_num_groups": 2, "moe_router_group_score_topk": 2,
            "moe_apply_probs_on_input": 2, "activation_func": 5, "gated_linear_unit": 2,
            "add_bias_linear": 2, "activation_func_clamp_value": 2,
            "glu_linear_offset": 2, "moe_mlp_glu_interleave_size": 2,
            "moe_expert_capacity_factor": 3, "moe_token_drop_policy": 2,
            "moe_pad_expert_input_to_capacity": 2, "moe_latent_size": 2,
            "moe_shared_expert_gate": 2, "moe_z_loss_coeff": 2,
            "moe_router_load_balancing_type": 5, "calculate_per_token_loss": 2}.items():
        assert counts[field] >= values, field
