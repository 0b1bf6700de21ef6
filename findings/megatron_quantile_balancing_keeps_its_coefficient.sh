#!/usr/bin/env bash
# Megatron-Core 0.19.2: quantile balancing with an auxiliary loss' coefficient is neither
# refused nor given that loss.
#
# TopKRouter asserts that "aux losses must be disabled (set moe_aux_loss_coeff to 0)" when
# moe_router_load_balancing_type is "quantile_balancing". What it asks, is_aux_loss_enabled(),
# looks a coefficient up by the router's own type among "aux_loss", "seq_aux_loss" and
# "global_aux_loss"; under quantile balancing none of them matches, so the answer is no
# whatever the coefficient. A config that keeps moe_aux_loss_coeff = 0.01 from an earlier run
# trains on without a word and without the loss. Seen with torch 2.15.0, on a CPU:
#   aux_loss            coefficient 0.01: enabled True
#   quantile_balancing  coefficient 0.01: enabled False
# So: do not rely on the assertion; look at the coefficient yourself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q torch==2.15.0 numpy packaging  # some 6 GB with its CUDA libraries
venv/bin/pip install -q --no-deps --ignore-requires-python megatron-core==0.19.2

cat >ask.py <<'TEXT'
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig

for kind in ("aux_loss", "quantile_balancing"):
    config = TransformerConfig(
        num_layers=1, hidden_size=8, num_attention_heads=1, num_moe_experts=4,
        moe_router_topk=2, moe_router_load_balancing_type=kind, moe_aux_loss_coeff=0.01)
    router = object.__new__(TopKRouter)  # its constructor wants a GPU
    router.__dict__.update(config=config, routing_type=kind)
    print(f"{kind:<19} coefficient {config.moe_aux_loss_coeff}: enabled "
          f"{router.is_aux_loss_enabled()}")
TEXT
venv/bin/python ask.py 2>errors | tee seen
diff seen - <<'TEXT'
aux_loss            coefficient 0.01: enabled True
quantile_balancing  coefficient 0.01: enabled False
TEXT
echo "as described"
