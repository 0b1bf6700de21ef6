"""What capture writes and refuses, as far as that needs no torch."""

import json
import os
import struct
import subprocess
import sys

import numpy
import pytest

import moe
from conftest import GOLDEN, read_safetensors
from moe.capture import CaptureError, golden, layout
from moe.capture.cli import main, read_bytes, read_layers

CONFIG = {"hidden_size": 4}


def verify(*files):
    return subprocess.run([sys.executable, "-m", "moe", "verify", *map(str, files),
                           "--tier", "reference_cpu"], capture_output=True, text=True)


def write(path, tensors, **more):
    return golden.write_golden(str(path), tensors, CONFIG, "case", "source", **more)


# ------------------------------------------------------------------------- one tensor
def test_narrowest_type_that_holds_all_values():
    kinds = {1.5: golden.BFloat16, 1 + 2.0 ** -20: numpy.float32, 0.1: numpy.float64}
    for value, kind in kinds.items():
        stored = golden.narrowest(numpy.array([0.0, value]))
        assert isinstance(stored, golden.BFloat16) or stored.dtype == kind
        assert isinstance(stored, golden.BFloat16) == (kind is golden.BFloat16)
    ids = numpy.arange(3)
    assert golden.narrowest(ids) is ids


def test_bf16_is_never_rounded():
    values = numpy.array([[1.5, -0.0, 2.0 ** -130, 3.0e38]], numpy.float32)
    exact = (values.view(numpy.uint32) & 0xFFFF0000).view(numpy.float32)
    bits = golden.BFloat16(exact).bits
    back = (bits.astype(numpy.uint32) << 16).view(numpy.float32)
    numpy.testing.assert_array_equal(back, exact)
    with pytest.raises(ValueError, match="not exactly representable"):
        golden.BFloat16(values + numpy.float32(1e-3))


# -------------------------------------------------------------------------- the file
def test_file_reads_as_it_was_written(tmp_path):
    generator = numpy.random.default_rng(1)
    tensors = {"a": generator.normal(size=(3, 5)), "b": numpy.arange(7, dtype="int64"),
               "c": numpy.ones((2, 1, 3), "uint8"), "d": numpy.zeros((0, 4), "float32")}
    path = tmp_path / "new" / "file.safetensors"
    size = write(path, tensors, source_errors={"fp32": {"x": 1e-7}}, source_dtype=None)
    assert size == path.stat().st_size
    metadata, read = read_safetensors(path)
    assert metadata == {
        "format": "moe-golden-1", "case": "case", "source": "source",
        "moe_config": '{"hidden_size": 4}', "source_errors": '{"fp32": {"x": 1e-07}}'}
    assert read.keys() == tensors.keys()
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype
        numpy.testing.assert_array_equal(read[name], value)


def test_every_tensor_starts_at_a_multiple_of_its_element():
    tensors = {"a": numpy.ones(3, "uint8"), "b": numpy.ones(3), "c": numpy.ones(
        5, "float32"), "d": golden.BFloat16(numpy.ones(1))}
    text, _ = golden.encode_header(tensors, {})
    (length,) = struct.unpack("<Q", text[:8])
    assert length % 8 == 0 and len(text) == 8 + length
    header = json.loads(text[8:])
    for name, size in (("a", 1), ("b", 8), ("c", 4), ("d", 2)):
        assert header[name]["data_offsets"][0] % size == 0, name


class Failing(golden.BFloat16):
    """Its bytes cannot be had."""

    def __init__(self):
        super().__init__(numpy.ones(3))

    def __getattribute__(self, name):
        if name == "bits" and "shape" in vars(self):
            raise OSError("no space left")
        return super().__getattribute__(name)


def test_nothing_is_left_half_written(tmp_path):
    path = tmp_path / "file.safetensors"
    write(path, {"a": numpy.ones(3)})
    before = path.read_bytes()
    failing = Failing()
    with pytest.raises(OSError, match="no space"):
        write(path, {"a": numpy.zeros(3), "b": failing})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["file.safetensors"]


def test_limit_names_the_bytes_that_are_needed(tmp_path):
    path, tensors = tmp_path / "f", {"a": numpy.ones(100)}
    with pytest.raises(CaptureError) as refused:
        write(path, tensors, max_bytes=100)
    assert not os.listdir(tmp_path)
    needed = int(str(refused.value).split()[-1])
    assert write(path, tensors, max_bytes=needed) == needed
    with pytest.raises(CaptureError):
        write(path, tensors, max_bytes=needed - 1)


def test_tokens_are_left_out_until_they_fit():
    assert golden.tokens_that_fit(1000, 100, 9, 200, "layer 3") == 100
    assert golden.tokens_that_fit(1000, 100, 9, 50, "layer 3") == 50
    with pytest.raises(CaptureError) as refused:
        golden.tokens_that_fit(108, 100, 9, 50, "layer 3")
    assert str(refused.value).startswith(
        "max_bytes = 108: layer 3 needs at least 109: ") and "550" in str(refused.value)


