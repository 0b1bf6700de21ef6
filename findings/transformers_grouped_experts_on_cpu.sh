#!/usr/bin/env bash
# transformers 5.24 runs experts as torch's grouped product unless it is told otherwise, on a
# CPU, too, and falls back by the version of torch and the address of the weights alone. So a
# model in float64, or one in bfloat16 whose experts' width is no multiple of 8, ends in an
# error of torch's in its first forward. Seen with torch 2.15.0:
#   F = 16, float64  default  Expected mat_a to be Float32, BFloat16 or Float16 matrix, got Double
#   F = 20, bfloat16 default  strides should be multiple of 16 bytes
# Way out: config._experts_implementation = "eager", one expert after the other.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q torch==2.15.0 transformers==5.24.0  # some 6 GB with CUDA libraries

cat >ask.py <<'TEXT'
import torch
from transformers import MixtralConfig, MixtralForCausalLM

SIZES = dict(vocab_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
             num_key_value_heads=2, num_local_experts=4)


def ask(width, dtype, experts):
    config = MixtralConfig(intermediate_size=width, **SIZES)
    if experts != "default":
        config._experts_implementation = experts
    model = MixtralForCausalLM(config).to(dtype)
    try:
        model(torch.arange(8)[None])
        said = "runs"
    except RuntimeError as error:
        said = str(error).splitlines()[0]
    print(f"F = {width}, {str(dtype).removeprefix('torch.'):<8} {experts:<8} {said}")


ask(16, torch.float32, "default")
ask(16, torch.float64, "default")
ask(16, torch.float64, "eager")
ask(20, torch.bfloat16, "default")
ask(20, torch.bfloat16, "eager")
ask(24, torch.bfloat16, "default")
TEXT
venv/bin/python ask.py 2>errors | tee seen
diff seen - <<'TEXT'
F = 16, float32  default  runs
F = 16, float64  default  Expected mat_a to be Float32, BFloat16 or Float16 matrix, got Double
F = 16, float64  eager    runs
F = 20, bfloat16 default  strides should be multiple of 16 bytes
F = 20, bfloat16 eager    runs
F = 24, bfloat16 default  runs
TEXT
echo "as described"
