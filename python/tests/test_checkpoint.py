"""moe.load_layer(): checkpoints that transformers wrote, and its outputs."""

import json

import numpy
import pytest

import moe
from conftest import CHECKPOINTS, read_safetensors

MODELS = ["dbrx", "deepseek_v3", "gpt_oss", "granitemoeshared", "llama4", "mixtral",
          "qwen3_moe"]


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoints_layer_is_the_models(model):
    found = moe.load_layer(CHECKPOINTS / model, 1)
    _, expected = read_safetensors(CHECKPOINTS / f"{model}.safetensors")
    layer = moe.MoELayer(found.config, found.parameters, "reference_cpu:fp64")
    output = layer.forward(expected["hidden_states"], training=False).output
    assert moe.relative_error(output, expected["output"]) < 1e-6


def test_what_is_found_is_told():
    found = moe.load_layer(str(CHECKPOINTS / "deepseek_v3"), 1)
    assert "per expert" in found.layout and found.copied
    assert "model.layers.1.mlp.gate.e_score_correction_bias" in found.names
    assert found.parameters["router.weight"].dtype == "fp32"
    assert found.config.moe_router_score_function == "sigmoid"


def test_weights_stay_in_the_file_where_nothing_moves(tmp_path):
    found = moe.load_layer(CHECKPOINTS / "granitemoeshared", 1)
    assert not found.copied
    weight = found.parameters["experts.linear_fc1.weight"]
    assert weight.read_only
    del found  # the file stays mapped for whoever looks
    assert numpy.isfinite(weight.copy("fp32").numpy()).all()


def test_tensors_in_memory_are_shared():
    config = (CHECKPOINTS / "granitemoeshared" / "config.json").read_text()
    given = {
        "router.layer.weight": numpy.random.rand(4, 6),
        "input_linear.weight": numpy.random.rand(4, 10, 6),
        "output_linear.weight": numpy.random.rand(4, 6, 5),
    }
    shared = {"shared_mlp.input_linear.weight": numpy.random.rand(6, 6),
              "shared_mlp.output_linear.weight": numpy.random.rand(6, 3)}
    tensors = {f"block_sparse_moe.{name}": value for name, value in given.items()}
    tensors |= shared
    found = moe.layer_from_tensors(config, tensors, 1)
    assert numpy.shares_memory(found.parameters["experts.linear_fc1.weight"].numpy(),
                               given["input_linear.weight"])


def test_what_cannot_be_loaded(tmp_path):
    for path, layer, words in [
            (tmp_path / "none", 0, "none"), (tmp_path, 0, "safetensors"),
            (CHECKPOINTS / "mixtral", 2, "0 to 1"), (CHECKPOINTS / "mixtral", -1, "-1"),
            (CHECKPOINTS / "deepseek_v3", 0, "first_k_dense_replace")]:
        with pytest.raises(moe.InputError) as caught:
            moe.load_layer(path, layer)
        assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(moe.InputError, match="fc1_layout"):
        moe.load_layer(CHECKPOINTS / "gpt_oss", 1, fc1_layout="diagonal")
    with pytest.raises(moe.InputError, match="unheard_of"):
        moe.layer_from_tensors(json.dumps({"model_type": "unheard_of"}), {}, 0)
    with pytest.raises(moe.InputError):
        moe.layer_from_tensors("not JSON", {}, 0)


def test_a_config_alone():
    text = (CHECKPOINTS / "deepseek_v3" / "config.json").read_text()
    config = moe.MoEConfig.from_huggingface(text, 1)
    assert config == moe.load_layer(CHECKPOINTS / "deepseek_v3", 1).config
    with pytest.raises(moe.InputError, match="first_k_dense_replace"):
        moe.MoEConfig.from_huggingface(text, 0)