def test_verify_judges_what_was_written(tmp_path):
    metadata, tensors = read_safetensors(GOLDEN / "one_token.safetensors")
    config = json.loads(metadata["moe_config"])

    def rewrite(name):
        path = tmp_path / f"{name}.safetensors"
        stored = {n: golden.narrowest(v) if v.dtype.kind == "f" else v
                  for n, v in tensors.items()}
        golden.write_golden(str(path), stored, config, name, "numpy",
                            source_errors=json.loads(metadata["source_errors"]))
        return path
    assert verify(rewrite("same")).returncode == 0
    tensors["expect.output"][0, 0, 1] *= 1.001
    assert verify(rewrite("other")).returncode == 1


# ------------------------------------------------------------------------------ layout
def gpt_oss_block(generator):
    E, H, F = 3, 6, 4
    shapes = {"router.weight": (E, H), "router.bias": (E,),
              "experts.gate_up_proj": (E, H, 2 * F),
              "experts.gate_up_proj_bias": (E, 2 * F),
              "experts.down_proj": (E, F, H), "experts.down_proj_bias": (E, H)}
    config = {"model_type": "gpt_oss", "hidden_size": H, "intermediate_size": F,
              "num_local_experts": E, "num_experts_per_tok": 2, "num_hidden_layers": 1,
              "swiglu_limit": 7.0, "hidden_act": "silu"}
    return json.dumps(config), {name: generator.normal(size=shape).astype("float32")
                                for name, shape in shapes.items()}


def test_gradients_lie_as_weights_do():
    generator = numpy.random.default_rng(2)
    config, tensors = gpt_oss_block(generator)
    _, gradients = gpt_oss_block(generator)
    found = layout.read_gradients(config, tensors, gradients, 0)
    wanted = layout.read_layer(config, gradients, 0).parameters
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        numpy.testing.assert_array_equal(found[name], value)
    # Gates and ups alternate there, and rows are columns
    ours, theirs = found["experts.linear_fc1.weight"], gradients["experts.gate_up_proj"]
    numpy.testing.assert_array_equal(ours[1, 0], theirs[1, :, 0])
    numpy.testing.assert_array_equal(ours[1, 4], theirs[1, :, 1])


def test_what_has_no_gradient_gets_none():
    config, tensors = gpt_oss_block(numpy.random.default_rng(2))
    gradients = {name: value for name, value in tensors.items() if "bias" not in name}
    found = layout.read_gradients(config, tensors, gradients, 0)
    assert sorted(found) == ["experts.linear_fc1.weight", "experts.linear_fc2.weight",
                             "router.weight"]


def test_a_scale_in_the_weights_divides_the_gradient(monkeypatch):
    class Found:
        config, layout, notes = moe.MoEConfig("mixtral_8x7b"), "", ()

        def __init__(self, tensors):
            self.parameters = {"experts.linear_fc2.weight": 4 * tensors["down"]}
    monkeypatch.setattr(moe, "layer_from_tensors",
                        lambda config, tensors, number, *_: Found(tensors))
    gradient = numpy.array([8.0, -2.0])
    found = layout.read_gradients("{}", {"down": numpy.ones(2, "float32")},
                                  {"down": gradient}, 0)
    # ours = 4 theirs, so d/d(ours) = d/d(theirs) / 4
    numpy.testing.assert_array_equal(found["experts.linear_fc2.weight"], gradient / 4)


def test_refusals_of_the_table_keep_their_line():
    config, tensors = gpt_oss_block(numpy.random.default_rng(2))
    del tensors["router.bias"]
    with pytest.raises(CaptureError, match="router") as refused:
        layout.read_layer(config, tensors, 0)
    assert "\n" not in str(refused.value)


# ---------------------------------------------------------------------------- the flags
def test_layers_and_bytes_are_read():
    assert read_layers("1,3-5, model.layers.7.mlp") == [1, 3, 4, 5, "model.layers.7.mlp"]
    assert read_layers(None) is None
    assert [read_bytes(t) for t in ("7", "2k", "3M", "1G")] == [7, 2048, 3 << 20, 1 << 30]


GOOD = {"--model": "nowhere", "--random-tokens": "4", "--out": "out"}


@pytest.mark.parametrize("given, named", [
    ({"--random-tokens": None}, "--text, --random-tokens"),
    ({"--text": "also"}, "--text, --random-tokens"),
    ({"--random-tokens": "0"}, "--random-tokens = 0"),
    ({"--random-tokens": "many"}, "--random-tokens"),
    ({"--random-tokens": None, "--text": "no such file"}, "--text = no such file"),
    ({"--out": __file__}, "--out = "),
    ({"--out": "/proc/nope"}, "--out = /proc/nope: must be a folder to write in (No "),
    ({"--layers": "3-1"}, "--layers = 3-1"),
    ({"--layers": "1,,2"}, "--layers = 1,,2"),
    ({"--max-bytes": "0"}, "--max-bytes = 0"),
    ({"--max-bytes": "a lot"}, "--max-bytes = a lot"),
    ({"--max-tokens": "-1"}, "--max-tokens = -1"),
    ({"--dtype": "float8"}, "--dtype = float8: allowed are float64, float32, bfloat16"),
    ({"--model-dtype": "int4"}, "--model-dtype = int4"),
    ({"--model": None}, "--model"),
    ({"--layer": "1", "--unknown": "1"}, "--unknown"),
])
def test_bad_flags_are_one_line(given, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = {**GOOD, **given}
    arguments = [word for flag, value in flags.items() if value is not None
                 for word in (flag, value)]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("moe.capture: ") and named in printed.err
    assert not os.listdir(tmp_path)
