"""From a running model to `moe verify`; needs torch and transformers."""

import json
import os

import pytest

torch = pytest.importorskip("torch")

from moe.capture import CaptureError, capture  # noqa: E402
from capture_models import IDS, Wrapped, make, read, run, verify  # noqa: E402


def test_families_match(tmp_path):
    """Every tier gives what the models' own code does, forward and backward."""
    files = []
    for name, dtype in (("mixtral", torch.float32), ("gpt_oss", torch.float32),
                        ("deepseek_v3", torch.bfloat16), ("qwen3_moe", torch.bfloat16)):
        model = make(name, dtype)
        with capture(model, tmp_path / name, layers=[1]) as session:
            run(model)
        files += [file.path for file in session.files]
    done = verify(files)
    assert done.returncode == 0, done.stdout + done.stderr
    for path in files:
        metadata, tensors = read(path)
        trained = {n for n in tensors if not n.startswith(("input", "expect"))
                   and n != "router.expert_bias"}
        assert {"expect.grad." + n for n in trained | {"hidden_states"}} == {
            n for n in tensors if n.startswith("expect.grad.")}
        assert {"expect.output", "expect.probs", "expect.logits",
                "expect.routing_map"} < tensors.keys()
        errors = json.loads(metadata["source_errors"])
        assert 0 < errors["fp32"]["expect.output"] < 1e-6
        assert 1e-4 < errors["bf16"]["expect.grad.hidden_states"] < 2e-2


def test_values_are_those_of_the_run(tmp_path):
    """Input, output and gradients of a model in fp64 are in the file as they were."""
    model, seen = make("mixtral", torch.float64), {}
    block = model.model.layers[1].mlp

    def watch(_, given, output):
        if "output" not in seen:  # else one of capture's own runs
            output.retain_grad()
            seen.update(hidden=given[0], output=output)
    block.register_forward_hook(watch)
    with capture(model, tmp_path, layers=[1], exact=True) as session:
        run(model)
    assert [os.path.basename(file.path) for file in session.files] == [
        "layer_1.safetensors"]
    _, tensors = read(session.files[0].path)

    def same(name, expected):
        off = tensors[name].double().reshape(-1) - expected.double().reshape(-1)
        assert off.norm() <= 1e-6 * expected.norm(), name
    same("input.hidden_states", seen["hidden"].detach())
    same("input.grad_output", seen["output"].grad)
    same("expect.output", seen["output"].detach())
    same("expect.grad.router.weight", block.gate.weight.grad)
    same("expect.grad.experts.linear_fc1.weight", block.experts.gate_up_proj.grad)
    same("expect.grad.experts.linear_fc2.weight", block.experts.down_proj.grad)
    done = verify([session.files[0].path], "--dtype", "fp64")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("exact", [False, True])
def test_what_bf16_does_not_hold_is_rounded(tmp_path, exact):
    safetensors = pytest.importorskip("safetensors")
    model = make("mixtral")
    with capture(model, tmp_path, layers=[0], exact=exact) as session:
        run(model)
    with safetensors.safe_open(session.files[0].path, "pt") as file:
        stored = {file.get_tensor(name).dtype for name in file.keys()
                  if not name.startswith("expect.")}
    assert stored == {torch.float32 if exact else torch.bfloat16}
    assert exact != any("rounded to bf16" in note for note in session.files[0].notes)


def test_a_wrong_layer_differs(tmp_path):
    """The file is of the block's values, not of what its config says of them."""
    model = make("mixtral")
    model.model.layers[0].mlp.register_forward_hook(lambda _, __, output: output * 1.001)
    with capture(model, tmp_path, layers=[0]) as session:
        run(model)
    assert verify([session.files[0].path], "--dtype", "fp32").returncode == 1


