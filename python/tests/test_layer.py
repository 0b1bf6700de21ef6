"""The layer: against golden files, between tiers, and what it refuses."""

import copy
import pickle

import numpy
import pytest

import moe

CASES = ["hf_mixtral", "hf_deepseek_v3", "hf_gpt_oss", "models/hf_nemotron_h_latent"]
TIERS = [("reference_cpu:fp64", 1e-6, 1e-6), ("reference_cpu:fp32", 1e-5, 1e-5),
         ("naive_gpu:fp32", 1e-5, 1e-5), ("optimized_gpu:bf16", 2e-2, 3e-2)]


@pytest.mark.parametrize("spec, forward_bound, backward_bound", TIERS)
@pytest.mark.parametrize("name", CASES)
def test_golden_values(golden, name, spec, forward_bound, backward_bound):
    case = golden(name)
    layer = moe.MoELayer(case.config, case.parameters, spec)
    forward = layer.forward(case["input.hidden_states"], case.get("input.padding_mask"))
    error = moe.relative_error
    assert error(forward.output, case["expect.output"]) <= forward_bound
    gradients = forward.backward(case["input.grad_output"])
    expected = case["expect.grad.hidden_states"]
    assert error(gradients.hidden_states, expected) <= backward_bound
    names = [name for name in gradients.parameters
             if case.get(f"expect.grad.{name}") is not None]
    assert len(names) >= 3
    for name in names:
        expected = case[f"expect.grad.{name}"]
        assert error(gradients.parameters[name], expected) <= backward_bound, name


def test_losses_and_their_scale(config, hidden):
    layer = moe.MoELayer(config, moe.random_parameters(config), "reference_cpu:fp64")
    forward = layer.forward(hidden)
    assert list(forward.losses) == ["load_balancing_loss"]
    zero = numpy.zeros_like(hidden)  # what is left is the loss's own gradient
    once = forward.backward(zero).parameters["router.weight"].numpy().copy()
    twice = forward.backward(zero, 2.0).parameters["router.weight"].numpy()
    assert numpy.abs(once).max() > 0
    numpy.testing.assert_allclose(twice, 2 * once, rtol=1e-12)
    assert layer.forward(hidden, training=False).losses == {}


def test_the_loss_gradient_by_finite_differences(config, hidden):
    parameters = {name: value.copy("fp64").numpy() for name, value
                  in moe.random_parameters(config).items()}
    weight = parameters["router.weight"]
    direction = numpy.random.default_rng(3).standard_normal(weight.shape)

    def at(step):
        moved = dict(parameters, **{"router.weight": weight + step * direction})
        layer = moe.MoELayer(config, moved, "reference_cpu:fp64")
        forward = layer.forward(hidden.astype(numpy.float64))
        return forward, (forward.output.numpy().sum()
                         + 0.01 * forward.losses["load_balancing_loss"])

    forward, _ = at(0.0)
    gradient = forward.backward(numpy.ones(hidden.shape)).parameters["router.weight"]
    # Scores are fp32 in every tier, as Megatron's; and with larger steps experts change.
    step = 1e-4
    slope = (at(step)[1] - at(-step)[1]) / (2 * step)
    assert numpy.vdot(gradient.numpy(), direction) == pytest.approx(slope, rel=1e-3)


def test_two_axes_are_a_batch_of_one(config, hidden):
    layer = moe.MoELayer(config, moe.random_parameters(config))
    flat = hidden.reshape(-1, 20)
    forward = layer.forward(flat)
    assert forward.output.shape == flat.shape
    assert forward.backward(flat).hidden_states.shape == flat.shape
    whole = layer.forward(flat.reshape(-1, 1, 20)).output
    numpy.testing.assert_array_equal(forward.output.numpy(), whole.numpy()[:, 0])


def test_a_mask_of_bools(hidden, golden):
    config = moe.MoEConfig(
        hidden_size=20, num_moe_experts=5, moe_ffn_hidden_size=12,
        moe_router_load_balancing_type="aux_loss", moe_aux_loss_coeff=0.01,
        add_bias_linear=False)
    layer = moe.MoELayer(config, moe.random_parameters(config))
    mask = numpy.zeros((3, 7), bool)
    mask[1, 4:] = True
    with_mask = layer.forward(hidden, mask).losses["load_balancing_loss"]
    assert with_mask != layer.forward(hidden).losses["load_balancing_loss"]
    with pytest.raises(moe.InputError, match=r"^padding_mask = .*\(3, 7\)"):
        layer.forward(hidden, mask.T.copy())


