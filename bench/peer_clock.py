"""How peers are timed: cold cache, shuffled turns, and the machine itself."""

import os
import pathlib
import random
import shutil
import statistics
import subprocess
import time

import torch


class Clock:
    """Seconds of one call on the device."""

    def __init__(self, device):
        self._cuda = device == "cuda"
        self._seconds = self._others = 0.0
        size = 64 << 20  # more than a core's own caches
        if self._cuda:
            properties = torch.cuda.get_device_properties(0)
            size = 2 * getattr(properties, "L2_cache_size", 128 << 20)
        self._flush = torch.empty(size, dtype=torch.uint8, device=device)

    def sample(self, action):
        """One call with an L2 cache that holds none of its data."""
        self._flush.zero_()
        if not self._cuda:
            busy, own, start = busy_seconds(), time.process_time(), time.perf_counter()
            action()
            seconds = time.perf_counter() - start
            self._seconds += seconds * os.cpu_count()
            self._others += busy_seconds() - busy - (time.process_time() - own)
            return seconds
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        action()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


    def others(self):
        """The share of the CPUs that other programs had during the samples so far."""
        return max(0.0, self._others / self._seconds) if self._seconds > 0 else 0.0


def busy_seconds():
    """Of all CPUs together, since the machine started; 0 where nobody says."""
    try:
        first = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0]
    except OSError:
        return 0.0
    user, nice, system, _, _, *interrupts = map(int, first.split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def free_memory(device):
    """Bytes that can still be had there."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) << 10 for line in lines
                if line.startswith("MemAvailable"))


def cpu_name():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "CPU"
    return next((line.split(":")[1].strip() for line in lines
                 if line.startswith("model name")), "CPU")


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
