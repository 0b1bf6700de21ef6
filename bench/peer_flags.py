"""The flags of peers.py; needs no torch."""

import argparse

DESCRIPTION = "The layer beside its peers: one process, the very same tensors."
DETAILS = """\
What is compared is the part that all have: tokens to their experts and back, with the
routing given, forward and forward + backward. A peer is timed only after its values have
been held against an fp32 loop over the experts.

  python3 bench/peers.py --model qwen3_30b_a3b --tokens 32768 --routing uniform,skewed
  python3 bench/peers.py --cpu --threads 2    the reference, in fp32, beside torch's CPU
  python3 bench/peers.py --rehearse           tiny sizes, on the CPU: values, no times"""

MODELS_OF = {"cuda": "qwen3_30b_a3b", "cpu": "e8_h512_f1024,e64_h1024_f512"}


class BadInput(Exception):
    """One line: field = value: what is allowed."""


class Parser(argparse.ArgumentParser):
    """argparse, without its own way to end the program."""

    def error(self, message):
        raise BadInput(message)


def whole(flag, low, high):
    """For argparse: the number that a text is."""
    def parse(text):
        if not text.isdecimal() or not low <= int(text) <= high:
            raise BadInput(f"{flag} = {text}: must be a whole number from {low} to "
                           f"{high}")
        return int(text)

    return parse


def parse_flags(arguments):
    """The flags as argparse has them. BadInput for what is not one."""
    parser = Parser(prog="peers.py", description=DESCRIPTION, epilog=DETAILS,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="models, separated by commas; default: " +
        "; ".join(f"{names} ({device})" for device, names in MODELS_OF.items()))
    add("--routing", default="uniform",
        help="balanced, uniform, skewed, hot:N (N hot experts, the rest empty)")
    add("--tokens", type=whole("--tokens", 16, 1 << 22),
        help="default: the model's, 16384 for most")
    add("--only", help="peers, separated by commas; default: all")
    add("--seconds", type=whole("--seconds", 1, 86400), default=120,
        help="for all samples together; checking and compiling come on top")
    add("--rounds", type=whole("--rounds", 1, 10000),
        help="samples of each peer and pass, fewer of slow ones; default: 25, on a CPU 5")
    add("--threads", type=whole("--threads", 1, 4096),
        help="of a CPU, for everybody; default: all")
    add("--seed", type=whole("--seed", 0, 1 << 31), default=0)
    add("--library", help="libmoe.so; default: beside this script, or in build/")
    add("--json", metavar="FILE", help="the results as data")
    add("--cpu", action="store_true", help="on the CPU, in fp32")
    add("--rehearse", action="store_true",
        help="on the CPU at tiny sizes; nothing is timed")
    flags, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise BadInput(f"flag = {unknown[0]}: unknown, --help shows those there are")
    flags.device = "cpu" if flags.cpu or flags.rehearse else "cuda"
    flags.model = flags.model or MODELS_OF["cpu" if flags.cpu else "cuda"]
    flags.rounds = flags.rounds or (5 if flags.cpu else 25)
    return flags


def choose(field, text, known):
    """Names separated by commas, each one of those known. BadInput otherwise."""
    names = text.split(",")
    for name in names:
        if name not in known:
            raise BadInput(f"{field} = {name}: known are {', '.join(known)}")
    return names


def check_routing(kind, model):
    """BadInput unless this routing can be had with this model."""
    if kind in ("balanced", "uniform", "skewed"):
        return
    count = kind[4:] if kind.startswith("hot:") else ""
    if not count.isdecimal() or not model.K <= int(count) <= model.E:
        raise BadInput(f"--routing = {kind}: must be balanced, uniform, skewed or hot:N "
                       f"with N from {model.K} to {model.E} for {model.name}")


def one_line(error):
    """What an error says, in a line of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
