"""python -m moe.capture; needs torch and transformers."""

import os

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")

from moe.capture.cli import main  # noqa: E402
from capture_models import make, read, verify  # noqa: E402


def test_command_line(tmp_path, capsys):
    make("qwen3_moe", torch.bfloat16).save_pretrained(tmp_path / "model")
    capsys.readouterr()
    line = ["--model", str(tmp_path / "model"), "--random-tokens", "21", "--out",
            str(tmp_path / "out")]
    assert main(line + ["--layers", "1"]) == 0
    printed = capsys.readouterr()
    path = tmp_path / "out" / "layer_1.safetensors"
    assert f"{path}  layer 1 (model.layers.1.mlp), 21 tokens" in printed.out
    assert "running Qwen3MoeForCausalLM on 21 tokens" in printed.err
    assert os.listdir(tmp_path / "out") == ["layer_1.safetensors"]
    assert verify([path], "--dtype", "fp64").returncode == 0
    metadata, tensors = read(path)
    assert str(tmp_path / "model") in metadata["source"]
    assert tensors["input.grad_output"].abs().max() > 0
    assert main(line + ["--model-dtype", "float64", "--forward-only", "--layers", "0",
                        "--exact"]) == 0
    printed = capsys.readouterr().out
    assert "layer_0" in printed and "away" not in printed
    assert main(line + ["--layers", "7"]) == 2
    assert "layers = 7: no MoE block there; MoE blocks are in layers 0 to 1" in \
        capsys.readouterr().err
    assert main(["--model", str(tmp_path), "--random-tokens", "2", "--out", "x"]) == 2
    assert "--model = " in capsys.readouterr().err


def test_text_by_the_models_own_tokenizer(tmp_path, capsys):
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["?", "a", "rose", "is"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = tmp_path / "model"
    make("mixtral", torch.bfloat16).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer,
                                         unk_token="?").save_pretrained(folder)
    text = tmp_path / "text"
    text.write_text("a rose is a rose is a flower")
    line = ["--model", str(folder), "--text", str(text), "--layers", "0", "--out",
            str(tmp_path / "out"), "--tokens", "6", "--no-source-errors"]
    seen = []
    embed = torch.nn.Embedding.forward

    def watched(self, ids):
        seen.append(ids.tolist())
        return embed(self, ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Embedding, "forward", watched)
        assert main(line) == 0
    assert seen == [[[1, 2, 3, 1, 2, 3]]]
    text.write_text("")
    assert main(line) == 2
    assert "--text = " in capsys.readouterr().err