def test_the_expert_bias_moves(hidden):
    config = moe.MoEConfig(
        hidden_size=20, num_moe_experts=5, moe_ffn_hidden_size=12,
        moe_router_score_function="sigmoid", moe_router_enable_expert_bias=True,
        add_bias_linear=False)
    layer = moe.MoELayer(config, moe.random_parameters(config))
    before = layer.update_expert_bias().copy().numpy()
    layer.forward(hidden)
    moved = layer.update_expert_bias().copy().numpy() - before
    assert numpy.abs(moved).max() == pytest.approx(0.001, rel=1e-3)
    assert layer.update_qb_beta() is None


def test_what_a_config_says():
    config = moe.MoEConfig("mixtral_8x7b", scale=32, moe_router_topk=3)
    assert (config.hidden_size, config.moe_router_topk) == (128, 3)
    assert config == moe.MoEConfig.from_json(config.to_json())
    assert config != config.replace(moe_router_topk=2)
    assert config.to_dict()["num_moe_experts"] == 8
    assert "moe_router_topk=3" in repr(config)
    assert config != None and {config: 1}[config.replace()] == 1  # noqa: E711
    assert pickle.loads(pickle.dumps(config)) == config == copy.deepcopy(config)
    assert "mixtral_8x7b" in moe.presets()
    assert moe.parameter_shapes(config)["router.weight"] == (8, 128)


@pytest.mark.parametrize("fields, words", [
    ({"hidden": 3}, "hidden = 3"),
    ({"hidden_size": "a"}, "hidden_size"),
    ({"hidden_size": 2 ** 80}, "hidden_size"),
    ({"hidden_size": object()}, "hidden_size = object"),
    ({"moe_router_topk": 9}, "moe_router_topk = 9"),
    ({"preset": "gpt_5"}, "gpt_5"),
    ({"scale": 0}, "scale = 0")])
def test_a_config_that_cannot_be(fields, words):
    with pytest.raises(moe.InputError) as caught:
        moe.MoEConfig(**{"num_moe_experts": 8, "hidden_size": 16} | fields)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_specs():
    spec = moe.ModuleSpec("reference_cpu:fp32", router="reference_cpu:fp64")
    assert spec.router == "reference_cpu:fp64" and spec.experts == "reference_cpu:fp32"
    assert spec == moe.ModuleSpec("router=reference_cpu:fp64")
    assert moe.ModuleSpec("naive_gpu:bf16").experts == "naive_gpu:bf16"
    assert spec != None and len({spec, pickle.loads(pickle.dumps(spec))}) == 1  # noqa
    for text in ("gpu:fp32", "reference_cpu:bf16", "router=naive_gpu:fp16", "a=b", ""):
        with pytest.raises(moe.InputError):
            moe.ModuleSpec(text)
    names = [tier.name for tier in moe.tiers()]
    assert names == ["reference_cpu", "naive_gpu", "optimized_gpu"]


def test_a_mix_of_tiers(config, hidden):
    parameters = moe.random_parameters(config)
    mixed = moe.ModuleSpec("reference_cpu:fp32", experts="naive_gpu:fp32")
    got = moe.MoELayer(config, parameters, mixed).forward(hidden).output
    expected = moe.MoELayer(config, parameters).forward(hidden).output
    assert 0 < moe.relative_error(got, expected) < 1e-5


def test_what_a_layer_refuses(config, hidden):
    parameters = dict(moe.random_parameters(config))
    layer = moe.MoELayer(config, parameters)
    bad = hidden.copy()
    bad[1, 2, 3] = numpy.nan
    for call, words in [
            (lambda: layer.forward(hidden[:, :, :-1].copy()), "hidden_states = fp32"),
            (lambda: layer.forward(hidden[0, 0]), "hidden_states"),
            (lambda: layer.forward(hidden.astype(numpy.int64)), "int64"),
            (lambda: layer.forward(hidden[:, ::2]), "strides"),
            (lambda: layer.forward(bad), "logit"),
            (lambda: layer.forward(hidden, token_ids=numpy.zeros((3, 7), int)),
             "token_ids"),
            (lambda: layer.forward(hidden).backward(hidden[1:]), "grad_output"),
            (lambda: moe.MoELayer(config.replace(expert_model_parallel_size=5),
                                  parameters), "expert_model_parallel_size"),
            (lambda: moe.MoELayer(config, {}), "absent"),
            (lambda: moe.MoELayer(config, parameters | {"router.wieght": hidden}),
             "router.wieght = given: this layer has experts.linear_fc1.weight"),
            (lambda: moe.MoELayer(config, parameters, 3), "spec = int"),
            (lambda: moe.relative_error(hidden, hidden[1:]), "got")]:
        with pytest.raises(moe.InputError) as caught:
            call()
        assert words in str(caught.value) and "\n" not in str(caught.value)
    layer.forward(hidden)  # it is none the worse


def test_errors_have_a_family():
    assert issubclass(moe.InputError, ValueError)
    assert issubclass(moe.RankError, moe.InputError)
    assert issubclass(moe.InternalError, RuntimeError)
