"""Golden files, as `moe verify` reads them (tests/golden/README.md). Needs numpy."""
import json
import os
import struct

import numpy as np

from .errors import reject

FORMAT = "moe-golden-1"
_DTYPES = {"float64": "F64", "float32": "F32", "int64": "I64", "int32": "I32",
           "uint8": "U8"}


class BFloat16:
    """An array of fp32 that bf16 holds exactly, to be stored in half the bytes.

    ValueError where it does not: writing never rounds.
    """

    def __init__(self, array):
        array = np.ascontiguousarray(array, dtype=np.float32)
        bits = array.view(np.uint32)
        if (bits & 0xFFFF).any():
            raise ValueError("values are not exactly representable in bf16")
        self.bits = (bits >> 16).astype("<u2").reshape(array.shape)
        self.shape, self.nbytes = array.shape, self.bits.nbytes


def narrowest(array):
    """The same values as BFloat16, fp32 or fp64, the first that holds them all."""
    if array.dtype.kind != "f":
        return array
    single = np.ascontiguousarray(array, dtype=np.float32)
    if array.dtype == np.float64 and not np.array_equal(single, array):
        return array
    exact = not (single.view(np.uint32) & 0xFFFF).any()
    return BFloat16(single) if exact else single


def _name_of(value):
    if isinstance(value, BFloat16):
        return "BF16"
    name = _DTYPES.get(value.dtype.name)
    if name is None:
        raise ValueError(f"dtype = {value.dtype}: a golden file holds "
                         + ", ".join(_DTYPES) + " and bf16")
    return name


def _bytes_of(value):
    array = value.bits if isinstance(value, BFloat16) else np.ascontiguousarray(value)
    return memoryview(array.reshape(-1).view(np.uint8))


def encode_header(tensors, metadata):
    """@return the header with its length in front, and names as their data follow it"""
    # Wide elements first: each then starts at a multiple of its size
    names = sorted(tensors, key=lambda n: (-_bytes_per_element(tensors[n]), n))
    header, end = {"__metadata__": metadata}, 0
    for name in names:
        value = tensors[name]
        header[name] = {"dtype": _name_of(value), "shape": list(value.shape),
                        "data_offsets": [end, end + value.nbytes]}
        end += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, names


def _bytes_per_element(value):
    return 2 if isinstance(value, BFloat16) else value.dtype.itemsize


def write_golden(path, tensors, config, case, source, max_bytes=None, **more):
    """Writes a file whole, or nothing: under a name beside it, then renamed.

    @param tensors  name -> numpy array or BFloat16
    @param config   Megatron's field names -> values
    @param more     further metadata: strings, or what becomes JSON; None is left out
    @return bytes written. CaptureError when they are more than max_bytes, OSError when
            the folder cannot be written.
    """
    metadata = {"format": FORMAT, "case": case, "source": source,
                "moe_config": json.dumps(config)}
    metadata.update({key: value if isinstance(value, str) else json.dumps(value)
                     for key, value in more.items() if value is not None})
    header, names = encode_header(tensors, metadata)
    size = len(header) + sum(value.nbytes for value in tensors.values())
    if max_bytes is not None and size > max_bytes:
        reject("max_bytes", max_bytes, f"{path} needs {size}")
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    unfinished = f"{path}.{os.getpid()}.part"
    try:
        with open(unfinished, "wb") as file:
            file.write(header)
            for name in names:
                file.write(_bytes_of(tensors[name]))
        os.replace(unfinished, path)
    finally:
        if os.path.exists(unfinished):
            os.remove(unfinished)
    return size


def tokens_that_fit(max_bytes, fixed_bytes, bytes_per_token, tokens, layer):
    """How many of the tokens a file has room for.

    CaptureError, with the number needed, where not one fits beside the weights.
    """
    room = (max_bytes - fixed_bytes) // bytes_per_token
    if room < 1:
        reject("max_bytes", max_bytes,
               f"{layer} needs at least {fixed_bytes + bytes_per_token}: {fixed_bytes} "
               f"for weights and what is expected of them, {bytes_per_token} for each "
               f"token; for all {tokens} tokens "
               f"{fixed_bytes + tokens * bytes_per_token}")
    return min(tokens, room)
