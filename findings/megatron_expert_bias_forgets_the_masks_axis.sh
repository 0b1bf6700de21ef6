#!/usr/bin/env bash
# Megatron-Core 0.19.2: an expert bias and a padding mask do not go together.
#
# To leave padded tokens out of the counts behind the expert bias, TopKRouter's
# _apply_expert_bias takes `routing_map & (~padding_mask)`. The map is (tokens, experts) and
# the mask (tokens): it lacks an axis, so it is laid over the experts. Where there are as many
# tokens as experts, columns are left out in place of rows, without a word; for any other
# number of tokens the forward ends in an error. Seen with torch 2.15.0, on a CPU, where every
# token goes to every expert, and the first is padding:
#   3 tokens, 3 experts: counts [0.0, 3.0, 3.0]
#   4 tokens, 3 experts: RuntimeError
# With the axis, padding_mask.unsqueeze(-1), both would be 2.0 or 3.0 for every expert, as here.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q torch==2.15.0 numpy packaging  # some 6 GB with its CUDA libraries
venv/bin/pip install -q --no-deps --ignore-requires-python megatron-core==0.19.2

cat >ask.py <<'TEXT'
import torch

from megatron.core.transformer.moe.router import TopKRouter

experts = 3
for tokens in (3, 4):
    router = object.__new__(TopKRouter)  # its constructor wants a GPU
    counts = torch.zeros(experts)
    router.__dict__.update(
        enable_expert_bias=True, local_tokens_per_expert=counts, _modules={}, _buffers={},
        _parameters={})
    padding = torch.zeros(tokens, dtype=torch.bool)
    padding[0] = True
    try:
        router._apply_expert_bias(torch.ones(tokens, experts, dtype=torch.bool), padding)
        said = f"counts {router.local_tokens_per_expert.tolist()}"
    except RuntimeError as error:
        said = type(error).__name__
    print(f"{tokens} tokens, {experts} experts: {said}")
TEXT
TORCHDYNAMO_DISABLE=1 venv/bin/python ask.py 2>errors | tee seen
diff seen - <<'TEXT'
3 tokens, 3 experts: counts [0.0, 3.0, 3.0]
4 tokens, 3 experts: RuntimeError
TEXT
echo "as described"
