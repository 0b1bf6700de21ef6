"""Router, dispatcher, experts and shared experts, wired by hand, are the layer."""

import numpy
import pytest

import moe


def by_hand(config, parameters, spec, hidden, doutput):
    """Output and gradients of the layer, from its components."""
    tokens = hidden.reshape(-1, config.hidden_size)
    routed = moe.Router(config, parameters, spec).forward(hidden)
    shared = moe.SharedExperts(config, parameters, spec).forward(tokens)
    dispatched = moe.TokenDispatcher(config, spec).dispatch(
        tokens, routed.probs, routed.routing_map)
    experts = moe.Experts(config, parameters, spec).forward(
        dispatched.rows, dispatched.tokens_per_expert, dispatched.row_probs)
    output = dispatched.combine(experts.rows, shared.output)

    doutput = doutput.reshape(tokens.shape)
    drows, dprobs, gradients = experts.backward(dispatched.combine_backward(doutput))
    dhidden, dprobs = dispatched.dispatch_backward(drows, dprobs)
    of_router, more = routed.backward(dprobs)
    of_shared, most = shared.backward(doutput)
    dhidden = sum(numpy.asarray(part.copy("fp64")).reshape(hidden.shape)
                  for part in (dhidden, of_router, of_shared))
    return output, dhidden, gradients | more | most


@pytest.mark.parametrize("spec, bound", [
    ("reference_cpu:fp64", 1e-12), ("reference_cpu:fp32", 1e-6),
    ("naive_gpu:fp32", 1e-6)])
def test_the_components_are_the_layer(config, hidden, spec, bound):
    parameters = moe.random_parameters(config)
    doutput = numpy.random.default_rng(8).standard_normal(hidden.shape)
    output, dhidden, gradients = by_hand(config, parameters, spec, hidden, doutput)
    forward = moe.MoELayer(config, parameters, spec).forward(hidden)
    expected = forward.backward(doutput)
    flat = numpy.asarray(forward.output.copy()).reshape(output.shape)
    assert moe.relative_error(output, flat) <= bound
    assert moe.relative_error(dhidden, expected.hidden_states) <= bound
    assert gradients.keys() == expected.parameters.keys()
    for name, gradient in expected.parameters.items():
        assert moe.relative_error(gradients[name], gradient) <= bound, name


def test_permutation_is_numpys():
    rng = numpy.random.default_rng(1)
    tokens, probs = rng.standard_normal((7, 3)), rng.random((7, 4))
    routing_map = rng.random((7, 4)) < 0.4
    rows, row_probs, ids = moe.permute(tokens, routing_map, probs)
    expert, token = numpy.nonzero(routing_map.T)
    numpy.testing.assert_array_equal(ids.numpy(), token)
    numpy.testing.assert_array_equal(rows.numpy(), tokens[token])
    numpy.testing.assert_array_equal(row_probs.numpy(), probs[token, expert])
    back = moe.unpermute(rows, routing_map).numpy()
    numpy.testing.assert_allclose(back, tokens * routing_map.sum(1)[:, None])
    chunks = moe.sort_chunks_by_idxs(tokens, [2, 0, 5], [2, 0, 1]).numpy()
    numpy.testing.assert_array_equal(chunks, numpy.vstack([tokens[2:], tokens[:2]]))


def test_what_components_refuse(config, hidden):
    parameters = moe.random_parameters(config)
    tokens = hidden.reshape(-1, 20)
    probs = numpy.zeros((21, 5), numpy.float32)
    routing_map = numpy.zeros((21, 5), bool)
    dispatcher = moe.TokenDispatcher(config)
    experts = moe.Experts(config, parameters)
    dispatched = dispatcher.dispatch(tokens, probs, routing_map)
    row_probs = numpy.zeros(21, numpy.float32)
    plain = config.replace(moe_shared_expert_intermediate_size=None,
                           moe_shared_expert_gate=False)
    for call, words in [
            (lambda: dispatcher.dispatch(tokens[:, 1:].copy(), probs, routing_map),
             "hidden_states"),
            (lambda: dispatcher.dispatch(tokens, probs[:, 1:].copy(), routing_map),
             "probs"),
            (lambda: dispatcher.dispatch(tokens, probs, routing_map.astype(float)),
             "routing_map"),
            (lambda: dispatcher.dispatch(tokens, probs, ~routing_map),
             "5 experts of token 0"),
            (lambda: dispatched.combine(tokens), "rows"),
            (lambda: dispatched.combine_backward(tokens[1:]), "grad_output"),
            (lambda: dispatched.dispatch_backward(tokens, row_probs), "grad_rows"),
            (lambda: experts.forward(tokens, numpy.full(5, 4), row_probs), "20 in all"),
            (lambda: experts.forward(tokens, numpy.array([30, -9, 0, 0, 0]), row_probs),
             "tokens_per_expert = -9"),
            (lambda: experts.forward(tokens, numpy.full(4, 5), row_probs),
             "tokens_per_expert"),
            (lambda: experts.forward(tokens, numpy.array([21, 0, 0, 0, 0]), probs),
             "row_probs"),
            (lambda: moe.Experts(config, {}), "absent"),
            (lambda: moe.SharedExperts(plain, parameters), "none"),
            (lambda: moe.Router(config, parameters).forward(tokens[0]), "hidden_states"),
            (lambda: moe.permute(tokens[1:], routing_map), "tokens"),
            (lambda: moe.permute(tokens, routing_map[0]), "routing_map"),
            (lambda: moe.sort_chunks_by_idxs(tokens, [21], [1]), "order"),
            (lambda: moe.sort_chunks_by_idxs(tokens, [20], [0]), "20 in all"),
            (lambda: moe.sort_chunks_by_idxs(tokens, [22, -1], [0, 1]), "sizes")]:
        with pytest.raises(moe.InputError) as caught:
            call()
        assert words in str(caught.value) and "\n" not in str(caught.value), words


def test_a_trace_has_every_step(config, hidden):
    layer = moe.MoELayer(config, moe.random_parameters(config), "reference_cpu:fp64")
    trace = moe.trace(layer, hidden, hidden)
    numbers = [step.number for step in trace.steps]
    assert numbers == sorted(numbers)
    assert {1, 2, 3, 6, 7, 10, 11, 14, 19, 20} <= {*numbers}
    gating = next(step for step in trace.steps if step.step == moe.Step.gating)
    assert (gating.circled, gating.number) == ("②", 2) and "logits" in gating.values
    weight = layer.parameters["router.weight"].numpy()
    expected = hidden.reshape(-1, 20).astype(numpy.float64) @ weight.T
    assert moe.relative_error(trace["logits"], expected) < 1e-6
    assert moe.relative_error(trace.forward.output, layer.forward(hidden).output) == 0
    assert trace.gradients.parameters.keys() == layer.parameters.keys()
    assert moe.Step.gating in trace.seconds()
    with pytest.raises(moe.InputError, match="logits"):
        trace["no such value"]
    assert moe.trace(layer, hidden).gradients is None
    assert "logits" in trace and list(trace) == trace.keys()


def test_no_times_of_the_executor(config, hidden):
    layer = moe.MoELayer(config, moe.random_parameters(config), "naive_gpu:fp32")
    if not layer.spec.is_emulated:
        pytest.skip("a GPU's times are shown")
    with pytest.raises(moe.InputError, match="executor"):
        moe.trace(layer, hidden).seconds()
