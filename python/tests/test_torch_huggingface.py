"""moe.torch in models of transformers: the same losses, the same gradients, the same
training."""

import copy
import re

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import moe
import moe.torch

torch.set_num_threads(1)  # two pools of threads would wait for each other

COMMON = dict(vocab_size=37, hidden_size=20, num_hidden_layers=2, num_attention_heads=2,
              num_key_value_heads=2, head_dim=10, max_position_embeddings=64,
              initializer_range=0.2, num_experts_per_tok=3, pad_token_id=0)
MODELS = {
    "mixtral": dict(num_local_experts=5, intermediate_size=14),
    "qwen3_moe": dict(num_experts=7, moe_intermediate_size=9, intermediate_size=12,
                      norm_topk_prob=True, mlp_only_layers=[0]),
    "qwen3_moe_not_normalised": dict(num_experts=7, moe_intermediate_size=9,
                                     intermediate_size=12, norm_topk_prob=False),
    "deepseek_v3": dict(
        n_routed_experts=12, moe_intermediate_size=9, intermediate_size=12,
        num_experts_per_tok=4, n_group=4, topk_group=3, n_shared_experts=2,
        routed_scaling_factor=2.5, first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=8,
        qk_rope_head_dim=4, head_dim=4, qk_nope_head_dim=6, v_head_dim=6),
    "gpt_oss": dict(num_local_experts=5, intermediate_size=14, sliding_window=8,
                    swiglu_limit=0.5, hidden_act="silu"),
}


def make_model(name, seed=0, **fields):
    kind = name.removesuffix("_not_normalised")
    config = transformers.AutoConfig.for_model(kind, **COMMON | MODELS[name] | fields)
    config._attn_implementation = config._experts_implementation = "eager"
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for module in model.modules():
        if hasattr(module, "e_score_correction_bias"):
            module.e_score_correction_bias.normal_(std=0.05)
        for bias in ("gate_up_proj_bias", "down_proj_bias"):
            if hasattr(module, bias):
                torch.nn.init.normal_(getattr(module, bias), std=0.3)
    return model.train()


def ids(seed, batch=3, length=7):
    return torch.randint(1, 37, (batch, length),
                         generator=torch.Generator().manual_seed(seed))


def a_block(model):
    """Its name, and the first MoE block."""
    for name, module in model.named_modules():
        if type(module).__name__ in ("MixtralSparseMoeBlock", "Qwen3MoeSparseMoeBlock",
                                     "DeepseekV3MoE", "GptOssMLP"):
            return name, module


