"""Small models to be captured, for the tests of moe.capture."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")

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


class Wrapped(torch.nn.Module):
    """As DistributedDataParallel keeps a model."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *given, **named):
        return self.module(*given, **named)


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
