#!/usr/bin/env python3
"""The layer beside its peers: one process, one GPU, the very same tensors.

What is compared is the part that all have: tokens to their experts and back, with the
routing given, forward and forward + backward. A peer is timed only after its values have
been held against an fp32 loop over the experts. Needs torch; transformers if there.

    python3 bench/peers.py --model qwen3_30b_a3b --tokens 32768 --routing uniform,skewed
    python3 bench/peers.py --cpu          # a rehearsal without a GPU: values, no times
"""

import argparse
import gc
import json
import pathlib
import sys

BOUNDS = {  # relative, output and gradients
    "ours": (6e-3, 1e-2),  # bf16, as for all our tiers
    # Others round more often, weights and sums included: wide enough for that, and far
    # under what a wrong formula gives.
    "theirs": (2e-2, 3e-2),
    "fp32": (1e-5, 1e-5),
}


class BadInput(Exception):
    """One line: field = value: what is allowed."""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise BadInput(message)


def whole(low, high):
    def parse(text):
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(
                f"{text}: must be a whole number from {low} to {high}")
        return int(text)

    return parse


def parse_flags(arguments):
    parser = Parser(prog="peers.py", description=__doc__.split("\n\n")[0],
                    epilog=__doc__.split("\n\n", 1)[1],
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="qwen3_30b_a3b", help="models, separated by commas")
    add("--routing", default="uniform",
        help="balanced, uniform, skewed, hot:N (N hot experts, the rest empty)")
    add("--tokens", type=whole(16, 1 << 22), default=16384)
    add("--only", help="peers, separated by commas; default: all")
    add("--seconds", type=whole(1, 86400), default=120,
        help="for all samples together; checking and compiling come on top")
    add("--rounds", type=whole(1, 10000), default=25,
        help="samples of each peer and pass, fewer of slow ones")
    add("--seed", type=whole(0, 1 << 31), default=0)
    add("--library", help="libmoe.so; default: beside this script, or in build/")
    add("--json", metavar="FILE", help="the results as data")
    add("--cpu", action="store_true", help="rehearse at tiny sizes; nothing is timed")
    return parser.parse_args(arguments)


def choose(field, text, known):
    names = text.split(",")
    for name in names:
        if name not in known:
            raise BadInput(f"{field} = {name}: known are {', '.join(known)}")
    return names


def check_routing(kind, model):
    if kind in ("balanced", "uniform", "skewed"):
        return
    count = kind[4:] if kind.startswith("hot:") else ""
    if not count.isdecimal() or not model.K <= int(count) <= model.E:
        raise BadInput(f"--routing = {kind}: must be balanced, uniform, skewed or hot:N "
                       f"with N from {model.K} to {model.E} for {model.name}")


def find_library(path):
    """The file; None when none was asked for and none is there."""
    if path is not None:
        if not pathlib.Path(path).is_file():
            raise BadInput(f"--library = {path}: no such file")
        return pathlib.Path(path).resolve()
    here = pathlib.Path(__file__).resolve().parent
    places = [here.parent / "lib" / "libmoe.so"]
    places += sorted((here.parent / "build").glob("*/bench/libmoe.so"))
    return next((place for place in places if place.is_file()), None)


def our_suppliers(library, device):
    """(names to run, [(name, why not)]): the library's tiers for this device."""
    if device == "cpu":
        return ["reference_cpu:fp32"], []
    names, left_out = [], []
    for supplier in library.suppliers():
        name = supplier["supplier"]
        if supplier["space"] != "device" or not name.endswith(":bf16"):
            continue
        if supplier["emulated"]:
            left_out.append((name, "this library runs its kernels on the CPU"))
        else:
            names.append(name)
    return names, left_out


def one_line(error):
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def first_torch():
    try:
        import torch
    except ImportError as error:
        raise BadInput(f"torch = absent: must be installed ({one_line(error)})") from None
    return torch


def main(arguments):
    flags = parse_flags(arguments)
    torch = first_torch()
    from moe_library import Library, LibraryError
    from peer_layers import PEERS
    from peer_problem import MODELS
    from peer_session import Session

    models = [MODELS[name] for name in choose("--model", flags.model, MODELS)]
    for kind in flags.routing.split(","):
        for model in models:
            check_routing(kind, model)
    if not flags.cpu and not torch.cuda.is_available():
        raise BadInput("device = none: needs an NVIDIA GPU that torch sees, or --cpu")
    if flags.json is not None and not pathlib.Path(flags.json).resolve().parent.is_dir():
        raise BadInput(f"--json = {flags.json}: no such folder")

    device, library, ours, left_out = "cpu" if flags.cpu else "cuda", None, [], []
    path = find_library(flags.library)
    if path is None:
        left_out.append(("ours", "no libmoe.so (build target moe_c, or --library)"))
    else:
        try:
            library = Library(path)
            ours, left_out = our_suppliers(library, device)
        except LibraryError as error:
            if flags.library is not None:
                raise BadInput(one_line(error)) from None
            left_out.append(("ours", one_line(error)))
    only = choose("--only", flags.only or ",".join([*PEERS, *ours]), [*PEERS, *ours])
    session = Session(flags, device, library, only, left_out, BOUNDS)
    session.run(models, flags.routing.split(","))
    if flags.json is not None:
        try:
            pathlib.Path(flags.json).write_text(json.dumps(session.result(), indent=1))
        except OSError as error:
            raise BadInput(f"--json = {flags.json}: {error.strerror}") from None
    gc.collect()
    return 1 if session.ours_failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BadInput as error:
        print(f"peers.py: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