def close(got, want, bound=3e-6):
    """Within what scores in float32 leave of float64."""
    got, want = got.detach(), want.detach()
    error = float((got - want).norm() / want.norm().clamp(min=1e-30))
    assert error <= bound, error


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_our_layers_is_the_model(name):
    theirs = make_model(name).double()
    ours = copy.deepcopy(theirs)
    names = moe.torch.replace(ours, "reference_cpu:fp64")
    assert len(names) == (1 if name in ("qwen3_moe", "deepseek_v3") else 2)
    assert all(isinstance(ours.get_submodule(n), moe.torch.MoELayer) for n in names)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for model in (theirs, ours):
        model.output = model(input_ids=ids(1), labels=ids(1))
        model.output.loss.backward()
    close(ours.output.loss, theirs.output.loss)
    close(ours.output.logits, theirs.output.logits)
    mine = dict(ours.named_parameters())
    for key, parameter in theirs.named_parameters():
        if parameter.grad is not None:
            close(mine[key].grad, parameter.grad, 1e-5)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_training_goes_the_same_way(name):
    """Five steps of Adam: the layer sees what the optimizer writes in place."""
    theirs = make_model(name).double()
    ours = copy.deepcopy(theirs)
    moe.torch.replace(ours, "reference_cpu:fp64")
    paths = []
    for model in (theirs, ours):
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        paths.append([])
        for step in range(5):
            loss = model(input_ids=ids(step), labels=ids(step)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            paths[-1].append(loss.item())
    assert paths[0][0] > paths[0][-1] or paths[0][0] != paths[0][1]
    assert paths[1] == pytest.approx(paths[0], rel=1e-5)


@pytest.mark.parametrize("checkpointing", [{"use_reentrant": False},
                                           {"use_reentrant": True}])
def test_gradient_checkpointing_changes_nothing(checkpointing):
    model = make_model("mixtral")
    moe.torch.replace(model)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(input_ids=ids(1), labels=ids(1)).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        model.activation_checkpointing_enable(checkpointing)
        assert model.is_activation_checkpointing
    for got, want in zip(*gradients):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_the_auxiliary_loss_of_the_model_still_comes(name):
    """Hugging Face's is of the router's logits, which hooks on the block's router see."""
    theirs = make_model(name, output_router_logits=True,
                        router_aux_loss_coef=0.5).double()
    ours = copy.deepcopy(theirs)
    moe.torch.replace(ours, "reference_cpu:fp64")
    for model in (theirs, ours):
        model.output = model(input_ids=ids(1), labels=ids(1))
        model.output.loss.backward()
    close(ours.output.aux_loss, theirs.output.aux_loss)
    close(ours.output.loss, theirs.output.loss)
    for name, parameter in theirs.named_parameters():
        if name.endswith(("gate.weight", "router.weight")):
            close(ours.get_parameter(name).grad, parameter.grad, 1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_block_and_a_layer_by_its_names(name):
    """from_huggingface() shares; a new layer loads the block's state_dict as it is."""
    model = make_model(name)
    _, block = a_block(model)
    block.train(name != "mixtral")
    x = torch.randn(3, 5, 20, generator=torch.Generator().manual_seed(2))
    want = block(x)
    shared = moe.torch.MoELayer.from_huggingface(block, model.config)
    fresh = moe.torch.MoELayer(shared.config, names=shared.names)
    fresh.load_state_dict(block.state_dict(), strict=True)
    shapes = {key: tensor.shape for key, tensor in block.state_dict().items()}
    assert {k: t.shape for k, t in fresh.state_dict().items()} == shapes
    assert shared.training == block.training
    assert list(map(id, shared.parameters())) == list(map(id, block.parameters()))
    for layer in (shared, fresh, copy.deepcopy(shared)):
        got = layer(x)
        if name != "gpt_oss":
            got, want = (got,), (want,) if torch.is_tensor(want) else want
        assert type(got) is tuple and len(got) == len(want)
        for mine, theirs in zip(got, want):
            assert mine.is_contiguous()
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_bf16_model_in_the_bf16_tier():
    theirs = make_model("qwen3_moe").bfloat16()
    ours = copy.deepcopy(theirs)
    moe.torch.replace(ours, "optimized_gpu:bf16")
    name, block = a_block(theirs)
    layer = ours.get_submodule(name)
    x = torch.randn(2, 5, 20, generator=torch.Generator().manual_seed(4)).bfloat16()
    gradients = []
    for module in (block, layer):
        leaf = x.clone().requires_grad_()
        output = module(leaf)
        assert output.dtype == torch.bfloat16
        output.float().square().sum().backward()
        gradients.append([output.detach(), leaf.grad,
                          *(p.grad for p in module.parameters())])
    for mine, want in zip(gradients[1], gradients[0]):
        assert mine.dtype == torch.bfloat16
        close(mine.float(), want.float(), 3e-2)


def test_a_model_is_saved_and_loaded_as_ever(tmp_path):
    model = make_model("deepseek_v3")
    before = model(input_ids=ids(3)).logits
    moe.torch.replace(model)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", experts_implementation="eager")
    torch.testing.assert_close(again(input_ids=ids(3)).logits, before)


def test_capacity_in_the_order_of_the_layer():
    """Position decides who stays, and the layer's first tokens are the sequences' first:
    one batch in Hugging Face's order is Megatron's transposed."""
    model = make_model("mixtral")
    _, block = a_block(model)
    config = moe.torch.MoELayer.from_huggingface(block, model.config).config.replace(
        moe_expert_capacity_factor=0.5, moe_token_drop_policy="position")
    layer = moe.torch.MoELayer.from_huggingface(block, config)
    plain = moe.torch.MoELayer(config)
    plain.load_state_dict({"router.weight": block.gate.weight,
                           "experts.linear_fc1.weight": block.experts.gate_up_proj,
                           "experts.linear_fc2.weight": block.experts.down_proj})
    x = torch.randn(3, 8, 20)
    torch.testing.assert_close(layer(x).transpose(0, 1), plain(x.transpose(0, 1))[0])
    assert not torch.allclose(layer(x), block(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name, field, value, says", [
    ("mixtral", "router_jitter_noise", 0.1, "router_jitter_noise = 0.1: must be 0"),
    ("mixtral", "hidden_act", "tanh", 'hidden_act = "tanh": the layer has silu'),
    ("gpt_oss", "swiglu_alpha", 1.5, "swiglu_alpha = 1.5: must be 1.702"),
    ("mixtral", "num_experts_per_tok", 1, "moe_router_topk = 1: must be"),
    ("deepseek_v3", "num_experts_per_tok", 1, "experts per token = 1: must be above 1"),
    ("mixtral", "intermediate_size", 15, "(5, 28, 20): must have shape (5, 30, 20)")])
def test_what_the_layer_does_not_represent_is_refused(name, field, value, says):
    model = make_model(name)
    setattr(model.config, field, value)
    before = a_block(model)[1]
    with pytest.raises(moe.InputError, match=re.escape(says)) as error:
        moe.torch.replace(model)
    assert "\n" not in str(error.value)
    assert a_block(model)[1] is before


def line(text):
    return pytest.raises(moe.InputError, match="^" + re.escape(text) + "[^\n]*$")


class Wrapper(torch.nn.Module):
    """As LoRA's: its forward() computes something, and it shows the other's tensors."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def __getattr__(self, name):
        return self._modules["base"] if name == "base" else getattr(self.base, name)

    def forward(self, *given):
        return self.base(*given)


@pytest.mark.parametrize("name, child, kind", [
    ("mixtral", "gate", "MixtralTopKRouter"),
    ("qwen3_moe", "experts", "Qwen3MoeExperts"),
    ("deepseek_v3", "shared_experts", "DeepseekV3MLP"),
    ("deepseek_v3", "shared_experts.gate_proj", "Linear"),
    ("gpt_oss", "router", "GptOssTopKRouter")])
def test_what_wraps_a_child_is_refused(name, child, kind):
    model = make_model(name)
    layer = model.get_submodule(moe.torch.replace(model)[0])
    layer.set_submodule(child, Wrapper(layer.get_submodule(child)))
    with line(f"{child} = Wrapper: must be the {kind} that the layer was made with; the"):
        model(input_ids=ids(1))
    layer = copy.deepcopy(layer)
    layer.set_submodule(child, layer.get_submodule(child).base)
    layer(torch.zeros(1, 2, 20))
    layer.get_submodule(child).forward = lambda *_: None
    with line(f"{child}.forward = set on it: must be that of {kind}; another would not"):
        layer(torch.zeros(1, 2, 20))


HOOKS = {"forward hook": "register_forward_hook",
         "forward pre-hook": "register_forward_pre_hook",
         "backward hook": "register_full_backward_hook",
         "backward pre-hook": "register_full_backward_pre_hook"}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("name, child", [
    ("mixtral", "gate"), ("mixtral", "experts"), ("deepseek_v3", "shared_experts"),
    ("deepseek_v3", "shared_experts.up_proj"), ("gpt_oss", "router")])
def test_hooks_that_would_not_run_are_refused(name, child, hook):
    if hook == "forward hook" and child in ("gate", "router"):
        return  # runs
    model = make_model(name)
    layer = model.get_submodule(moe.torch.replace(model)[0])
    handle = getattr(layer.get_submodule(child), HOOKS[hook])(lambda *_: None)
    with line(f"hook of {child} = {hook}: must not be there; the layer does not call "):
        model(input_ids=ids(1))
    handle.remove()
    model(input_ids=ids(1))


def test_hooks_that_would_not_run_are_refused_before_anything_is_replaced():
    model = make_model("mixtral")
    before = a_block(model)[1]
    model.model.layers[1].mlp.experts.register_forward_hook(lambda *_: None)
    with line("hook of experts = forward hook: must not be there"):
        moe.torch.replace(model)
    assert a_block(model)[1] is before


@pytest.mark.parametrize("grad", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_hooks_of_the_router_may_only_look(name, grad):
    model = make_model(name)
    layer = model.get_submodule(moe.torch.replace(model)[0])
    router, seen = layer.router if name == "gpt_oss" else layer.gate, []
    with grad():
        want = model(input_ids=ids(1)).logits
        for hook in (lambda _, __, o: seen.append(o[0]), lambda _, __, o: o):
            router.register_forward_hook(hook)
        got = model(input_ids=ids(1), output_router_logits=True)
        assert torch.equal(got.logits, want) and len(seen) == 1
        assert any(torch.equal(seen[0], one) for one in got.router_logits)
        hooks = dict(router._forward_hooks)
        for hook in (lambda _, __, o: (o[0], 2 * o[1], o[2]), lambda _, __, o: o[0],
                     lambda _, __, o: (o[0], o[1].detach().clone(), o[2]),
                     lambda _, __, o: setattr(o[1], "data", 2 * o[1])):
            handle = router.register_forward_hook(hook)
            with line(("hook of router" if name == "gpt_oss" else "hook of gate") +
                      " = changes its output: may only look at it"):
                model(input_ids=ids(1))
            handle.remove()
            assert dict(router._forward_hooks) == hooks


@pytest.mark.parametrize("name, child, field, value, says", [
    ("mixtral", "gate", "top_k", 1, "gate.top_k = 1: must be 3"),
    ("mixtral", "experts", "act_fn", torch.nn.Tanh(), "experts.act_fn = Tanh: must"),
    ("qwen3_moe", "gate", "norm_topk_prob", False, "gate.norm_topk_prob = False: must"),
    ("deepseek_v3", "shared_experts", "act_fn", torch.nn.Tanh(),
     "shared_experts.act_fn = Tanh: must be Si"),
    ("deepseek_v3", "gate", "routed_scaling_factor", 1.0,
     "gate.routed_scaling_factor = 1.0: must be 2.5"),
    ("gpt_oss", "experts", "limit", 7.0, "experts.limit = 7.0: must be 0.5")])
def test_a_block_that_was_changed_since_its_config_made_it(name, child, field, value,
                                                           says):
    model = make_model(name)
    path, block = a_block(model)
    setattr(block.get_submodule(child), field, value)
    with line(says):
        moe.torch.replace(model)
    assert model.get_submodule(path) is block


def test_top_k_is_that_of_a_config_of_ours():
    model = make_model("mixtral")
    _, block = a_block(model)
    config = moe.torch.MoELayer.from_huggingface(block, model.config).config
    with line("gate.top_k = 3: must be 2, as the config has it"):
        moe.torch.MoELayer.from_huggingface(block, config.replace(moe_router_topk=2))


def test_looking_at_a_blocks_config_draws_no_random_numbers():
    model = make_model("deepseek_v3")
    before = torch.get_rng_state()
    moe.torch.replace(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_no_model():
    block = a_block(make_model("mixtral"))[1]
    for thing, says in ((None, "model = NoneType: must be a model of transformers"),
                        (torch.nn.Linear, "model = type: must be a model of"),
                        (torch.nn.Sequential(block), "model = Sequential: must be a "
                         "model of transformers, with its config; MoELayer.from_")):
        with line(says):
            moe.torch.replace(thing)
    for config in (None, {}, "mixtral"):
        with line(f"config = {type(config).__name__}: must be the config of the block's"):
            moe.torch.MoELayer.from_huggingface(block, config)
    with line("block = NoneType: must be one of Mixtral"):
        moe.torch.MoELayer.from_huggingface(None, None)


def test_a_second_replacement_is_refused():
    model = make_model("mixtral")
    names = moe.torch.replace(model)
    layers = [model.get_submodule(name) for name in names]
    with line(f"{names[0]} = MoELayer: the model's blocks are replaced already"):
        moe.torch.replace(model)
    assert [model.get_submodule(name) for name in names] == layers


def test_other_models_are_refused():
    with pytest.raises(moe.InputError, match="model = Linear: must have a block of"):
        moe.torch.replace(torch.nn.Linear(2, 2))
    with pytest.raises(moe.InputError, match="block = Linear: must be one of Mixtral"):
        moe.torch.MoELayer.from_huggingface(torch.nn.Linear(2, 2), None)


def test_a_block_of_another_size_than_its_config():
    model = make_model("mixtral")
    _, block = a_block(model)
    config = moe.torch.MoELayer.from_huggingface(block, model.config).config
    with pytest.raises(moe.InputError, match=r"gate_up_proj = \(5, 28, 20\): must be"):
        moe.torch.MoELayer.from_huggingface(block,
                                            config.replace(moe_ffn_hidden_size=15))
    with pytest.raises(moe.InputError, match="experts.gate_up_proj = absent: a block of"):
        del block.experts.gate_up_proj
        moe.torch.MoELayer.from_huggingface(block, config)
