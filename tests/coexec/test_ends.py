"""The process ends, forks or is interrupted with a graph in flight: nothing hangs or crashes.

Each test runs a script in a process of its own, with a time limit, after the same preamble: `train`
co-executes, and `slow_step(x)` starts a graph that takes some tenths of a second.
"""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TIMEOUT_S = 90

PREAMBLE = """
import atexit, gc, os, signal, sys, threading, time
import numpy as np
import tensorflow as tf
import terra_tf as terra

weight = tf.Variable(tf.eye(4))

@terra.function
def train(x):
    weight.assign(weight * 0.5 + x)
    return tf.reduce_sum(weight)

@terra.function
def slow_step(x):
    for _ in range(10):
        x = tf.linalg.l2_normalize(x @ x, axis=1)
    weight.assign_add(tf.ones_like(weight))
    return tf.reduce_sum(x)

def warm_up(function, x, num_steps=4):
    for _ in range(num_steps):
        function(x + 0.0)
    assert function.stats().phase == "co-execution", function.explain()

small, large = tf.eye(4), tf.random.normal([768, 768])
warm_up(train, small)
"""


def start(script):
    environment = dict(os.environ, TF_CPP_MIN_LOG_LEVEL="2", PYTHONFAULTHANDLER="1")
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    if "TERRA_TEST_PATH" in environment:
        environment["PYTHONPATH"] = environment["TERRA_TEST_PATH"]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PREAMBLE + textwrap.dedent(script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, returncode=0):
    """Wait for a script to end with `returncode`; return its output and its errors."""
    try:
        output, errors = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # Makes faulthandler print every thread's stack.
        _, errors = process.communicate(timeout=10)
        raise AssertionError(f"the process hangs\\n{errors}") from None
    assert process.returncode == returncode, f"{process.returncode}\\n{output}\\n{errors}"
    assert "Fatal Python error" not in errors, errors
    return output, errors


def run(script, returncode=0):
    return finish(start(script), returncode)


pytestmark = pytest.mark.timeout(TIMEOUT_S + 20)


def test_exit_with_a_graph_in_flight():
    output, errors = run("""
        warm_up(slow_step, large)
        slow_step(large + 0.0)
        slow_step(large + 0.0)
        print("end")
    """)
    assert output == "end\n"
    assert "Traceback" not in errors


def test_exit_with_pending_tensors_kept_in_globals_and_cycles():
    run("""
        warm_up(slow_step, large)
        class Cycle: pass
        kept = []
        for _ in range(2):
            cycle = Cycle()
            cycle.self, cycle.loss = cycle, slow_step(large + 0.0)
            kept.append(slow_step(large + 0.0))
        builtins = __import__("builtins")
        builtins.kept_for_ever = kept
    """)


def test_sys_exit_inside_a_step():
    output, _ = run(
        """
        atexit.register(lambda: print(float(tf.reduce_sum(weight))))
        is_last = False

        @terra.function
        def step(x):
            weight.assign(x)
            if is_last:
                sys.exit(3)
            weight.assign_add(x)

        warm_up(step, small)
        is_last = True
        step(small * 2.0)
        """,
        returncode=3,
    )
    assert output == "8.0\n"


def test_unhandled_exception_ends_the_process_with_a_graph_in_flight():
    _, errors = run(
        """
        warm_up(slow_step, large)
        slow_step(large + 0.0)
        raise KeyError("the user's own")
        """,
        returncode=1,
    )
    assert "the user's own" in errors


def test_os_exit_with_a_graph_in_flight():
    run(
        """
        warm_up(slow_step, large)
        slow_step(large + 0.0)
        os._exit(5)
        """,
        returncode=5,
    )


def test_pending_loss_is_read_at_exit():
    output, _ = run("""
        warm_up(slow_step, large)
        loss = slow_step(large + 0.0)
        atexit.register(lambda: print(np.isfinite(float(loss))))
    """)
    assert output == "True\n"


def test_step_is_called_at_exit():
    output, _ = run("""
        before = weight.numpy()
        def at_exit():
            loss = train(small + 0.0)
            print(float(loss) == (before * 0.5 + np.eye(4)).sum())
        atexit.register(at_exit)
    """)
    assert output == "True\n"


