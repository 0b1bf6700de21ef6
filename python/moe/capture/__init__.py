"""Golden files from a running model: is this layer the one that your model has?

    python -m moe.capture --model MODEL --text FILE --layers 1,3 --out captured
    moe verify captured/*.safetensors

or around a training loop of your own, see `capture`. docs/capture.md has both.
"""
from .errors import CaptureError

__all__ = ["capture", "CaptureError"]


def __getattr__(name):
    if name == "capture":  # torch is needed from here on
        from .session import capture
        return capture
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
