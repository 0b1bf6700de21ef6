"""libmoe.so for torch: our layer on tensors that torch owns (bench/moe_c.h)."""

import ctypes
import json
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_void_p

import torch

INTERFACE_VERSION = 2
HOST, DEVICE = 0, 1
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int32,
          torch.uint8]  # in the order of the interface


class Array(ctypes.Structure):
    """moe_array."""

    _fields_ = [("data", c_void_p), ("dtype", c_int32), ("space", c_int32),
                ("rank", c_int32), ("shape", c_int64 * 4)]


class Counters(ctypes.Structure):
    """moe_counters."""

    _fields_ = [("launches", c_int64), ("host_waits", c_int64), ("bytes", c_int64),
                ("peak_bytes", c_int64), ("tensor_bytes", c_int64),
                ("peak_tensor_bytes", c_int64)]


SIGNATURES = {
    "moe_suppliers": [POINTER(c_char_p)],
    "moe_create": [c_char_p, c_char_p, POINTER(c_void_p)],
    "moe_destroy": [c_void_p],
    "moe_set_parameter": [c_void_p, c_char_p, POINTER(Array)],
    "moe_experts_forward": [c_void_p, POINTER(Array), POINTER(Array), POINTER(Array),
                            c_void_p, POINTER(c_void_p), POINTER(Array)],
    "moe_last_backward": [c_void_p, POINTER(Array), c_void_p],
    "moe_gradient": [c_void_p, c_char_p, POINTER(Array)],
    "moe_release": [c_void_p],
    "moe_count": [c_int32, POINTER(Counters)],
}


class LibraryError(Exception):
    """What the library said, in one line."""


class Library:
    """The library at a path. LibraryError when it cannot be opened, or is another's."""

    def __init__(self, path):
        try:
            self._functions = ctypes.CDLL(str(path))
            version = self._functions.moe_interface_version()
        except (OSError, AttributeError) as error:
            raise LibraryError(f"library = {path}: {error}") from None
        if version != INTERFACE_VERSION:
            raise LibraryError(f"library = {path}: has interface version {version}, "
                               f"must be {INTERFACE_VERSION}")
        self._functions.moe_last_error.restype = c_char_p
        for name, arguments in SIGNATURES.items():
            getattr(self._functions, name).argtypes = arguments

    def call(self, name, *arguments):
        """Calls a function of the interface. LibraryError unless it returned 0."""
        if getattr(self._functions, name)(*arguments) != 0:
            raise LibraryError(self._functions.moe_last_error().decode())

    def suppliers(self):
        """What can run here: dicts with supplier, space, emulated and device."""
        text = c_char_p()
        self.call("moe_suppliers", byref(text))
        return json.loads(text.value)

    def counters(self, reset_peak):
        """What was asked for so far; new peaks may begin."""
        counters = Counters()
        self.call("moe_count", int(reset_peak), byref(counters))
        return counters


class Layer:
    """Our layer with the routing given, reading the parameters where torch has them."""

    def __init__(self, library, config, supplier, parameters):
        self._library = library
        self._handle = c_void_p()
        library.call("moe_create", json.dumps(config).encode(), supplier.encode(),
                     byref(self._handle))
        # Kept: the library reads this memory as long as the layer lives.
        self._parameters = dict(parameters)
        for name, tensor in self._parameters.items():
            library.call("moe_set_parameter", self._handle, name.encode(),
                         byref(array_of(tensor)))

    def __del__(self):
        if self._handle:
            self._library.call("moe_destroy", self._handle)

    def forward(self, hidden, probs, routing_map):
        """@return a Forward, with the output (T, H)."""
        return Forward(self._library, self._handle, (hidden, probs, routing_map))


class Forward:
    """One forward of a Layer. Its tensors are the library's, until release()."""

    def __init__(self, library, layer, inputs):
        self._library = library
        self._inputs = inputs  # kept for the backward, which may read them
        self._saved = c_void_p()
        output = Array()
        library.call("moe_experts_forward", layer, *(byref(array_of(x)) for x in inputs),
                     stream_of(inputs[0]), byref(self._saved), byref(output))
        self.output = tensor_at(output)

    def last_backward(self, grad_output):
        """Makes the gradients; what the forward kept is gone then, as in torch."""
        self._library.call("moe_last_backward", self._saved, byref(array_of(grad_output)),
                           stream_of(grad_output))

    def gradient(self, name):
        array = Array()
        self._library.call("moe_gradient", self._saved, name.encode(), byref(array))
        return tensor_at(array)

    def release(self):
        """Frees what the library holds; safe to call twice."""
        saved, self._saved, self.output = self._saved, c_void_p(), None
        self._library.call("moe_release", saved)

    def __del__(self):
        if self._saved:
            self.release()


def stream_of(tensor):
    """The stream that torch works in, where the tensor is; None for the default one."""
    if not tensor.is_cuda:
        return None
    return torch.cuda.current_stream(tensor.device).cuda_stream or None


def array_of(tensor):
    """The moe_array that points at a tensor's elements."""
    if not tensor.is_contiguous():
        raise LibraryError(f"tensor = strides {tensor.stride()}: must be contiguous")
    array = Array(data=tensor.data_ptr(), dtype=DTYPES.index(tensor.dtype),
                  space=DEVICE if tensor.is_cuda else HOST, rank=tensor.dim())
    for axis, size in enumerate(tensor.shape):
        array.shape[axis] = size
    return array


class _DeviceBytes:
    """Bytes on the device, as torch.as_tensor() understands them."""

    def __init__(self, address, count):
        self.__cuda_array_interface__ = {"data": (address, False), "shape": (count,),
                                         "typestr": "|u1", "version": 3}


def tensor_at(array):
    """The tensor of a moe_array, without a copy; it does not own its memory."""
    shape = list(array.shape[:array.rank])
    dtype = DTYPES[array.dtype]
    count = torch.Size(shape).numel() * dtype.itemsize
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    if array.space == HOST:
        memory = (ctypes.c_uint8 * count).from_address(array.data)
        return torch.frombuffer(memory, dtype=dtype).view(shape)
    flat = torch.as_tensor(_DeviceBytes(array.data, count), device="cuda")
    return flat.view(dtype).view(shape)
