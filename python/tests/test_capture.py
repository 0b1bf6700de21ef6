"""From a running model to `moe verify`; needs torch and transformers."""

import json
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")

from moe.capture import CaptureError, capture  # noqa: E402
from moe.capture.cli import main  # noqa: E402
from moe.capture.copies import require_finite  # noqa: E402

SIZES = dict(vocab_size=67, hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=2, head_dim=8, max_position_embeddings=64)
DEEPSEEK = SIZES | dict(
    intermediate_size=16, moe_intermediate_size=8, n_routed_experts=12,
    num_experts_per_tok=4, n_group=4, topk_group=2, n_shared_experts=2,
    first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4,
    qk_nope_head_dim=4, v_head_dim=8, routed_scaling_factor=2.5)
del DEEPSEEK["head_dim"]
MODELS = {
    "mixtral": ("Mixtral", SIZES | dict(intermediate_size=16, num_local_experts=5,
                                        num_experts_per_tok=2)),
    "qwen3_moe": ("Qwen3Moe", SIZES | dict(moe_intermediate_size=16, intermediate_size=8,
                                           num_experts=6, num_experts_per_tok=3)),
    "gpt_oss": ("GptOss", SIZES | dict(intermediate_size=16, num_local_experts=5,
                                       num_experts_per_tok=2)),
    "deepseek_v3": ("DeepseekV3", DEEPSEEK),
    "phimoe": ("Phimoe", SIZES | dict(intermediate_size=16, num_local_experts=4)),
}
IDS = torch.randint(67, (2, 13), generator=torch.Generator().manual_seed(3))


def make(name, dtype=torch.float32, **fields):
    """A small model whose experts differ."""
    kind, sizes = MODELS[name]
    config = getattr(transformers, kind + "Config")(**(sizes | fields))
    torch.manual_seed(1)
    if dtype == torch.float64:  # torch's grouped product has no fp64
        config._experts_implementation = "eager"
    model = getattr(transformers, kind + "ForCausalLM")(config)
    for key, p in list(model.named_parameters()) + list(model.named_buffers()):
        if ".mlp." in key:
            scale = 0.1 if "bias" in key else p.shape[-1] ** -0.5
            p.data = scale * torch.randn(p.shape)
    return model.to(dtype)


def run(model, ids=IDS):
    model(ids, labels=ids).loss.backward()


def verify(files, *more):
    command = [sys.executable, "-m", "moe", "verify", *map(str, files), *more]
    return subprocess.run(command, capture_output=True, text=True)


def read(path):
    """(metadata, tensors), those of bf16 as fp32."""
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name).float()
                                 if file.get_tensor(name).dtype == torch.bfloat16
                                 else file.get_tensor(name) for name in file.keys()}


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


