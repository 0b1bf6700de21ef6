"""Threads, forks, and an interpreter that ends at a bad moment."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy
import pytest

import moe

SPECS = ["reference_cpu:fp32", "naive_gpu:fp32", "optimized_gpu:bf16"]


def run(code):
    """The code in a process of its own; its exit code and what it said."""
    done = subprocess.run([sys.executable, "-c", SETUP + code], timeout=60, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout


SETUP = """
import numpy, moe
config = moe.MoEConfig(hidden_size=20, num_moe_experts=5, moe_ffn_hidden_size=12,
                       add_bias_linear=False)
hidden = numpy.ones((7, 3, 20), numpy.float32)
parameters = moe.random_parameters(config)
"""


@pytest.mark.parametrize("spec", SPECS)
def test_threads_share_a_layer(config, hidden, spec):
    layer = moe.MoELayer(config, moe.random_parameters(config), spec)
    expected = layer.forward(hidden).output.copy().copy("fp32").numpy()
    wrong = []

    def work():
        for _ in range(4):
            forward = layer.forward(hidden)
            forward.backward(hidden)
            if (forward.output.copy("fp32").numpy() != expected).any():
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_lock_is_released_while_a_layer_runs():
    config = moe.MoEConfig(hidden_size=256, num_moe_experts=8, moe_ffn_hidden_size=512,
                           add_bias_linear=False)
    layer = moe.MoELayer(config, moe.random_parameters(config))
    hidden = numpy.ones((2048, 1, 256), numpy.float32)
    seen, done = [], threading.Event()

    def look():
        while not done.is_set():
            seen.append(time.monotonic())
            time.sleep(0.001)

    watcher = threading.Thread(target=look)
    watcher.start()
    start = time.monotonic()
    layer.forward(hidden)
    end = time.monotonic()
    done.set()
    watcher.join()
    within = [moment for moment in seen if start < moment < end]
    assert len(within) >= 3, f"{len(within)} looks in {end - start:.3f} s"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("spec", SPECS)
def test_a_forked_process_computes_the_same(config, hidden, spec):
    layer = moe.MoELayer(config, moe.random_parameters(config), spec)
    if not layer.spec.is_emulated and spec != SPECS[0]:
        pytest.skip("a GPU is its process's own")
    expected = layer.forward(hidden).output.copy("fp32").numpy()
    child = os.fork()
    if child == 0:
        same = False
        try:
            forward = layer.forward(hidden)
            forward.backward(hidden)
            same = (forward.output.copy("fp32").numpy() == expected).all()
        finally:
            os._exit(0 if same else 1)
    for _ in range(300):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child did not end")
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_layer_that_was_busy_at_the_fork_is_refused():
    code, said = run("""
import os, threading
layer = moe.MoELayer(config, parameters, "naive_gpu:fp32")
def work():
    while True:
        layer.forward(numpy.ones((700, 3, 20), numpy.float32))
threading.Thread(target=work, daemon=True).start()
refused = 0
for _ in range(20):
    child = os.fork()
    if child == 0:
        try:
            layer.forward(hidden)
        except moe.InputError as error:
            assert "busy" in str(error)
            os._exit(7)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 7), code
    if code == 7:
        refused = 1
        break
print(refused)
""")
    assert (code, said) == (0, "1\n")


@pytest.mark.parametrize("spec", SPECS)
def test_objects_that_outlive_the_interpreter(spec):
    code, said = run(f"""
import builtins
layer = moe.MoELayer(config, parameters, {spec!r})
builtins.kept = [layer, layer.forward(hidden), moe.trace(layer, hidden), parameters]
builtins.cycle = [builtins.kept]
builtins.cycle.append(builtins.cycle)
""")
    assert (code, said) == (0, "")


def test_an_exit_while_a_thread_runs_a_layer():
    code, said = run("""
import threading
layer = moe.MoELayer(config, parameters)
def work():
    while True:
        layer.forward(hidden).backward(hidden)
threading.Thread(target=work, daemon=True).start()
""")
    assert (code, said) == (0, "")


def test_an_exception_within_ranks_leaves_no_trace():
    code, said = run("""
def program(rank):
    if rank.rank == 1:
        raise SystemExit(3)
    rank.barrier()
moe.run_ranks(3, program)
""")
    assert (code, said) == (3, "")


def test_the_program_is_there():
    code, said = run("import sys; sys.exit(moe._moe.run_program(['info', '--fields']))")
    assert code == 0 and "--moe-router-topk" in said
    done = subprocess.run([sys.executable, "-m", "moe", "compare", "--tier", "no"],
                          timeout=60, text=True, capture_output=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
