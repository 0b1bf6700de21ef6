#!/usr/bin/env python3
"""The layer beside its peers, see --help. Needs torch; transformers if there."""

import json
import os
import pathlib
import sys

from peer_flags import BadInput, check_routing, choose, one_line, parse_flags

BOUNDS = {  # relative, output and gradients
    "ours": (6e-3, 1e-2),  # bf16, as for all our tiers
    # Others round more often, weights and sums included: wide enough for that, and far
    # under what a wrong formula gives.
    "theirs": (2e-2, 3e-2),
    "fp32": (1e-5, 1e-5),
}


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


def import_torch():
    try:
        import torch
    except ImportError as error:
        raise BadInput(f"torch = absent: must be installed ({one_line(error)})") from None
    return torch


def main(arguments):
    """The exit code: 0; 1 when ours raised or was over its bound. BadInput for flags."""
    flags = parse_flags(arguments)
    if flags.threads is not None:  # read by each OpenMP when it is loaded
        os.environ["OMP_NUM_THREADS"] = str(flags.threads)
    torch = import_torch()
    from moe_library import Library, LibraryError
    from peer_layers import PEERS
    from peer_problem import MODELS
    from peer_session import Session

    models = [MODELS[name] for name in choose("--model", flags.model, MODELS)]
    for kind in flags.routing.split(","):
        for model in models:
            check_routing(kind, model)
    if flags.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("device = none: needs an NVIDIA GPU that torch sees, --cpu or "
                       "--rehearse")
    if flags.json is not None and not pathlib.Path(flags.json).resolve().parent.is_dir():
        raise BadInput(f"--json = {flags.json}: no such folder")

    library, ours, left_out = None, [], []
    path = find_library(flags.library)
    if path is None:
        left_out.append(("ours", "no libmoe.so (build target moe_c, or --library)"))
    else:
        try:
            library = Library(path)
            ours, left_out = our_suppliers(library, flags.device)
        except LibraryError as error:
            if flags.library is not None:
                raise BadInput(one_line(error)) from None
            left_out.append(("ours", one_line(error)))
    only = choose("--only", flags.only or ",".join([*PEERS, *ours]), [*PEERS, *ours])
    session = Session(flags, library, only, left_out, BOUNDS)
    session.run(models, flags.routing.split(","))
    if flags.json is not None:
        try:
            pathlib.Path(flags.json).write_text(json.dumps(session.result(), indent=1))
        except OSError as error:
            raise BadInput(f"--json = {flags.json}: {error.strerror}") from None
    return 1 if session.ours_failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BadInput as error:
        print(f"peers.py: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
