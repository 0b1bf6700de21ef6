"""Makes the small file of notebook 7 from what `moe profile` writes.

    ./moe profile --preset qwen3_30b_a3b --scale 8 --json profile.json
    python notebooks/data/shorten_profile.py profile.json qwen3_30b_a3b 8

Steps keep their bytes, kernels their lines that ask the most; sources lose their folders.
"""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
MOST = 30  # lines of each tier


def asked(counters):
    """Requests of loads, stores and atomics, and the sectors of memory they touched."""
    kinds = [counters[kind] for kind in ("loads", "stores", "atomics")]
    return {name: sum(kind[name] for kind in kinds)
            for name in ("requests", "sectors", "ideal_sectors")}


def short_step(step):
    counters = [use["counters"] for use in step["kernels"]]
    return {"step": step["step"], "last_step": step["last_step"], "title": step["title"],
            "launches": sum(use["launches"] for use in step["kernels"]),
            "floor_bytes": step["floor_bytes"],
            "compulsory_bytes": sum(c["compulsory_bytes"] for c in counters),
            "requested_bytes": sum(c["requested_bytes"] for c in counters)}


def code_of(file, number):
    return " ".join((ROOT / file).read_text().splitlines()[number - 1].split())


def short_lines(kernels):
    lines = {}
    for kernel in kernels:
        for line in kernel["lines"]:
            path = str(pathlib.Path(line["file"]).relative_to(ROOT))
            known = lines.setdefault((path, line["line"]),
                                     {"requests": 0, "sectors": 0, "ideal_sectors": 0})
            for name, count in asked(line["counters"]).items():
                known[name] += count
    most = sorted(lines.items(), key=lambda item: -item[1]["sectors"])[:MOST]
    return [{"file": file, "line": number,
             "code": code_of(file, number), **counts}
            for (file, number), counts in most]


def main(path, preset, scale):
    profile = json.loads(pathlib.Path(path).read_text())
    short = {"preset": preset, "scale": int(scale), "tokens": profile[0]["tokens"],
             "rows": profile[0]["rows"], "tiers": {}}
    for tier in profile:
        name = tier["supplier"].split("experts=")[1].split(",")[0].split(" ")[0]
        short["tiers"][name] = {"host_waits": tier["host_waits"],
                                "steps": [short_step(step) for step in tier["steps"]],
                                "lines": short_lines(tier["kernels"])}
    target = pathlib.Path(__file__).with_name(f"profile_{preset}.json")
    text = re.sub(r"\{[^{}]*\}", lambda entry: " ".join(entry[0].split()),
                  json.dumps(short, indent=1))  # a line for each step, and each line
    assert json.loads(text) == short
    target.write_text(text + "\n")
    print(target, target.stat().st_size, "bytes")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