def test_the_model_is_left_as_it_was(tmp_path):
    plain, watched = make("qwen3_moe"), make("qwen3_moe")
    run(plain)
    with capture(watched, tmp_path, layers=[0]):
        run(watched)
    pairs = zip(plain.named_parameters(), watched.named_parameters())
    for (name, a), (_, b) in pairs:
        assert torch.equal(a, b) and torch.equal(a.grad, b.grad), name
    for module in watched.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_forward_alone(tmp_path):
    model = make("mixtral")
    with torch.no_grad(), capture(model, tmp_path, layers=[0]) as session:
        model(IDS)
    _, tensors = read(session.files[0].path)
    assert "input.grad_output" not in tensors
    assert not any(name.startswith("expect.grad") for name in tensors)
    assert verify([session.files[0].path], "--dtype", "fp32").returncode == 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_blocks_have_their_gradient(tmp_path, reentrant):
    model = make("mixtral").train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    with capture(model, tmp_path, layers=[1]) as session:
        run(model)
    _, tensors = read(session.files[0].path)
    assert tensors["input.grad_output"].abs().max() > 0


def test_wrapped_models_are_unwrapped(tmp_path):
    model = Wrapped(make("qwen3_moe"))
    with capture(model, tmp_path, layers=[1]) as session:
        run(model)
    assert session.files[0].layer == "layer 1 (model.layers.1.mlp)"


def test_first_call_is_kept(tmp_path):
    model = make("mixtral")
    with capture(model, tmp_path / "two", layers=[0]) as session:
        run(model)
        run(model, IDS.flip(1))
    with capture(model, tmp_path / "one", layers=[0]) as once:
        run(model)
    assert "the first of 2 calls" in session.files[0].notes
    two, one = (read(s.files[0].path)[1] for s in (session, once))
    assert torch.equal(two["input.hidden_states"], one["input.hidden_states"])


def test_limits_keep_the_first_tokens(tmp_path):
    model = make("mixtral")
    with capture(model, tmp_path / "all", layers=[0]) as whole:
        run(model)
    limit = whole.files[0].size - 4000
    with capture(model, tmp_path / "fit", layers=[0], max_bytes=limit) as fitting:
        run(model)
    with capture(model, tmp_path / "few", layers=[0], max_tokens=3) as few:
        run(model)
    assert few.files[0].tokens == 3 < fitting.files[0].tokens < whole.files[0].tokens
    assert os.path.getsize(fitting.files[0].path) <= limit
    hidden = [read(s.files[0].path)[1]["input.hidden_states"] for s in (few, whole)]
    assert torch.equal(hidden[0], hidden[1][:3])
    assert verify([few.files[0].path, fitting.files[0].path], "--dtype",
                  "fp32").returncode == 0
    with pytest.raises(CaptureError, match=r"max_bytes = 999: layer 0.* needs at least"):
        with capture(model, tmp_path / "none", layers=[0], max_bytes=999):
            run(model)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_tokens_whose_experts_rounding_decides_are_left_out(tmp_path, dtype):
    model = make("mixtral")
    with torch.no_grad():  # experts 0 and 1 tie for every token
        router = model.model.layers[0].mlp.gate.weight
        router[1] = router[0]
    with capture(model, tmp_path, layers=[0], dtype=dtype) as session:
        run(model)
    assert 0 < session.files[0].tokens < IDS.numel()
    assert any("hang on rounding" in note for note in session.files[0].notes)
    _, tensors = read(session.files[0].path)
    assert torch.equal(*tensors["expect.routing_map"][:, :2].unbind(1))


@pytest.mark.parametrize("name, dtype, source", [
    ("mixtral", "bfloat16", "bf16"), ("deepseek_v3", "bfloat16", "bf16"),
    ("mixtral", "float32", "fp32")])
def test_judged_in_lower_precision(tmp_path, name, dtype, source):
    model = make(name, torch.bfloat16)
    with capture(model, tmp_path, layers=[1], dtype=dtype) as session:
        run(model)
    metadata, _ = read(session.files[0].path)
    assert metadata["source_dtype"] == source and "source_errors" not in metadata
    # DeepSeek's router is of fp32 in every case
    router = json.loads(metadata["moe_config"]).get("moe_router_dtype")
    assert router == (None if (name, dtype) == ("mixtral", "bfloat16") else "fp32")
    done = verify([session.files[0].path])
    assert done.returncode == 0, done.stdout
