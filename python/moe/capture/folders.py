"""Whether files can be written into a folder, before a model is run for them."""
import contextlib
import os
import tempfile

from .errors import reject


def require_folder(what, path):
    """CaptureError unless `path` is a folder to write in, or can be made one.

    Tried, as only that tells for sure; what was made for it is gone afterwards.
    """
    made, missing, folder = [], [], os.path.abspath(path)
    while not os.path.exists(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    try:
        for folder in reversed(missing):
            os.mkdir(folder)
            made.append(folder)
        with tempfile.TemporaryFile(dir=path or "."):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        reject(what, path, f"must be a folder to write in ({reason})")
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # another has put something there
                os.rmdir(folder)
