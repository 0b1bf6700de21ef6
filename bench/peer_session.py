"""One run of peers.py: check, time, tell."""

import gc
import math

import torch

from peer_clock import (Clock, calibrate, cpu_name, interleave, machine_state,
                        plan_rounds, timing)
from peer_flags import one_line
from peer_layers import PEERS, Unfit, our_peer
from peer_memory import measure_memory
from peer_problem import Problem, reference, relative_error
from peer_table import beside_the_best, table

PASSES = {"forward": 1, "both": 3}  # times the forward's products
REHEARSED_TOKENS = 128


def show(text=""):
    print(text, flush=True)


def tiny(model):
    """The model with narrow experts, for rehearsals."""
    return type(model)(**{**vars(model), "H": 64, "F": 48})


def number(error):
    """For JSON, which has no NaN."""
    return error if math.isfinite(error) else None


class Session:
    """Problem by problem: every peer's values are checked, then all are timed in turns.

    A rehearsal does all of it as well, and throws the times away."""

    def __init__(self, flags, library, only, left_out, bounds):
        self.flags, self.device, self.library = flags, flags.device, library
        self.only, self.bounds = only, bounds
        self.rehearsal = flags.rehearse
        self.dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        if flags.threads is not None:
            torch.set_num_threads(flags.threads)
        self.clock = Clock(self.device)
        self.left_out = [{"peer": peer, "why": why} for peer, why in left_out]
        self.peers, self.least_bytes, self.checks, self.memory = [], [], [], []
        self.calibration = {}
        self.ours_failed = False
        torch.set_float32_matmul_precision("highest")  # the fp32 loop is the measure

    # ------------------------------------------------------------------------- the run
    def run(self, models, routings):
        self._describe()
        self._calibrate("before")
        share = self.flags.seconds / (len(models) * len(routings))
        for model in map(tiny, models) if self.rehearsal else models:
            for routing in routings:
                self._run_problem(model, routing, share)
        show()
        self._calibrate("after")
        lines = table(self.result(), self.least_bytes)
        if self.rehearsal:
            for times in (self.peers, self.memory, self.calibration):
                times.clear()
            passed = sum(check["ok"] for check in self.checks)
            lines = [f"{passed} of {len(self.checks)} checks passed; rehearsal: nothing "
                     "is timed"]
        elif self.device == "cpu":
            lines += beside_the_best(self.result())
            lines.append(f"Others had {self.clock.others():.0%} of the CPUs meanwhile")
        for line in lines:
            show(line)

    def result(self):
        """What --json writes."""
        name = "cpu" if self.rehearsal else self._device_name()
        return {"device": name, "torch": torch.__version__, "peers": self.peers,
                "calibration": self.calibration, "left_out": self.left_out,
                "checks": self.checks, "memory": self.memory}

    def _device_name(self):
        if self.device == "cuda":
            return torch.cuda.get_device_name(0)
        return f"{cpu_name()}, {torch.get_num_threads()} threads"

    def _describe(self):
        if self.rehearsal:
            show("rehearsal: nothing is timed; tiny sizes in fp32 on the CPU")
        else:
            show(f"Device  {self._device_name()}")
        show(f"torch   {torch.__version__}")
        for entry in self.left_out:
            show(f"left out: {entry['peer']}: {entry['why']}")

    def _calibrate(self, when):
        size, copy_bytes = ((64, 1 << 16) if self.rehearsal else
                            (8192, 1 << 30) if self.device == "cuda" else
                            (2048, 1 << 28))
        try:
            now = calibrate(self.clock, self.device, size, copy_bytes)
        except RuntimeError as error:  # a peer may have left the device unusable
            if when == "before":
                raise
            show(f"Ceilings {when}: {one_line(error)}")
            return
        self.calibration[when] = now
        if self.rehearsal:
            return
        state = machine_state()
        dtype = str(self.dtype).removeprefix("torch.")
        show(f"Ceilings {when}: torch.mm {dtype} {size}^3 {now['product_tflops']:.3g} "
             f"TFLOP/s, copy {now['copy_gb_per_s']:.3g} GB/s"
             + (f"; {state}" if state and self.device == "cuda" else ""))

    def _run_problem(self, model, routing, seconds):
        tokens = self.flags.tokens or model.tokens
        if self.rehearsal:
            tokens = min(tokens, REHEARSED_TOKENS)
        problem = Problem(model, tokens, routing, self.dtype, self.device,
                          self.flags.seed)
        counts = sorted(problem.counts)
        show(f"\n{model.name}: E={model.E} K={model.K} H={model.H} F={model.F}, "
             f"{tokens} tokens, {routing}: rows of an expert {counts[0]} to "
             f"{counts[-1]}, median {counts[len(counts) // 2]}")
        expected = reference(problem)
        peers = {}
        for name in self.only:
            peer = self._attempt(name, problem, lambda: self._check(
                name, problem, expected, seconds))
            if peer is not None:
                peers[name] = peer
        del expected
        for kind in PASSES:
            self._time(problem, peers, kind, seconds / len(PASSES))
        for name, peer in peers.items():
            self._attempt(name, problem, lambda: self._measure_memory(peer))
        peers.clear()
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _attempt(self, name, problem, action):
        """The result of an action of a peer; one line and None when it raises."""
        try:
            return action()
        except Exception as error:  # whatever a peer raises is the peer's end only
            if name not in PEERS and not isinstance(error, Unfit):
                self.ours_failed = True
            self._leave_out(name, problem, one_line(error))
            return None

    def _leave_out(self, name, problem, why):
        self.left_out.append({"peer": name, "why": f"{problem.model.name}, "
                                                   f"{problem.routing}: {why}"})
        show(f"left out: {name}: {why}")

    # ------------------------------------------------------------------------ the check
    def _make(self, name, problem):
        make = PEERS.get(name) or our_peer(name)
        return make(problem, self.library)

    def _check(self, name, problem, expected, seconds):
        """The peer, when its values are within its bound; otherwise None."""
        if name not in PEERS:
            self._require_speed(name, problem, seconds)
        peer = self._make(name, problem)
        run = peer.begin()
        output_error = relative_error(run.output.detach(), expected[0])
        gradients = peer.finish(run)
        errors = {}
        for leaf, gradient in gradients.items():
            if leaf == "probs" and gradient.shape != problem.chosen.shape:
                # (T, E): what lies where nobody was routed must be zero
                stray = gradient.masked_fill(problem.routing_map.bool(), 0.0)
                gradient = gradient.gather(1, problem.chosen)
                if stray.count_nonzero() > 0:
                    gradient = torch.full_like(gradient, torch.nan)
            errors[leaf] = relative_error(gradient, expected[1][leaf])
        # The worst, and NaN is worse than all
        worst = max(errors, key=lambda leaf: (errors[leaf] != errors[leaf], errors[leaf]))
        del gradients
        run.release()
        without_backward = peer.forward()
        forward_error = relative_error(without_backward.output.detach(), expected[0])
        without_backward.release()
        if not forward_error <= output_error:
            output_error = forward_error

        bound = self.bounds["fp32" if self.dtype == torch.float32 else
                            "ours" if peer.ours else "theirs"]
        ok = output_error <= bound[0] and errors[worst] <= bound[1]
        self.checks.append({"peer": name, "model": problem.model.name,
                            "routing": problem.routing,
                            "error_output": number(output_error),
                            "error_gradients": number(errors[worst]),
                            "worst_gradient": worst, "ok": ok})
        show(f"{'✓' if ok else '✗'} {name}: output {output_error:.1e} of {bound[0]:.0e}; "
             f"gradients {errors[worst]:.1e} of {bound[1]:.0e} (worst {worst})")
        if ok:
            return peer
        self.ours_failed = self.ours_failed or peer.ours
        self._leave_out(name, problem, "its error is over its bound; not timed")
        return None

    def _require_speed(self, name, problem, seconds):
        """Our tiers reach from naive to fast; a slow one must not take hours before the
        first line."""
        part = problem.head(max(16, problem.tokens // 16))
        peer = self._make(name, part)

        def both():
            run = peer.begin()
            peer.finish(run)
            run.release()

        both()
        estimate = self.clock.sample(both) * problem.tokens / part.tokens
        if estimate > seconds / 2 and not self.rehearsal:
            raise Unfit(f"would take about {estimate:.0f} s of {seconds:.0f} s for one "
                        f"forward and backward; try --tokens {part.tokens}")

    # ----------------------------------------------------------------------- the samples
    def _time(self, problem, peers, kind, seconds):
        def action_of(peer):
            def forward():
                peer.forward().release()

            def both():
                run = peer.begin()
                peer.finish(run)
                run.release()

            return forward if kind == "forward" else both

        actions = {name: action_of(peer) for name, peer in peers.items()}
        first = {}
        for name in list(actions):
            took = self._attempt(name, problem, lambda: self._first(actions[name]))
            if took is None:
                del actions[name]
                peers.pop(name)
            else:
                first[name] = took
        plan = plan_rounds(first, seconds - sum(first.values()),
                           2 if self.rehearsal else self.flags.rounds)
        samples = interleave(
            self.clock, actions, plan, self.flags.seed,
            lambda name, error: self._leave_out(name, problem, one_line(error)))
        flops = PASSES[kind] * problem.model.flops(problem.tokens)
        used = sum(count > 0 for count in problem.counts)
        least = problem.model.least_bytes(problem.tokens, used, problem.hidden.itemsize,
                                          kind == "both")
        for name, taken in samples.items():
            ms = timing(taken)
            self.peers.append({"peer": name, "pass": kind, "model": problem.model.name,
                               "routing": problem.routing, "tokens": problem.tokens,
                               "ms": ms, "tflops": flops / ms["median"] / 1e9})
            self.least_bytes.append(least)

    def _first(self, action):
        """Seconds of one call, after one that compiles or fills caches."""
        action()
        return self.clock.sample(action)

    def _measure_memory(self, peer):
        held, peak = measure_memory(peer, self.device, self.library)
        problem = peer.problem
        output = problem.tokens * problem.model.H * problem.hidden.itemsize
        self.memory.append({"peer": peer.name, "model": problem.model.name,
                            "routing": problem.routing,
                            "held_bytes_per_token": (held - output) / problem.tokens,
                            "peak_mib": peak / 2 ** 20})
