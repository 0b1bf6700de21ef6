"""The one line that bad input gets."""

from moe import InputError


def reject(field, value, allowed):
    """Raises InputError "<field> = <value>: <allowed>"."""
    raise InputError(f"{field} = {value}: {allowed}")
