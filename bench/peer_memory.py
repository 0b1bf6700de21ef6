"""What a forward and its backward hold, in bytes of tensors.

Ours are counted by the library, which makes all of its tensors itself; torch's by its
allocator on a GPU, and by its profiler, which sees every allocation, on a CPU."""

import gc

import torch

MARK = "peers.py: the forward is done"


def measure_memory(peer, device, library):
    """(held, peak): bytes between forward and backward, and the most at any time until
    all gradients are there, beyond tokens and parameters."""
    gc.collect()
    counters = library.counters(reset_peak=True) if library is not None else None
    measure = _on_gpu if device == "cuda" else _on_cpu
    held_of_ours = []

    def begin():
        run = peer.begin()
        if counters is not None:
            held_of_ours.append(_bytes_of(library, device)[0])
        return run

    held, peak = measure(begin, peer.finish)
    if counters is not None:
        before = counters.bytes if device == "cuda" else counters.tensor_bytes
        held += held_of_ours[0] - before
        peak += _bytes_of(library, device)[1] - before
    return held, peak


def _bytes_of(library, device):
    """Bytes of our tensors now, and at most since the peak was reset."""
    ours = library.counters(reset_peak=False)
    if device == "cuda":
        return ours.bytes, ours.peak_bytes
    return ours.tensor_bytes, ours.peak_tensor_bytes


def _on_gpu(begin, finish):
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run = begin()
    held = torch.cuda.memory_allocated() - before
    finish(run)
    peak = torch.cuda.max_memory_allocated() - before
    run.release()
    return held, peak


def _on_cpu(begin, finish):
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run = begin()
        with torch.profiler.record_function(MARK):
            pass
        finish(run)
    run.release()
    held = now = peak = 0
    events = profile.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == MARK:
            held = now
        elif event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return held, peak