class Wrapped(torch.nn.Module):
    """As DistributedDataParallel keeps a model."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *given, **named):
        return self.module(*given, **named)


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


# --------------------------------------------------------------------------- refusals
def refused(model, folder, match, watch=run, **options):
    with pytest.raises(CaptureError, match=match) as error:
        with capture(model, folder / "out", **options):
            watch(model)
    assert "\n" not in str(error.value)
    assert not (folder / "out").exists()


class Mixtril(transformers.MixtralConfig):
    model_type = "mixtril"


def test_refused_models(tmp_path):
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=67, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2))
    refused(llama, tmp_path, "model = LlamaForCausalLM: has no MoE block")
    refused(make("phimoe"), tmp_path, "^layer 0.*phimoe.*sparsemixer")
    unknown = make("mixtral")
    unknown.config = Mixtril(**MODELS["mixtral"][1])
    refused(unknown, tmp_path, "model_type = mixtril", layers=[0])


def test_refused_layers(tmp_path):
    model = make("deepseek_v3")
    refused(model, tmp_path, layers=[0],
            match="layers = 0: no MoE block there; MoE blocks are in layers 1$")
    refused(model, tmp_path, "layers = model.layers.9.mlp: no MoE block",
            layers=["model.layers.9.mlp"])
    refused(make("mixtral"), tmp_path, "layers = model.layers.1.mlp: not called",
            watch=lambda m: m.model.layers[0].mlp(torch.ones(1, 2, 24)))


def test_refused_weights(tmp_path):
    model = make("mixtral")
    experts = model.model.layers[0].mlp.experts
    experts.down_proj = torch.nn.Parameter(experts.down_proj.data.to(torch.uint8), False)

    def nothing(_):
        hidden = torch.zeros(1, 2, 24)
        block = model.model.layers[0].mlp
        block.experts.forward = lambda hidden, *_: hidden
        block(hidden)
    refused(model, tmp_path, r"experts.down_proj = torch.uint8: quantized", nothing,
            layers=[0])
    refused(make("mixtral"), tmp_path, "dtype = float16: allowed are", dtype="float16")
    refused(make("mixtral"), tmp_path, "max_tokens = 0", max_tokens=0)


def test_refused_blocks_that_depend_on_more_than_their_input(tmp_path):
    model = make("mixtral")
    dropout = torch.nn.Dropout(0.5).train()
    model.model.layers[0].mlp.register_forward_hook(lambda _, __, y: dropout(y))
    refused(model, tmp_path, "layer 0.* from itself: a second run", layers=[0])


    refused(model, tmp_path, "its weights have changed between its run and the end",
            layers=[0])


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 1e-9),
    "adam": lambda p: torch.optim.AdamW(p, 1e-9, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, 1e-9, fused=True)}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("part, name", [("mlp", "experts.gate_up_proj"),
                                        ("mlp.gate", "gate.weight")])
def test_refused_weights_that_changed_since_the_block_ran(tmp_path, kind, part, name):
    """However little: also a second run does not tell."""
    model = make("mixtral")
    weights = model.model.layers[1].get_submodule(part)
    if part == "mlp":
        weights = weights.experts
    optimizer = OPTIMIZERS[kind](list(weights.parameters()))

    def train(model):
        run(model)
        optimizer.step()
    refused(model, tmp_path, rf"^model.layers.1.mlp.{name} = changed since the block "
            r"ran: optimizer.step\(\) must come after the `with`$", train)
    run(model)
    optimizer.step()
    with capture(model, tmp_path / "out") as session:
        run(model)
    optimizer.step()
    assert len(session.files) == 2


def test_refused_routers_that_changed_uncounted(tmp_path):
    model = make("mixtral")

    def train(model):
        run(model)
        model.model.layers[0].mlp.gate.weight.data.mul_(1.00001)
    refused(model, tmp_path, "^model.layers.0.mlp.gate.weight = changed since", train)


def test_fused_steps_are_counted_inside_the_with_alone(tmp_path):
    from torch.optim import optimizer
    before = len(optimizer._global_optimizer_post_hooks)
    model = make("mixtral")
    with capture(model, tmp_path, layers=[0]):
        assert len(optimizer._global_optimizer_post_hooks) == before + 1
        run(model)
    assert len(optimizer._global_optimizer_post_hooks) == before


@pytest.mark.parametrize("value, kind", [(torch.nan, "NaN"), (torch.inf, "infinite")])
def test_refused_numbers_that_are_not_finite(tmp_path, value, kind):
    model = make("mixtral")
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[2, 3, 4] = value
    refused(model, tmp_path, r"^model.layers.1.mlp.experts.down_proj = "
            f"{kind}: weights must be finite numbers$")

    def spoil(into):
        def spoilt(tensor):
            return tensor.index_fill(1, torch.tensor([2]), value)
        model = make("mixtral")
        block = model.model.layers[0].mlp
        if into == "hidden_states":
            model.model.layers[0].post_attention_layernorm.register_forward_hook(
                lambda _, __, output: spoilt(output))
        elif into == "output":
            block.register_forward_hook(lambda _, __, output: spoilt(output))
        else:
            block.register_forward_hook(
                lambda _, __, output: output.register_hook(spoilt) and None)
        return model
    for into in ("hidden_states", "output", "grad_output"):
        refused(spoil(into), tmp_path, rf"^layer 0 \(model.layers.0.mlp\): {into} = "
                rf"({kind}|NaN) for \d+ tokens of 26: the model must", layers=[0])
    model = spoil("hidden_states")  # of tokens that are kept
    with capture(model, tmp_path / "two", layers=[0], max_tokens=2) as session:
        with torch.no_grad():
            model(IDS)
    assert session.files[0].tokens == 2


def test_values_that_are_not_finite_are_counted():
    rows = torch.zeros(3, 1, 4)
    require_finite("layer 0", hidden_states=rows, grad_output=None)
    rows[1, 0, 2] = torch.inf
    with pytest.raises(CaptureError, match="^layer 0: output = infinite for 1 token of "
                       "3: the model must compute finite values$"):
        require_finite("layer 0", output=rows)


def test_refused_layers_of_this_project(tmp_path):
    """Their values would be judged by themselves."""
    import moe.torch
    model = make("mixtral")
    own = model.model.layers[0].mlp
    moe.torch.replace(model)
    line = r"^model.layers.1.mlp = moe.torch.MoELayer: is this project's own layer, not"
    refused(model, tmp_path, line, layers=[1])
    refused(model, tmp_path, line.replace("1", "0"))
    model.model.layers[0].mlp = Wrapped(model.model.layers[0].mlp)
    refused(model, tmp_path, r"^model.layers.0.mlp.module = moe.torch.MoELayer")
    model.model.layers[0].mlp = own  # what is not replaced is the model's
    with capture(model, tmp_path / "own", layers=[0]) as session:
        run(model)
    assert len(session.files) == 1
    layer = moe.torch.MoELayer(moe.MoEConfig("mixtral_8x7b").replace(
        hidden_size=8, moe_ffn_hidden_size=8))
    refused(layer, tmp_path, "^model = moe.torch.MoELayer: is this project's own")


def test_refused_arguments(tmp_path):
    model = make("mixtral")
    refused(None, tmp_path, "^model = NoneType: must be a torch.nn.Module$")
    for layers in (1, "model.layers.1.mlp"):
        refused(model, tmp_path, f"^layers = {layers}: must be a list of numbers or "
                "names, or None for all$", layers=layers)
    refused(model, tmp_path, r"^layers = \[\]: must have a number or name", layers=[])
    with pytest.raises(CaptureError, match="^out = None: must be the path of a folder$"):
        capture(model, None)
    with pytest.raises(CaptureError, match="^out = /proc/nope/x: must be a folder to "):
        capture(model, "/proc/nope/x")
    capture(model, tmp_path / "new" / "below", layers=range(2))
    assert not (tmp_path / "new").exists()


def test_nothing_is_written_after_an_exception(tmp_path):
    model = make("mixtral")
    with pytest.raises(KeyError):
        with capture(model, tmp_path / "out"):
            run(model)
            raise KeyError
    assert not (tmp_path / "out").exists()
    assert not any(m._forward_hooks for m in model.modules())


# ------------------------------------------------------------------------ command line
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
