#!/usr/bin/env python3
"""nsight.py COUNTED.json NCU.csv : what the observed build counted, held against a GPU.

Without a GPU, the figures of the product that ConformancePipeline multiplies first:

    ./moe microscope --rows 37 --out 44 --in 72 --json counted.json

On a machine with a GPU and Nsight Compute, the same kernels in moe_tests (a GPU build's, or
that of the folder which `./moe gpu-check --bundle` makes):

    ncu --csv --metrics $(tests/machines/nsight.py --metrics) moe_tests \\
        --gtest_filter=ConformancePipeline.EveryVersion* > ncu.csv

One line per kernel and counter; exit code 1 when any differs. It has not met a GPU yet.
"""

import csv
import json
import re
import sys

# What Nsight Compute counts, and the same of ours
METRICS = {
    "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum": lambda c: c["loads"]["requests"],
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum": lambda c: c["loads"]["sectors"],
    "l1tex__t_requests_pipe_lsu_mem_global_op_st.sum": lambda c: c["stores"]["requests"],
    "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum": lambda c: c["stores"]["sectors"],
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum":
        lambda c: c["shared"]["wavefronts"] - c["shared"]["ideal_wavefronts"],
}
# Versions whose kernel goes by another name on a GPU
PATTERNS = {"conflicting": r"\btiled_kernel<\D*32>", "padded": r"\btiled_kernel<\D*33>"}


def measured_by(path):
    """(kernel, metric) and its value, of each kernel's first launch."""
    with open(path, encoding="utf-8") as file:
        lines = [line for line in file if line.startswith('"')]  # not what ncu says besides
    values, first = {}, {}
    for row in csv.DictReader(lines):
        kernel = row["Kernel Name"]
        if first.setdefault(kernel, row["ID"]) == row["ID"]:
            values[kernel, row["Metric Name"]] = float(row["Metric Value"].replace(",", ""))
    return values


def main(arguments):
    if arguments == ["--metrics"]:
        print(",".join(METRICS))
        return 0
    if len(arguments) != 2:
        print(__doc__.splitlines()[0], file=sys.stderr)
        return 2
    with open(arguments[0], encoding="utf-8") as file:
        counted = json.load(file)["versions"]
    measured = measured_by(arguments[1])
    same = True
    for version in counted:
        name = version["version"]
        if name == "pipelined":  # its loads and products pass the LSU by
            continue
        pattern = PATTERNS.get(name, r"\b" + version["kernel"] + r"\b")
        for metric, of in METRICS.items():
            found = [value for (kernel, its), value in measured.items()
                     if its == metric and re.search(pattern, kernel)]
            ours = of(version["counters"])
            agrees = found == [ours]
            same = same and agrees
            theirs = f"{found[0]:.0f}" if found else "not measured"
            print(f"{'✓' if agrees else '✗'} {name:<12} {metric:<52} {ours:>9} {theirs:>9}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
