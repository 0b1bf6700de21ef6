"""What pickle calls: it knows a function of Python's by its name, and no other."""

from moe._moe import MoEConfig


def config_from_json(text):
    """The MoEConfig whose to_json() this is."""
    return MoEConfig.from_json(text)
