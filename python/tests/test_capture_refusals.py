"""What moe.capture refuses; needs torch and transformers."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")

from moe.capture import CaptureError, capture  # noqa: E402
from moe.capture.copies import require_finite  # noqa: E402
from capture_models import IDS, MODELS, Wrapped, make, run  # noqa: E402


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
