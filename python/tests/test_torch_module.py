"""moe.torch.MoELayer as a module: memory, changes, copies, and what PyTorch does to
modules."""

import copy
import pickle
import re

import pytest

torch = pytest.importorskip("torch")
import moe
import moe.torch
from moe.torch.function import _kept

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


# ---------------------------------------------------------------- dtypes

@pytest.mark.parametrize("inputs", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [torch.float64, torch.float32, torch.bfloat16])
def test_dtypes_of_output_and_gradients(inputs, weights):
    layer = make("reference_cpu:fp64", dtype=weights)
    leaf = hidden(dtype=inputs).requires_grad_()
    output, _ = layer(leaf)
    output.sum().backward()
    assert output.dtype == leaf.grad.dtype == inputs
    assert {p.grad.dtype for p in layer.parameters()} == {weights}


def test_modules_are_moved_and_cast():
    layer = make(**BIASED)
    layer.router.expert_bias.normal_(std=0.1)
    bias = layer.router.expert_bias.clone()
    layer.bfloat16()
    assert layer.router.weight.dtype == torch.bfloat16
    # Small steps would be lost in bf16: as Megatron keeps it
    assert torch.equal(layer.router.expert_bias, bias)
    assert layer(hidden(dtype=torch.bfloat16))[0].dtype == torch.bfloat16
    layer.double()
    assert layer.router.expert_bias.dtype == torch.float32
    assert layer(hidden())[0].dtype == torch.float32
    layer.to("cpu", torch.float32)
    assert torch.equal(layer.router.expert_bias, bias)


def test_half_is_refused():
    with refused("hidden_states = float16: must be float64, float32 or bfloat16"):
        make()(hidden().half())
    with refused("experts.linear_fc1.weight = float16: must be float64"):
        make().half()(hidden())
    block = moe.torch.MoELayer(moe.MoEConfig(**FIELDS), names="mixtral").half()
    with refused("experts.gate_up_proj = float16: must be"):
        block(hidden())


def test_autocast_changes_nothing():
    layer = make()
    want = gradients(layer)
    layer.zero_grad()
    leaf = hidden().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(leaf)[0]
    assert output.dtype == torch.float32
    output.square().sum().backward()
    for got, expected in zip([leaf.grad, *(p.grad for p in layer.parameters())], want):
        assert torch.equal(got, expected)


@pytest.mark.filterwarnings("ignore")
def test_compile_breaks_its_graph_here():
    layer = make()
    model = torch.nn.Sequential(torch.nn.Linear(H, H), torch.nn.ReLU())
    whole = lambda x: layer(model(x))[0] * 2
    want = whole(hidden())
    got = torch.compile(whole, backend="eager")(hidden())
    torch.testing.assert_close(got, want)
    got.sum().backward()
    assert layer.router.weight.grad is not None


# ---------------------------------------------------------------- copies

def test_copies_are_layers_of_their_own():
    layer = make("reference_cpu:fp64", **BIASED)
    want = layer(hidden())[0]
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.config == layer.config and other.spec == layer.spec
        assert repr(other) == repr(layer)
        assert torch.equal(other(hidden())[0], want)
        with torch.no_grad():
            other.experts.linear_fc2.weight.zero_()
        assert not other(hidden())[0].any()
    assert torch.equal(layer(hidden())[0], want)


def test_state_dict_has_megatrons_names():
    layer = make(**BIASED, moe_shared_expert_intermediate_size=4)
    shapes = {name: tuple(t.shape) for name, t in layer.state_dict().items()}
    assert shapes == moe.parameter_shapes(layer.config)
    assert [name for name, _ in layer.named_buffers()] == ["router.expert_bias"]


def test_layers_start_as_megatrons_do():
    torch.manual_seed(3)
    layer = moe.torch.MoELayer(
        moe.MoEConfig(**FIELDS | dict(add_bias_linear=True, moe_ffn_hidden_size=200)),
        dtype=torch.float64)
    assert layer.experts.linear_fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert layer.experts.linear_fc1.weight.dtype == torch.float64
    assert not layer.router.bias.any()


# ---------------------------------------------------------------- training

def test_the_expert_bias_moves_by_what_was_counted():
    layer = make(**BIASED, moe_router_bias_update_rate=0.25)
    reference = moe.MoELayer(layer.config, {n: t.detach() for n, t in
                                            layer.state_dict().items()})
    for seed in range(2):
        layer(hidden(seed))
        reference.forward(hidden(seed))
    layer.eval()(hidden(5))
    with torch.no_grad():
        layer.train()(hidden(6))
    want = torch.from_dlpack(reference.update_expert_bias())
    assert layer.update_expert_bias() is layer.router.expert_bias
    assert torch.equal(layer.router.expert_bias, want) and want.abs().max() == 0.25
    # It is the router's from now on
    fresh = make(**BIASED)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(layer(hidden())[0], fresh(hidden())[0])


@pytest.mark.parametrize("before", [True, False])
def test_the_bias_may_move_before_or_after_the_optimizers_step(before):
    layer = make("reference_cpu:fp64", **BIASED)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        bias = layer.router.expert_bias.clone()
        gradients(layer)
        if before:
            layer.update_expert_bias()
        optimizer.step()
        if not before:
            layer.update_expert_bias()
        assert not torch.equal(layer.router.expert_bias, bias)


