"""Memory that torch and this package share. Needs torch."""

import shutil

import numpy
import pytest

import moe
from conftest import CHECKPOINTS

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("dtype, name", [
    (torch.float64, "fp64"), (torch.float32, "fp32"), (torch.bfloat16, "bf16"),
    (torch.int64, "int64"), (torch.int32, "int32"), (torch.uint8, "uint8"),
    (torch.bool, "uint8")])
def test_every_dtype_is_shared_both_ways(dtype, name):
    given = torch.zeros(3, 5, dtype=dtype)
    tensor = moe.Tensor(given)
    assert (tensor.dtype, tensor.shape, tensor.space) == (name, (3, 5), "host")
    back = torch.from_dlpack(tensor)
    back[1, 2] = 1
    assert given[1, 2] == 1
    given[2, 4] = 1
    assert back[2, 4] == 1


def refused(tensor, word):
    with pytest.raises(moe.InputError, match=word) as caught:
        moe.Tensor(tensor)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_shared_is_refused_by_name():
    refused(torch.zeros(3, 5, requires_grad=True), "detach")
    refused(torch.nn.Parameter(torch.zeros(3)), "detach")
    refused(torch.zeros(3, 5).t(), "strides")
    refused(torch.zeros(4, 6)[:, ::2], "strides")
    refused(torch.zeros(1, 5).expand(3, 5), "strides")
    refused(torch.zeros(3, dtype=torch.float16), "float16")
    refused(torch.zeros(3, dtype=torch.complex64), "DLPack")
    refused(torch.zeros(3, device="meta"), "array")
    refused(torch.zeros(3).to_sparse(), "array")


def test_a_detached_parameter_is_shared():
    parameter = torch.nn.Parameter(torch.zeros(3))
    tensor = moe.Tensor(parameter.detach())
    with torch.no_grad():
        parameter += 1
    assert tensor.numpy().tolist() == [1, 1, 1]


def test_a_layer_takes_torch_as_it_takes_numpy(config, hidden):
    parameters = moe.random_parameters(config)
    of_torch = {name: torch.from_dlpack(value) for name, value in parameters.items()}
    here = moe.MoELayer(config, parameters).forward(hidden).output
    there = moe.MoELayer(config, of_torch).forward(torch.from_numpy(hidden)).output
    numpy.testing.assert_array_equal(here.numpy(), there.numpy())


def test_writing_to_a_checkpoints_weights_leaves_the_file(tmp_path):
    shutil.copytree(CHECKPOINTS / "granitemoeshared", tmp_path / "model")
    before = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    weight = moe.load_layer(tmp_path / "model", 1).parameters["router.weight"]
    torch.from_dlpack(weight).fill_(7)
    assert (weight.copy("fp32").numpy() == 7).all()
    assert before == {file.name: file.read_bytes()
                      for file in (tmp_path / "model").iterdir()}


def test_bf16_output_is_torchs(config, hidden):
    layer = moe.MoELayer(config, moe.random_parameters(config), "optimized_gpu:bf16")
    output = torch.from_dlpack(layer.forward(hidden).output.copy())
    assert output.dtype == torch.bfloat16 and output.shape == hidden.shape
