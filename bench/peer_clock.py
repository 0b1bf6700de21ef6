"""How peers are timed: cold cache, shuffled turns, and the machine's own ceilings."""

import random
import shutil
import statistics
import subprocess
import time

import torch


class Clock:
    """Seconds of one call on the device; on a CPU for rehearsals, whose times nobody
    shows."""

    def __init__(self, device):
        self._cuda = device == "cuda"
        size = 1 << 20
        if self._cuda:
            properties = torch.cuda.get_device_properties(0)
            size = 2 * getattr(properties, "L2_cache_size", 128 << 20)
        self._flush = torch.empty(size, dtype=torch.uint8, device=device)

    def sample(self, action):
        """One call with an L2 cache that holds none of its data."""
        self._flush.zero_()
        if not self._cuda:
            start = time.perf_counter()
            action()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        action()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


def plan_rounds(seconds_each, budget, rounds):
    """Samples for each name: `rounds`, or as many as an equal share of what is left of
    the budget allows, at least one. The fast have their share first, so that a slow one
    takes nothing from them, and gets what they leave."""
    plan, left = {}, budget
    by_time = sorted(seconds_each, key=seconds_each.get)
    for index, name in enumerate(by_time):
        share = max(left, 0.0) / (len(by_time) - index)
        plan[name] = max(1, min(rounds, int(share / max(seconds_each[name], 1e-9))))
        left -= plan[name] * seconds_each[name]
    return plan


def interleave(clock, actions, plan, seed, tell=None):
    """Samples in seconds by name: rounds in shuffled order, so that heat and clocks are
    everybody's alike; those with fewer samples sit out evenly.
    @param tell  called with name and error when an action raises, which ends its part"""
    shuffle = random.Random(seed).shuffle
    samples = {name: [] for name in actions}
    most = max(plan.values(), default=0)
    for turn in range(most):
        order = [name for name in actions if
                 (turn + 1) * plan[name] // most > turn * plan[name] // most]
        shuffle(order)
        for name in order:
            if name not in samples:
                continue
            try:
                samples[name].append(clock.sample(actions[name]))
            except Exception as error:  # of whatever kind: the others go on
                if tell is None:
                    raise
                del samples[name]
                tell(name, error)
    return samples


def timing(samples):
    """Median and deciles in ms, as bench/result.h has them."""
    ms = sorted(1e3 * sample for sample in samples)
    last = len(ms) - 1
    return {"median": statistics.median(ms), "p10": ms[round(0.1 * last)],
            "p90": ms[round(0.9 * last)], "count": len(ms)}


def calibrate(clock, device, size, copy_bytes, rounds=10):
    """Ceilings of this machine at this moment: the best dense product, N(0, 1), bf16 on a
    GPU, and a copy, whose bytes count twice."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.zeros(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    actions = {"product": lambda: torch.mm(a, b), "copy": lambda: target.copy_(source)}
    for action in actions.values():
        action()
    samples = interleave(clock, actions, dict.fromkeys(actions, rounds), 0)
    product, copy = (statistics.median(samples[name]) for name in actions)
    return {"product_tflops": 2 * size ** 3 / product / 1e12,
            "copy_gb_per_s": 2 * copy_bytes / copy / 1e9}


def machine_state():
    """Name, power limit, clocks and what holds them back, from nvidia-smi; or nothing."""
    if shutil.which("nvidia-smi") is None:
        return ""
    fields = ("name,power.limit,power.draw,clocks.max.sm,clocks.sm,clocks.mem,"
              "temperature.gpu,clocks_throttle_reasons.active")
    try:
        result = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", "0"],
            capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
