"""The table of peers.py."""

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
             f"{product:.0f} TFLOP/s and {copy:.0f} GB/s (bytes: the least that must "
             "move). Memory: held between forward and backward, and at most.", COLUMNS]
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
            f"{ms['p10']:>9.3f}{ms['p90']:>9.3f}{ms['count']:>4}{entry['tflops']:>9.1f}"
            f"{entry['tflops'] / product:>8.0%}{least / ms['median'] / 1e6 / copy:>6.0%}"
            f"{held:>11}{peak:>9}")
    return lines
