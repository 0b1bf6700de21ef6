"""Shards of a Megatron layer, put together to the weights of a golden file."""

import numpy
import pytest

pytest.importorskip("torch")

import moe  # noqa: E402
from moe.capture import CaptureError, from_megatron  # noqa: E402


@pytest.mark.parametrize("sizes", [
    dict(expert_model_parallel_size=2),
    dict(tensor_model_parallel_size=2, sequence_parallel=True,
         expert_tensor_parallel_size=2, expert_model_parallel_size=2),
    dict(tensor_model_parallel_size=2, sequence_parallel=True,
         expert_tensor_parallel_size=1, expert_model_parallel_size=4),
])
@pytest.mark.parametrize("gated", [False, True])
def test_shards_become_the_whole_layer(sizes, gated):
    """Cut as this layer cuts them, which golden files of Megatron's ranks hold to."""
    config = moe.MoEConfig(
        hidden_size=6, num_moe_experts=4, moe_router_topk=2, moe_ffn_hidden_size=10,
        moe_shared_expert_intermediate_size=8, gated_linear_unit=gated,
        add_bias_linear=False, activation_func="silu",
        moe_token_dispatcher_type="alltoall", **sizes)
    whole = {name: numpy.asarray(value)
             for name, value in moe.random_parameters(config.replace(
                 tensor_model_parallel_size=1, expert_model_parallel_size=1,
                 expert_tensor_parallel_size=1, sequence_parallel=False)).items()}
    ranks, etp = 4, sizes.get("expert_tensor_parallel_size", 1)

    def shards(rank):
        groups = rank.process_groups(config)
        own = groups.shard_parameters(config, whole)
        r, ep = rank.rank, sizes["expert_model_parallel_size"]
        tp = sizes.get("tensor_model_parallel_size", 1)
        return {"place": (r // etp % ep, r % etp, r % tp),
                "weights": {n: numpy.array(numpy.asarray(v)) for n, v in own.items()}}
    found = from_megatron.whole_layer(moe.run_ranks(ranks, shards), gated)
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        numpy.testing.assert_array_equal(found[name], value, name)


def test_what_a_layer_got_and_gave_must_be_finite():
    import torch
    from moe.capture.calls import Call
    case = object.__new__(from_megatron.Case)
    case.where, case.weights = "layer 3", dict
    case.rows_that_fit = lambda weights: 4
    case.call = Call(torch.zeros(5, 2, 3), (), {}, output=torch.zeros(5, 2, 3))
    case.call.output[3:, 1] = torch.nan  # the last row is not of the file
    with pytest.raises(CaptureError, match="^layer 3: output = NaN for 1 token of 8: "):
        case.run()


def test_names_of_both_kinds_of_experts_are_known():
    import torch
    tensors = {e: torch.full((2, 3), float(e)) for e in range(3)}
    for form in ("experts.local_experts.{}.linear_fc1.weight",
                 "experts.linear_fc1.weight{}"):
        found = from_megatron.gathered(
            [(form.format(e), tensors[e]) for e in (2, 0, 1)], "layer 0")
        assert list(found) == ["experts.linear_fc1.weight"]
        assert torch.equal(found["experts.linear_fc1.weight"][:, 0, 0],
                           torch.arange(3.0))
    with pytest.raises(CaptureError, match="layer 0 = experts.weight1: a parameter"):
        from_megatron.gathered([("experts.weight1", tensors[0])], "layer 0")
