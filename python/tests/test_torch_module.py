"""moe.torch.MoELayer as a module: memory, changes, checkpoints, submodules."""

import pytest

torch = pytest.importorskip("torch")
import moe
from moe.torch.function import _kept
from torch_small import B, E, H, gradients, hidden, make, refused

# ---------------------------------------------------------------- memory

def test_nothing_is_copied_that_could_be_shared():
    """The layer reads the parameters' own memory: what PyTorch does not see written, it
    does, where its dtype is the component's."""
    layer = make()
    before = layer(hidden())[0].detach()
    for parameter in layer.parameters():
        parameter.data.mul_(2)
    after = layer(hidden())[0].detach()
    fresh = make()
    fresh.load_state_dict(layer.state_dict())
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, fresh(hidden())[0].detach(), rtol=0, atol=0)


@pytest.mark.parametrize("spec", ["reference_cpu:fp32", "reference_cpu:fp64",
                                  "naive_gpu:fp32", "optimized_gpu:bf16"])
def test_what_is_written_in_place_is_seen(spec):
    layer = make(spec)
    layer(hidden())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1.5)
    fresh = make(spec)
    fresh.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(hidden())[0], fresh(hidden())[0], rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {}])
def test_every_kind_of_optimizer_is_seen(options):
    layer = make("reference_cpu:fp64")
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, **options)
    for _ in range(2):
        gradients(layer)
        optimizer.step()
    fresh = make("reference_cpu:fp64")
    fresh.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(hidden())[0], fresh(hidden())[0], rtol=0, atol=0)


def test_refresh_is_for_what_pytorch_does_not_count():
    layer = make("reference_cpu:fp64")
    before = layer(hidden())[0]
    layer.experts.linear_fc2.weight.data.mul_(2)
    assert torch.equal(layer(hidden())[0], before)
    layer.refresh()
    torch.testing.assert_close(layer(hidden())[0], 2 * before)


def test_the_layer_is_rebuilt_only_after_a_change():
    layer = make("reference_cpu:fp64")
    layer(hidden())
    first = layer._built.layer
    layer.eval()(hidden())
    assert layer._built.layer is first
    layer.load_state_dict(layer.state_dict())
    layer(hidden())
    assert layer._built.layer is not first


def test_strides_do_not_matter_but_for_parameters():
    layer = make()
    x = hidden().permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert not x.is_contiguous()
    for got, want in zip(gradients(layer, x), gradients(layer)):
        torch.testing.assert_close(got, want, rtol=0, atol=0)
    leaf = hidden().requires_grad_()
    layer(leaf)[0].sum().backward()  # its gradient is one number with strides of 0
    weight = layer.experts.linear_fc2.weight
    weight.data = weight.data.mT.contiguous().mT
    with refused("experts.linear_fc2.weight = strides"):
        layer(hidden())


def test_the_output_is_the_callers():
    layer = make()
    leaf = hidden().requires_grad_()
    output, _ = layer(leaf)
    output.detach().zero_()
    output.backward(torch.ones_like(output))
    got = leaf.grad
    leaf = hidden().requires_grad_()
    layer(leaf)[0].sum().backward()
    assert torch.equal(got, leaf.grad)


@pytest.mark.parametrize("written", ["hidden states", "a parameter"])
def test_what_the_backward_needs_may_not_be_written(written):
    layer = make()
    leaf = hidden().requires_grad_() * 1
    output, _ = layer(leaf)
    with torch.no_grad():
        (leaf if written == "hidden states" else layer.router.weight).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.fixture
def kept():
    """How many more forwards are kept for a backward."""
    before = set(_kept)
    return lambda: len(set(_kept) - before)


def test_what_is_kept_goes_with_the_graph(kept):
    layer = make()
    output = layer(hidden())[0]
    assert kept() == 1
    output.sum().backward(retain_graph=True)
    first = layer.router.weight.grad.clone()
    output.sum().backward()
    torch.testing.assert_close(layer.router.weight.grad, 2 * first)
    assert kept() == 0
    output = layer(hidden())[0]
    del output
    assert kept() == 0


def test_without_gradients_nothing_is_kept(kept):
    layer = make()
    with torch.no_grad():
        outputs = [layer(hidden())[0]]
    assert layer.losses == {}
    with torch.inference_mode():
        outputs.append(layer(hidden())[0])
    layer.requires_grad_(False)
    outputs.append(layer(hidden())[0])
    assert kept() == 0
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_frozen_parameters_get_no_gradient():
    layer = make()
    want = gradients(layer)
    layer.experts.requires_grad_(False)
    leaf = hidden().requires_grad_()
    layer.zero_grad()
    layer(leaf)[0].square().sum().backward()
    assert layer.experts.linear_fc1.weight.grad is None
    assert torch.equal(leaf.grad, want[0])
    assert torch.equal(layer.router.weight.grad,
                       dict(zip([n for n, _ in layer.named_parameters()],
                                want[1:]))["router.weight"])


