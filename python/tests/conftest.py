"""What several files of tests need."""

import json
import pathlib
import struct

import numpy
import pytest

import moe

TESTS = pathlib.Path(__file__).resolve().parents[2] / "tests"
GOLDEN = TESTS / "golden"
CHECKPOINTS = TESTS / "checkpoints"
DTYPES = {"F64": numpy.float64, "F32": numpy.float32, "I64": numpy.int64,
          "I32": numpy.int32, "U8": numpy.uint8}


def read_safetensors(path):
    """(metadata, tensors by name) of a small file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for key, entry in header.items():
        first, last = entry["data_offsets"]
        part = data[8 + length + first:8 + length + last]
        tensors[key] = numpy.frombuffer(
            part, DTYPES[entry["dtype"]]).reshape(entry["shape"]).copy()
    return metadata, tensors


class GoldenCase:
    """A file of tests/golden: its config, and its tensors by name."""

    def __init__(self, name):
        metadata, self.tensors = read_safetensors(GOLDEN / f"{name}.safetensors")
        self.config = moe.MoEConfig.from_json(metadata["moe_config"])

    def __getitem__(self, name):
        return self.tensors[name]

    def get(self, name):
        return self.tensors.get(name)

    @property
    def parameters(self):
        names = moe.parameter_shapes(self.config)
        return {name: self.tensors[name] for name in names if name in self.tensors}


@pytest.fixture
def golden():
    return GoldenCase


@pytest.fixture
def config():
    """A small layer of odd sizes with shared experts and a gate."""
    return moe.MoEConfig(
        hidden_size=20, num_moe_experts=5, moe_router_topk=2, moe_ffn_hidden_size=12,
        gated_linear_unit=True, activation_func="silu", add_bias_linear=False,
        moe_shared_expert_intermediate_size=12, moe_shared_expert_gate=True,
        moe_router_load_balancing_type="aux_loss", moe_aux_loss_coeff=0.01)


@pytest.fixture
def hidden():
    """(S, B, H) for `config`."""
    return numpy.random.default_rng(7).standard_normal((7, 3, 20)).astype(numpy.float32)