def test_counts_that_are_gone_are_not_passed_over():
    layer = make("reference_cpu:fp64", **BIASED)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    gradients(layer)
    optimizer.step()
    gradients(layer)
    with refused("update_expert_bias() = late: must come once per optimizer step"):
        layer.update_expert_bias()
    assert not layer.router.expert_bias.any()
    gradients(layer)
    assert layer.update_expert_bias().any()


def test_evaluation_between_steps_counts_nothing():
    layer = make("reference_cpu:fp64", **BIASED)
    for _ in range(3):
        layer.eval()(hidden(3))
        with torch.no_grad():
            layer.router.weight.mul_(1.1)
        gradients(layer.train())
        assert layer.update_expert_bias().any()


def test_layers_without_a_bias_have_none_to_update():
    layer = make()
    layer(hidden())
    assert layer.update_expert_bias() is None and layer.update_qb_beta() is None


def test_quantile_balancing_moves_its_numbers():
    layer = make(moe_router_load_balancing_type=["quantile_balancing"],
                 moe_aux_loss_coeff=[0.0], num_moe_experts=7)
    assert layer.update_qb_beta() is layer.router.qb_beta
    layer(hidden())
    assert layer.update_qb_beta().any()


def test_the_global_loss_forgets_with_a_change_of_the_parameters():
    layer = make(moe_router_load_balancing_type=["global_aux_loss"])

    def loss(seed):
        layer(hidden(seed))
        return layer.losses["global_load_balancing_loss"]

    first, second = loss(2), loss(3)
    layer.reset_global_aux_loss_tracker()
    alone = loss(3)
    assert alone != second
    with torch.no_grad():
        layer.router.weight.mul_(1)
    assert loss(2) == first


def test_the_scale_of_the_losses_is_read_by_the_backward():
    layer = make()
    zero = hidden().requires_grad_()
    output = layer(zero)[0]
    layer.main_loss_backward_scale = 3.0
    (output * 0).sum().backward()
    got = layer.router.weight.grad.clone()
    layer.zero_grad()
    layer.main_loss_backward_scale = 1.0
    (layer(zero)[0] * 0).sum().backward()
    assert got.any()
    torch.testing.assert_close(got, 3 * layer.router.weight.grad)


def test_token_ids_and_given_experts():
    layer = make(moe_router_hash_vocab_size=11, moe_router_score_function="sqrtsoftplus")
    token_ids = torch.randint(11, (B, S))
    assert layer.router.tid2eid.shape == (11, K)
    assert layer.router.tid2eid.dtype == torch.int64
    output = layer(hidden(), token_ids=token_ids)[0]
    assert output.shape == (S, B, H)
    replay = make(moe_enable_routing_replay=True)
    chosen = torch.stack([torch.randperm(E)[:K] for _ in range(S * B)])
    assert not torch.equal(replay(hidden(), target_topk_idx=chosen)[0],
                           replay(hidden())[0])


# ---------------------------------------------------------------- bad input

def test_bad_input():
    with refused("hidden_states = (7, 3, 9): must be (S, B, H) with H = 10"):
        make()(torch.zeros(S, B, 9))
    with refused("hidden_states = (7, 10): must be (B, S, H) with H = 10"):
        moe.torch.MoELayer(moe.MoEConfig(**FIELDS), names="mixtral")(torch.zeros(S, H))
    with refused("hidden_states = NoneType: must be a tensor of PyTorch"):
        make()(None)
    with refused("hidden_states = ndarray: must be a tensor of PyTorch; torch.from_num"):
        make()(hidden().numpy())
    with refused("hidden_states = int64: must be float64"):
        make()(torch.zeros(S, B, H, dtype=torch.int64))
    with refused("padding_mask = uint8 (7, 3): must be uint8 (B, S) = (3, 7)"):
        make()(hidden(), torch.zeros(S, B, dtype=torch.bool))
    with refused("logits[token 0, expert"):
        make()(hidden() * float("nan"))
    with refused("names = mistral: must be megatron, mixtral, qwen3_moe, deepseek_v3, "):
        make(names="mistral")
    with refused("names = mixtral: this config has shared_experts.linear_fc1.weight"):
        make(names="mixtral", moe_shared_expert_intermediate_size=4)
    with refused("names = gpt_oss: that model has router.bias, and this config does not"):
        make(names="gpt_oss")
    with refused("gated_linear_unit = False: must be true with names mixtral"):
        make(names="mixtral", gated_linear_unit=False)
    with refused("expert_model_parallel_size = 5: must be 1 in moe.torch"):
        make(expert_model_parallel_size=5)
    with refused("spec experts = quick_gpu: available tiers are"):
        make("quick_gpu:fp32")
    with refused("config = dict: must be a moe.MoEConfig"):
        moe.torch.MoELayer(FIELDS)
    with refused("hidden_states = meta: must be on the CPU or a CUDA device"):
        make()(hidden().to("meta"))
