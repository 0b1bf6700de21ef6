"""What is wrong with a request, in one line."""


class CaptureError(ValueError):
    """Bad input; str() is one line, "what = value: what is allowed"."""


def reject(what, value, allowed):
    """Raises CaptureError "what = value: allowed", on one line."""
    raise CaptureError(" ".join(f"{what} = {value}: {allowed}".split()))


def counted(number, noun):
    """"1 token", "2,000 tokens"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
