"""moe.floors(), moe.kept_tensors(), moe.kept_bytes() and moe.embed_text()."""

import pathlib
import subprocess
import sys

import numpy
import pytest

import moe

SPECS = ["reference_cpu:fp64", "reference_cpu:fp32", "naive_gpu:bf16"]


def small(**fields):
    return moe.MoEConfig(
        hidden_size=24, num_moe_experts=5, moe_router_topk=2, moe_ffn_hidden_size=16,
        gated_linear_unit=True, activation_func="silu", add_bias_linear=False, **fields)


def test_floors_are_the_formulas():
    T, H, E, K, F = 21, 24, 5, 2, 16
    N = T * K
    floors = moe.floors(small(), T, dtype="bf16")
    fc1 = floors[moe.Step.fc1]
    assert fc1.formula.startswith("NH + 2EFH + 2NF")
    assert fc1.bytes == 2 * (N * H + 2 * E * F * H + 2 * N * F)
    assert fc1.flops == 2 * N * H * 2 * F
    assert fc1.metadata > 0 and "FLOP" in repr(fc1)
    assert moe.Step.shared_experts not in floors and moe.Step.token_dropping not in floors
    fewer = moe.floors(small(), T, num_rows=N - 4, dtype="fp32")[moe.Step.fc1]
    assert fewer.bytes == 4 * ((N - 4) * (H + 2 * F) + 2 * E * F * H)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("fields", [
    {}, {"recompute_granularity": "selective", "recompute_modules": ["moe_act"],
         "moe_grouped_gemm": True},
    {"moe_router_dtype": "fp64"}], ids=["all", "moe_act", "router"])
def test_what_is_kept_is_counted(spec, fields):
    hidden = numpy.random.default_rng(3).standard_normal((7, 3, 24)).astype("float32")
    metadata = []
    for width in (16, 40):  # maps, ids and counts know no widths
        config = small(**fields).replace(moe_ffn_hidden_size=width)
        layer = moe.MoELayer(config, moe.random_parameters(config), spec)
        layer.forward(hidden)
        kept = moe.kept_tensors(config, spec, 21)
        keeps_activations = "act(h) p" in [k.name for k in kept]
        assert keeps_activations == ("recompute_modules" not in fields)
        assert kept[0].name == "tokens" and (
            "moe_router_dtype" not in fields or kept[0].dtype == "fp64")
        metadata.append(moe.kept_bytes(layer, hidden) - sum(k.bytes for k in kept))
    assert metadata[0] == metadata[1] > 0
    assert metadata[0] < 21 * 400


def test_embedded_text_is_that_of_the_program():
    text = pathlib.Path(__file__).resolve().parents[2] / "README.md"
    config = moe.MoEConfig("mixtral_8x7b", scale=64)
    hidden = moe.embed_text(text.read_bytes()[:3 * 40], config.hidden_size, 3, seed=5)
    assert hidden.shape == (40, 3, config.hidden_size)
    routed = moe.Router(config, moe.random_parameters(config, 5)).forward(hidden)
    arguments = ["compare", "--text", str(text), "--scale", "64", "--seq-length", "40",
                 "--micro-batch-size", "3", "--seed", "5", "--tier", "reference_cpu",
                 "--golden", "none", "--report", "none", "--repeats", "1"]
    shown = subprocess.run([sys.executable, "-m", "moe", *arguments], text=True,
                           capture_output=True, check=True).stdout
    load = [int(line.split()[2]) for line in shown.splitlines()
            if line.startswith("  expert ")]
    assert load == numpy.asarray(routed.routing_map).sum(axis=0).tolist()


def test_a_byte_sees_the_two_before_it():
    first, other = (numpy.asarray(moe.embed_text(text, 16, 2))
                    for text in (b"abcdefgh", b"abXdefgh"))
    changed = (first != other).any(axis=2)  # (S, B): two sequences of four
    assert changed.tolist() == [[False, False], [False, False], [True, False],
                                [True, False]]


@pytest.mark.parametrize("call, field", [
    (lambda: moe.embed_text(b"abc", 8, 2), "micro_batch_size = 2: must divide"),
    (lambda: moe.embed_text(b"abc", 0), "hidden_size = 0"),
    (lambda: moe.floors(small(), -1), "num_tokens = -1"),
    (lambda: moe.floors(small(), 1, num_rows=-2), "num_rows = -2"),
    (lambda: moe.floors(small(), 1, dtype="fp8"), "dtype = fp8"),
    (lambda: moe.kept_tensors(small(), moe.ModuleSpec(
        "reference_cpu:fp32", router="reference_cpu:fp64"), 1), "spec = "),
])
def test_bad_input_is_one_line(call, field):
    with pytest.raises(moe.InputError) as error:
        call()
    assert str(error.value).startswith(field) and "\n" not in str(error.value)


def test_text_is_bytes():
    with pytest.raises(TypeError):
        moe.embed_text("abc", 8)


@pytest.mark.parametrize("tokens", [-1, 10 ** 18])
def test_numbers_of_tokens_whose_bytes_cannot_be_counted(tokens):
    for ask in (lambda: moe.floors(small(), tokens),
                lambda: moe.kept_tensors(small(), "reference_cpu:fp32", tokens)):
        with pytest.raises(moe.InputError, match=f"num_tokens = {tokens}"):
            ask()
