"""moe.torch.MoELayer in training: dtypes, copies, counts and losses."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch")
import moe
import moe.torch
from torch_small import (
    B, BIASED, E, FIELDS, H, K, S, gradients, hidden, make, refused)

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
