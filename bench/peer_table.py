"""The tables of peers.py."""

from peer_layers import BOUNDS_ONLY, PEERS

COLUMNS = (f"{'peer':<26}{'pass':<8}{'model':<16}{'routing':<9}{'tokens':>7}{'ms':>9}"
           f"{'p10':>9}{'p90':>9}{'n':>4}{'TFLOP/s':>9}{'product':>8}{'copy':>6}"
           f"{'held B/tok':>11}{'peak MiB':>9}")


def ceilings(calibration):
    """The mean TFLOP/s and GB/s of the calibrations before and after."""
    return [sum(when[name] for when in calibration.values()) / len(calibration)
            for name in ("product_tflops", "copy_gb_per_s")]


def table(result, least_bytes):
    """Lines, from what --json writes.
    @param least_bytes  what must move at least, for each entry of result["peers"]"""
    product, copy = ceilings(result["calibration"])
    memory = {(entry["peer"], entry["model"], entry["routing"]): entry
              for entry in result["memory"]}
    lines = ["TFLOP/s: 6 T K H F forward, 18 both. Shares are of the mean ceilings, "
             f"{product:.3g} TFLOP/s and {copy:.3g} GB/s (bytes: the least that must "
             "move). Memory: held between forward and backward, beyond the output, and at "
             "most.", COLUMNS]
    for entry, least in zip(result["peers"], least_bytes):
        ms = entry["ms"]
        kept = memory.get((entry["peer"], entry["model"], entry["routing"]))
        held = peak = ""
        if kept is not None and entry["pass"] == "both":
            held = f"{kept['held_bytes_per_token']:.0f}"
            peak = f"{kept['peak_mib']:.0f}"
        lines.append(
            f"{entry['peer']:<26}{entry['pass']:<8}{entry['model']:<16}"
            f"{entry['routing']:<9}{entry['tokens']:>7}{ms['median']:>9.3f}"
            f"{ms['p10']:>9.3f}{ms['p90']:>9.3f}{ms['count']:>4}{entry['tflops']:>9.3g}"
            f"{entry['tflops'] / product:>8.0%}{least / ms['median'] / 1e6 / copy:>6.0%}"
            f"{held:>11}{peak:>9}")
    return lines


def beside_the_best(result):
    """Lines: our time and peak memory over those of the fastest of the others."""
    peaks = {(entry["peer"], entry["model"], entry["routing"]): entry["peak_mib"]
             for entry in result["memory"]}
    problems = {}
    for entry in result["peers"]:
        key = entry["model"], entry["routing"], entry["pass"]
        problems.setdefault(key, {})[entry["peer"]] = entry["ms"]["median"]
    lines = []
    for (model, routing, kind), medians in problems.items():
        others = {name: ms for name, ms in medians.items()
                  if name in PEERS and name not in BOUNDS_ONLY}
        if not others:
            continue
        best = min(others, key=others.get)
        for name in medians.keys() - PEERS.keys():
            line = f"{model}, {routing}, {kind}: {name} takes "
            line += f"{medians[name] / others[best]:.2f} x the time"
            mine, theirs = (peaks.get((peer, model, routing)) for peer in (name, best))
            if kind == "both" and mine is not None and theirs:
                line += f" and {mine / theirs:.2f} x the peak memory"
            lines.append(f"{line} of {best}")
    return lines
