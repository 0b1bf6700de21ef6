"""Ranks as threads: their layers, dispatchers, and what becomes of a rank that fails."""

import time

import numpy
import pytest

import moe

WORLD = 4


@pytest.fixture
def config():
    return moe.MoEConfig(
        hidden_size=20, num_moe_experts=8, moe_router_topk=2, moe_ffn_hidden_size=12,
        gated_linear_unit=True, activation_func="silu", add_bias_linear=False,
        moe_token_dispatcher_type="alltoall")


@pytest.mark.parametrize("spec", ["reference_cpu:fp32", "naive_gpu:fp32"])
@pytest.mark.parametrize("dispatcher", ["allgather", "alltoall", "flex"])
def test_ranks_make_what_one_makes(config, dispatcher, spec):
    parameters = moe.random_parameters(config)
    hidden = numpy.random.default_rng(5).standard_normal((WORLD, 3, 1, 20))
    hidden = hidden.astype(numpy.float32)
    of_ranks = config.replace(expert_model_parallel_size=WORLD,
                              moe_token_dispatcher_type=dispatcher)

    def program(rank):
        groups = rank.process_groups(of_ranks)
        own = groups.shard_parameters(of_ranks, parameters)
        assert own["experts.linear_fc1.weight"].shape == (8 // WORLD, 24, 20)
        layer = moe.MoELayer(of_ranks, own, spec, groups)
        forward = layer.forward(hidden[rank.rank])
        gradients = forward.backward(hidden[rank.rank])
        return [numpy.asarray(part.copy()) for part in (
            forward.output, gradients.hidden_states,
            gradients.parameters["experts.linear_fc1.weight"])]

    made = moe.run_ranks(WORLD, program)
    whole = moe.MoELayer(config, parameters, spec).forward(hidden.reshape(-1, 1, 20))
    expected = whole.backward(hidden.reshape(-1, 1, 20))
    for part, got in zip((whole.output, expected.hidden_states,
                          expected.parameters["experts.linear_fc1.weight"]),
                         map(numpy.concatenate, zip(*made))):
        assert moe.relative_error(got, part) < 1e-5


def test_a_dispatcher_over_ranks_and_what_it_sent(config):
    of_ranks = config.replace(expert_model_parallel_size=WORLD)
    rows = numpy.ones((3, 20), numpy.float32)

    def program(rank):
        groups = rank.process_groups(of_ranks)
        assert groups.members["ep"] == [0, 1, 2, 3]
        dispatcher = moe.TokenDispatcher(of_ranks, groups=groups)
        routing_map = numpy.zeros((3, 8), bool)
        routing_map[:, 6] = True  # all to rank 3
        probs = routing_map.astype(numpy.float32)
        rank.reset_sent()
        dispatched = dispatcher.dispatch(rows * rank.rank, probs, routing_map)
        sent = rank.sent()
        back = dispatched.combine(dispatched.rows)
        return dispatched.tokens_per_expert.copy().numpy(), back.copy().numpy(), sent

    made = moe.run_ranks(WORLD, program)
    assert [counts.tolist() for counts, *_ in made] == [[0, 0]] * 3 + [[12, 0]]
    for rank, (_, back, sent) in enumerate(made):
        numpy.testing.assert_array_equal(back, rows * rank)
        if rank != 3:  # rows, and their probabilities
            assert sent["all_to_all"] == {3: 3 * 20 * 4 + 3 * 4}


def test_collectives():
    def program(rank):
        mine = numpy.full((rank.rank + 1, 2), rank.rank)
        rank.barrier()
        return rank.all_gather(mine).numpy(), rank.all_reduce(mine[:1].copy()).numpy()

    for gathered, summed in moe.run_ranks(3, program):
        assert gathered.tolist() == [[0, 0], [1, 1], [1, 1], [2, 2], [2, 2], [2, 2]]
        assert summed.tolist() == [[3, 3]]


def test_the_first_rank_to_raise_is_heard():
    def program(rank):
        if rank.rank == 2:
            raise KeyError("mine")
        rank.barrier()

    start = time.monotonic()
    with pytest.raises(KeyError, match="mine"):
        moe.run_ranks(WORLD, program)
    assert time.monotonic() - start < 10


def test_a_rank_that_stays_away_ends_all():
    def program(rank):
        if rank.rank != 1:
            rank.barrier()

    with pytest.raises(moe.RankError, match="barrier"):
        moe.run_ranks(3, program, deadline=0.5)


def test_ranks_that_have_ended_are_refused(config):
    of_ranks = config.replace(expert_model_parallel_size=WORLD)
    parameters = moe.random_parameters(config)

    def program(rank):
        groups = rank.process_groups(of_ranks)
        own = groups.shard_parameters(of_ranks, parameters)
        return rank, groups, moe.MoELayer(of_ranks, own, groups=groups)

    rank, groups, layer = moe.run_ranks(WORLD, program)[1]
    hidden = numpy.zeros((3, 1, 20), numpy.float32)
    for call in (lambda: rank.rank, rank.barrier, lambda: groups.members,
                 lambda: moe.TokenDispatcher(of_ranks, groups=groups),
                 lambda: layer.forward(hidden)):
        with pytest.raises(moe.InputError, match="run_ranks"):
            call()


def test_a_world_that_cannot_be(config):
    of_ranks = config.replace(expert_model_parallel_size=8)
    with pytest.raises(moe.InputError, match="expert_model_parallel_size"):
        moe.run_ranks(3, lambda rank: rank.process_groups(of_ranks))
    for size in (0, -1, 65):
        with pytest.raises(moe.InputError, match=f"world_size = {size}"):
            moe.run_ranks(size, print)
    with pytest.raises(moe.InputError, match="deadline"):
        moe.run_ranks(2, print, deadline=0)