def test_exception_at_exit():
    _, errors = run("""
        def at_exit():
            train(small + 0.0)
            raise ValueError("raised at exit")
        atexit.register(at_exit)
        train(small + 0.0)
    """)
    assert "raised at exit" in errors


def test_step_ends_with_keyboard_interrupt():
    _, errors = run(
        """
        is_last = False

        @terra.function
        def step(x):
            weight.assign(x)
            if is_last:
                signal.raise_signal(signal.SIGINT)
            return tf.reduce_sum(weight)

        warm_up(step, small)
        is_last = True
        step(small + 0.0)
        """,
        returncode=-signal.SIGINT,
    )
    assert "KeyboardInterrupt" in errors


def test_keyboard_interrupt_from_outside_stops_a_training_loop():
    process = start("""
        warm_up(slow_step, large)
        print("ready", flush=True)
        num_steps = 0
        try:
            while True:
                float(slow_step(large + 0.0)) if num_steps % 2 else slow_step(large + 0.0)
                num_steps += 1
        except KeyboardInterrupt:
            pass
        print(np.isfinite(float(train(small + 0.0))))
    """)
    assert process.stdout.readline() == "ready\n"
    try:
        process.wait(0.7)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    output, _ = finish(process)
    assert output == "True\n"


def test_daemon_thread_is_in_the_middle_of_a_step_at_exit():
    run("""
        is_inside = threading.Event()

        @terra.function
        def step(x):
            weight.assign(weight * 0.5 + x)
            if threading.current_thread() is not threading.main_thread():
                is_inside.set()
                time.sleep(60)
            return tf.reduce_sum(weight)

        warm_up(step, small)
        threading.Thread(target=lambda: step(small + 0.0), daemon=True).start()
        assert is_inside.wait(20)
    """)


def test_other_thread_ends_while_its_last_step_is_in_flight():
    output, _ = run("""
        warm_up(slow_step, large)
        losses = []
        thread = threading.Thread(target=lambda: losses.append(slow_step(large + 0.0)))
        thread.start()
        thread.join()
        print(np.isfinite(float(losses[0])))
    """)
    assert output == "True\n"


FORK_CHILD = """
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(30)
            assert float(tf.constant(1.0) + 2.0) == 3.0
            expected = weight.numpy() * 0.5 + np.eye(4)
            loss = train(small)
            assert float(loss) == expected.sum(), (loss, expected)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    print(train.stats().phase, np.isfinite(float(train(small + 0.0))))
"""


def test_forked_child_runs_eagerly_and_parent_goes_on():
    output, _ = run("terra.synchronize()\n" + textwrap.dedent(FORK_CHILD))
    assert output == "co-execution True\n"


def test_fork_with_a_step_in_flight():
    script = """
        warm_up(slow_step, large)
        pending = slow_step(large + 0.0)
        pid = os.fork()
        if pid == 0:
            try:
                signal.alarm(30)
                try:
                    pending.numpy()
                except BaseException as error:
                    assert isinstance(error, (terra.TerraError, tf.errors.OpError)), error
                os._exit(0)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        print(np.isfinite(float(pending)))
    """
    output, _ = run(script)
    assert output == "True\n"


def test_multiprocessing_fork_after_co_execution():
    output, _ = run("""
        import multiprocessing

        def child(queue):
            queue.put(float(tf.constant([1.0, 2.0])[1] * 2.0))

        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        process = context.Process(target=child, args=(queue,))
        train(small + 0.0)
        process.start()
        print(queue.get(timeout=30))
        process.join(30)
        print(process.exitcode, np.isfinite(float(train(small + 0.0))))
    """)
    assert output == "4.0\n0 True\n"


def test_module_is_torn_down_with_the_function_still_referenced():
    run("""
        class KeepsFunction:
            def __init__(self):
                self.function, self.loss = train, train(small + 0.0)
            def __del__(self):
                self.loss = None
        sys.kept = KeepsFunction()
    """)
