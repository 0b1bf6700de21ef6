#!/usr/bin/env bash
# torch 2.15.0 writes to arrays that DLPack says are read-only.
#
# DLPack has a flag for memory that must not be written (since 1.0), and numpy (2.4.6) sets it
# for an array that is not writeable. numpy.from_dlpack() honours it. torch.from_dlpack() asks
# for a capsule of 1.0, so numpy, which would refuse an older one, hands the memory over; then
# the flag is dropped without a warning, and the tensor is an ordinary one: what is written to
# it is written to the array. (torch.from_numpy() warns of the same array.) Whoever maps a
# checkpoint for reading, or hands out views of shared weights, is not protected. Seen here:
#   numpy: ValueError
#   torch: no warning, array is now [7.0, 0.0, 0.0]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q torch==2.15.0 numpy==2.4.6  # some 6 GB with its CUDA libraries

cat >ask.py <<'TEXT'
import warnings

import numpy
import torch

array = numpy.zeros(3)
array.flags.writeable = False
try:
    numpy.from_dlpack(array)[0] = 7
    print("numpy: written")
except ValueError as error:
    print("numpy:", type(error).__name__)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    torch.from_dlpack(array)[0] = 7
print(f"torch: {len(caught) or 'no'} warning, array is now {array.tolist()}")
TEXT
venv/bin/python ask.py 2>errors | tee seen
diff seen - <<'TEXT'
numpy: ValueError
torch: no warning, array is now [7.0, 0.0, 0.0]
TEXT
echo "as described"