def test_parameters_made_in_inference_mode_are_read_each_time():
    with torch.inference_mode():
        layer = make("reference_cpu:fp64")
        before = layer(hidden())[0]
        layer.experts.linear_fc2.weight.mul_(2)
        torch.testing.assert_close(layer(hidden())[0], 2 * before)


@pytest.mark.parametrize("names, name", [
    ("megatron", "experts.linear_fc2.weight"), ("gpt_oss", "experts.down_proj")])
def test_tensors_in_the_place_of_parameters(names, name):
    """Whatever PyTorch puts there: each is new, and the memory of the last is free."""
    # F: as large as what the C library maps anew, and unmaps
    layer = make("reference_cpu:fp64", names=names, add_bias_linear=names == "gpt_oss",
                 moe_ffn_hidden_size=5000)
    if names == "gpt_oss":
        torch.nn.init.zeros_(layer.experts.down_proj_bias)
    weight, before = layer.get_parameter(name), layer(hidden())[0]
    call = lambda w: torch.func.functional_call(layer, {name: w}, hidden())[0]
    with torch.no_grad():
        for factor in (2.0, 3.0, 4.0):
            torch.testing.assert_close(call(weight * factor), factor * before)
    factor = torch.tensor(5.0, requires_grad=True)
    got, = torch.autograd.grad(call(weight * factor).sum(), factor)
    torch.testing.assert_close(got, before.sum())


def test_no_tokens():
    layer = make()
    leaf = torch.zeros(0, B, H, requires_grad=True)
    output = layer(leaf)[0]
    assert output.shape == (0, B, H)
    output.sum().backward()
    assert leaf.grad.shape == leaf.shape and not layer.router.weight.grad.any()


# ---------------------------------------------------------------- checkpoints

@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_frees_and_runs_again(use_reentrant, kept):
    from torch.utils.checkpoint import checkpoint

    layer = make()
    want = gradients(layer)
    layer.zero_grad()
    leaf = hidden().requires_grad_()
    output = checkpoint(lambda x: layer(x)[0], leaf, use_reentrant=use_reentrant)
    assert kept() == 0
    output.square().sum().backward()
    assert kept() == 0
    for got, expected in zip([leaf.grad, *(p.grad for p in layer.parameters())], want):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_hooks_that_move_saved_tensors_are_refused():
    layer = make()
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda saved: saved):
        output = layer(hidden())[0]
    with refused("saved tensors = copies: must be those that were saved"):
        output.sum().backward()


def test_a_second_derivative_is_refused():
    layer = make()
    leaf = hidden().requires_grad_()
    # Of a sum: no gradient that comes in requires one, and a penalty would be dropped
    for output in (layer(leaf)[0].sum(), layer(leaf)[0].square().sum()):
        with refused("create_graph = True: must be False; this layer has no second"):
            torch.autograd.grad(output, leaf, create_graph=True)


# ---------------------------------------------------------------- submodules

@pytest.mark.parametrize("names", ["megatron", "mixtral"])
def test_what_stands_around_submodules_is_refused(names):
    """Nobody calls them."""
    layer = make(names=names)
    router = "router" if names == "megatron" else "gate"
    want = layer(hidden())
    held = getattr(layer, router)
    setattr(layer, router, torch.nn.Linear(H, E, bias=False))
    with refused(f"{router} = Linear: must be the Module that the layer was made with"):
        layer(hidden())
    setattr(layer, router, held)
    hook = held.register_forward_hook(lambda *_: None)
    with refused(f"hook of {router} = forward hook: must not be there"):
        layer(hidden())
    hook.remove()
    assert torch.equal(layer(hidden())[0], want[0])


def test_parametrizations_of_torch_are_computed():
    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    layer, plain = make(), make()
    torch.nn.utils.parametrize.register_parametrization(
        layer.experts.linear_fc2, "weight", Doubled())
    for one, factor in ((layer, 1), (plain, 2)):
        one.got = one(hidden())[0] * factor
        one.got.sum().backward()
    torch.testing.assert_close(layer.got, plain.got)
    got = layer.experts.linear_fc2.parametrizations.weight.original.grad
    torch.testing.assert_close(got, plain.experts.linear_fc2.weight.grad)
