#!/usr/bin/env bash
# torch 2.15.0: optimizers with fused=True write parameters and leave their version counter as
# it was; with foreach=True, and without either, it rises.
#
# The counter is how autograd sees that something saved for a backward was written to. So a
# backward after a fused step runs, with the new parameters in the place of those of its
# forward, where the same with foreach=True raises; and a cache whose key is the version keeps
# what was. torch.autograd.graph.increment_version() says it by hand: moe.torch does so after
# every step of a fused optimizer, for the parameters that it reads. Seen here, on a CPU:
#   fused    Adam 0, AdamW 0, SGD 0, Adagrad 0
#   foreach  Adam 1, AdamW 2, SGD 1, Adagrad 1
#   neither  Adam 1, AdamW 2, SGD 1, Adagrad 1
#   backward after a step with fused: 0.5 in place of 1.0
#   backward after a step with foreach: RuntimeError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q torch==2.15.0 numpy  # some 6 GB with its CUDA libraries

cat >ask.py <<'TEXT'
import torch

WAYS = {"fused": {"fused": True}, "foreach": {"foreach": True},
        "neither": {"foreach": False}}
for way, options in WAYS.items():
    versions = []
    for name in ("Adam", "AdamW", "SGD", "Adagrad"):
        parameter = torch.nn.Parameter(torch.ones(3))
        parameter.grad = torch.ones(3)
        getattr(torch.optim, name)([parameter], lr=0.1, **options).step()
        assert not torch.equal(parameter, torch.ones(3))
        versions.append(f"{name} {parameter._version}")
    print(f"{way:8}", ", ".join(versions))

for way in ("fused", "foreach"):
    x, w = torch.ones((), requires_grad=True), torch.nn.Parameter(torch.ones(()))
    y = x * w
    w.grad = torch.ones(())
    torch.optim.SGD([w], lr=0.5, **WAYS[way]).step()
    print(f"backward after a step with {way}:", end=" ")
    try:
        y.backward()
        print(x.grad.item(), "in place of 1.0")
    except RuntimeError as error:
        print(type(error).__name__)
TEXT
venv/bin/python ask.py 2>errors | tee seen
diff seen - <<'TEXT'
fused    Adam 0, AdamW 0, SGD 0, Adagrad 0
foreach  Adam 1, AdamW 2, SGD 1, Adagrad 1
neither  Adam 1, AdamW 2, SGD 1, Adagrad 1
backward after a step with fused: 0.5 in place of 1.0
backward after a step with foreach: RuntimeError
TEXT
echo "as described"
