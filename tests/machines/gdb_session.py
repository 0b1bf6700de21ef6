#!/usr/bin/env python3
"""gdb_session.py : the README's sessions in gdb, line by line, on the build of ./moe gdb.

Exits with 1 when gdb shows anything else than what the README has below a command. A line
that ends in … is compared as far as it goes.
"""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "build/host-debug/cli/moe_stepping"
MARK = "@@ command"


def sessions(readme):
    """(environment, arguments, [(command, its lines)]) of each block that starts ./moe gdb."""
    for block in re.findall(r"^```\n(\$ .*?)^```$", readme, re.M | re.S):
        first, *lines = block.splitlines()
        words = shlex.split(first[2:])
        environment = dict(word.split("=", 1) for word in words if "=" in word)
        words = [word for word in words if word not in
                 [f"{name}={value}" for name, value in environment.items()]]
        if words[:2] != ["./moe", "gdb"]:
            continue
        steps = []
        for line in lines:
            if line.startswith("(gdb) "):
                steps.append((line[len("(gdb) "):], []))
            else:
                steps[-1][1].append(line)
        yield environment, words[2:], steps


def run(environment, arguments, commands):
    """What gdb says to each command."""
    words = ["gdb", "-q", "-nx", "-batch"]
    for setting in ("confirm off", "width 0", "style enabled off", "debuginfod enabled off"):
        words += ["-ex", f"set {setting}"]
    for command in commands:
        words += ["-ex", f"echo {MARK}\\n", "-ex", command]
    # As ./moe starts it: else the program would start itself once more
    output = subprocess.run(
        [*words, "--args", PROGRAM, *arguments], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
        env={**os.environ, "OMP_WAIT_POLICY": "passive", **environment}).stdout
    return output.split(MARK + "\n")[1:]


def shows(said, expected):
    lines = [line.split() for line in said.splitlines()]
    wanted = expected.rstrip("…").split()
    if not expected.endswith("…"):
        return wanted in lines
    start = " ".join(wanted)
    return any(" ".join(line).startswith(start) for line in lines)


def main():
    if not shutil.which("gdb"):
        sys.exit("gdb = missing: apt-get update && apt-get install gdb")
    if not PROGRAM.exists():
        sys.exit(f"program = {PROGRAM}: must be there; ./moe gdb builds it")
    differences = checked = 0
    for environment, arguments, steps in sessions((ROOT / "README.md").read_text()):
        print("./moe gdb", *arguments, flush=True)
        replies = run(environment, arguments, [command for command, _ in steps])
        replies += [""] * (len(steps) - len(replies))
        for (command, expected), said in zip(steps, replies):
            for line in expected:
                checked += 1
                if not shows(said, line):
                    differences += 1
                    print(f"  (gdb) {command}\n    README: {line}\n    gdb:    "
                          + said.strip().replace("\n", "\n            "))
    print(f"{checked} lines, {differences} differ")
    sys.exit(1 if differences or not checked else 0)


if __name__ == "__main__":
    main()
