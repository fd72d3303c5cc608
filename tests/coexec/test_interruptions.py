"""An exception at any line of the runtime itself: the step ends, and training goes on as in eager.

`Twins.interrupt` raises at the k-th line that Terra runs in a call; afterwards ten steps are
eager's, and none waits. The slow test does so for every line, the others for some of them.
"""

import collections
import signal
import subprocess
import sys

import pytest
from interruption import Twins
from tensorflow.python.eager import context
from test_ends import start

import terra_tf as terra

# What is interrupted: how many steps come before it, in turn of which kinds, and of which it is.
SITUATIONS = {
    "traced": (0, [""], ""),
    "building": (1, [""], ""),
    "co-executed": (4, [""], ""),
    "in flight": (5, [""], ""),
    "diverging": (4, [""], "new"),
    "a third way": (6, ["", "checked"], "new"),
    "epochs": (5, ["epochs"], "epochs"),
    "fallible": (4, ["checked"], "checked"),
    "leaving": (4, ["raises"], "raises"),
}
# Thousands of lines: traces, merges and builds.
LONG = ("traced", "building", "diverging", "a third way")
STEPS_AFTER = 10


def interrupt_at(situation, number, error, within=""):
    """Interrupt a new program in a situation; returns what has been done."""
    num_steps, kinds_before, kind = SITUATIONS[situation]
    twins = Twins()
    for step in range(num_steps):
        twins.run(1, kinds_before[step % len(kinds_before)])
    if situation != "in flight":
        terra.synchronize()
    injection = twins.interrupt(number, error, kind, within)
    twins.run(STEPS_AFTER)
    twins.run(STEPS_AFTER, kind)
    return injection


def sweep(situation, error, first, stride, within=""):
    """Interrupt at every `stride`th line; returns how often."""
    number = first
    while interrupt_at(situation, number, error, within).where is not None:
        number += stride
    return (number - first) // stride


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError, MemoryError])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_some_lines(situation, error):
    offset = [KeyboardInterrupt, TimeoutError, MemoryError].index(error)
    stride = 1237 if situation in LONG else 29
    assert sweep(situation, error, offset * 7, stride) >= 3


@pytest.mark.parametrize("situation", ["traced", "building", "a third way", "leaving"])
def test_every_line_that_decides(situation):
    """What an entry has learned and what was built from it go together, wherever it stops."""
    assert sweep(situation, TimeoutError, 0, 1, within="runtime/entry.py") >= 15


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_line(situation, error):
    assert sweep(situation, error, 0, 1) > 100


def test_the_call_goes_on_co_executing():
    """What was interrupted is counted, and costs no more than a step."""
    twins = Twins()
    twins.run(6)
    twins.interrupt(150, KeyboardInterrupt)
    before = twins.terra.step.stats()
    twins.run(STEPS_AFTER)
    after = twins.terra.step.stats()
    assert after.phase == "co-execution"
    assert after.co_executed_steps >= before.co_executed_steps + STEPS_AFTER - 3


def test_recursion_limit():
    """An op at the end of the stack raises there; what the step did before is done."""
    import_of_program = """
        state = tf.Variable(0.0)

        @terra.function
        def deep(x, depth):
            state.assign_add(1.0)
            def descend(n):
                return tf.tanh(x) if n == 0 else descend(n - 1)
            try:
                return descend(depth)
            finally:
                state.assign_add(10.0)

        limit = sys.getrecursionlimit()
        x = tf.ones([2])
        for _ in range(5):
            deep(x, 3)
        terra.synchronize()
        assert deep.stats().phase == "co-execution"
        for depth in range(limit - 60, limit, 3):
            state.assign(0.0)
            try:
                deep(x + 1.0, depth)
            except RecursionError:
                pass
            assert state.numpy() in (0.0, 1.0, 11.0), (depth, state.numpy())
        state.assign(0.0)
        for _ in range(10):
            deep(x, 3)
        assert state.numpy() == 110.0 and sys.getrecursionlimit() == limit
        print("done")
    """
    process = start(import_of_program)
    stdout, stderr = process.communicate(timeout=90)
    assert process.returncode == 0 and stdout.strip() == "done", stderr[-3000:]


# TensorFlow's C++ does not bear an exception in Python that it calls: with eager alone, a signal
# that raises in `convert_to_eager_tensor` or in a gradient crashes the process within a minute. So
# the handler raises where Terra's Python or the program runs, and else tries again a little later.
STORM = """
    import random
    twin = tf.Variable(tf.eye(4))
    counter = tf.Variable(0.0)
    num_raised = num_raised_in_terra = 0
    pending = None
    ignored = []  # raised inside a `__del__` or a weak reference's callback, where CPython drops it

    class Limit({base}):
        pass

    def is_of_terra(frame):
        return frame.f_code.co_filename.startswith(os.path.dirname(terra.__file__))

    HANDLING = ("is_of_terra", "may_raise", "on_signal")

    def may_raise(frame):
        is_of_program = frame.f_globals is globals() and frame.f_code.co_name not in HANDLING
        return is_of_terra(frame) or is_of_program

    def on_signal(number, frame):
        global pending, num_raised_in_terra
        pending = pending or (KeyboardInterrupt if number == signal.SIGINT else Limit)
        if not may_raise(frame):
            signal.setitimer(signal.ITIMER_REAL, random.uniform(5e-5, 5e-4))
            return
        num_raised_in_terra += is_of_terra(frame)
        error, pending = pending, None
        raise error

    sys.unraisablehook = lambda unraisable: ignored.append(unraisable.exc_type)
    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGALRM, on_signal)

    @terra.function
    def step(x, flag):
        counter.assign_add(1.0)
        with tf.GradientTape() as tape:
            h = x
            for _ in range(3):
                h = tf.tanh(h @ weight)
            if flag:
                h = tf.sin(h)
            loss = tf.reduce_mean(h**2)
        weight.assign_sub(0.01 * tape.gradient(loss, weight))
        counter.assign_add(1.0)
        return loss

    random.seed({seed})
    for k in range({count}):
        delay = random.uniform(0.0, 0.03)
        try:
            if k % 2:
                signal.setitimer(signal.ITIMER_REAL, delay)
            else:
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
            for i in range(1000000):
                step(small, i % 7 == 3)
                if k % 5 == 0:
                    float(counter)
                if ignored:
                    break
        except (KeyboardInterrupt, Limit):
            num_raised += 1
        if k % 20 == 19:  # as eager from here on
            if k % 40 == 39:
                step.reset()
            terra.synchronize()
            twin.assign(weight)
            for i in range(5):
                got = step(small, False)
                with tf.GradientTape() as tape:
                    h = small
                    for _ in range(3):
                        h = tf.tanh(h @ twin)
                    loss = tf.reduce_mean(h**2)
                twin.assign_sub(0.01 * tape.gradient(loss, twin))
                assert got.numpy() == loss.numpy()
            assert (twin.numpy() == weight.numpy()).all()
        for ignored_type in ignored:
            assert issubclass(ignored_type, (KeyboardInterrupt, Limit)), ignored_type
            num_raised += 1
        ignored.clear()
    assert num_raised == {count}, num_raised
    assert num_raised_in_terra > {count} / 4, num_raised_in_terra
    print("done")
"""


def storm(seed, count, timeout_s, base):
    script = STORM.replace("{seed}", str(seed)).replace("{count}", str(count))
    process = start(script.replace("{base}", base))
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # faulthandler prints the stacks
        stacks = process.communicate()[1]
        raise AssertionError(stacks[stacks.find("Fatal Python error") :][:4000]) from None
    assert process.returncode == 0 and stdout.strip() == "done", stderr[-4000:]


@pytest.mark.timeout(150)
@pytest.mark.parametrize("base", ["BaseException", "Exception"])
def test_signals_at_random_moments(base):
    storm(0, 60, 120, base)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("base", ["BaseException", "Exception"])
def test_a_thousand_signals_at_random_moments(base):
    storm(1, 1000, 1200, base)


def test_building_runs_no_python_of_tensorflow_in_the_callers_thread():
    """Where an exception from outside would leave a graph open."""
    twins, seen = Twins(), collections.Counter()

    def on_call(frame, event, argument):
        is_building, caller = False, frame.f_back
        while caller is not None and not is_building:
            is_building = caller.f_code.co_name == "build_graph"
            caller = caller.f_back
        file = frame.f_code.co_filename
        if is_building and ("tensorflow" in file or "contextlib" in file):
            seen[file] += 1

    twins.run(1, "")
    sys.settrace(on_call)
    try:
        twins.run(3, "")
    finally:
        sys.settrace(None)
    assert twins.terra.step.stats().phase == "co-execution"
    assert seen.pop(context.__file__) > 0  # which devices there are is asked beforehand
    assert not seen


# The signal comes a little after a build has reached some op, wherever Python is then, early in
# some builds and late in others; and no build ends before. So how long they take does not matter.
BUILDS = """
    class Limit({base}):
        pass

    from terra_tf.runtime import built_graph
    from terra_tf.runtime.build_watch import BuildWatch
    check, build, came = BuildWatch.check, built_graph._build, threading.Event()
    at_op = None  # of the next build
    ops_left = {}  # of each build, until it comes

    def checked(watch):
        check(watch)
        left = ops_left.setdefault(watch, at_op)
        ops_left[watch] = left - 1 if left else None
        if left == 0:
            signal.setitimer(signal.ITIMER_REAL, 1e-5 + 2e-4 * (k % 5))

    def build_until_it_comes(*args):
        is_awaited = at_op is not None
        built = build(*args)
        assert not is_awaited or came.wait(60)
        return built

    def on_signal(number, frame):
        came.set()
        while frame.f_code.co_name != "build_graph":
            frame = frame.f_back
        raise Limit

    BuildWatch.check, built_graph._build = checked, build_until_it_comes
    signal.signal(signal.SIGALRM, on_signal)
    twin = tf.Variable(tf.eye(4))
    num_raised = 0
    for k in range(10):
        @terra.function
        def step(x):
            for _ in range(24):
                x = tf.tanh(x @ weight)
            weight.assign_add(x)
            return x

        twin.assign(weight)
        for i in range(8):
            came.clear()
            at_op = 5 * k if i < 3 else None
            before, runs = weight.numpy(), True
            try:
                step(small)
            except Limit:
                num_raised += 1
                runs = (weight.numpy() != before).any()  # it may be built before it runs
            assert tf.executing_eagerly() and not tf.compat.v1.get_default_graph().building_function
            x = small
            for _ in range(24):
                x = tf.tanh(x @ twin)
            if runs:
                twin.assign_add(x)
            assert (twin.numpy() == weight.numpy()).all(), (k, i)
        assert step.stats().phase == "co-execution", step.explain()
    assert num_raised == 20, (num_raised, ops_left.values())
    print("done")
"""


@pytest.mark.timeout(150)
@pytest.mark.parametrize("base", ["BaseException", "Exception"])
def test_limit_in_a_build_leaves_no_graph_open(base):
    """TensorFlow's own Python, too, may be where it comes: where it opens and closes graphs."""
    process = start(BUILDS.replace("{base}", base))
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0 and stdout.strip() == "done", stderr[-4000:]


def test_time_limit_in_a_wait_that_only_looks_at_an_argument():
    """What is awaited there may be unknown to the plan; that a limit was reached is not."""
    process = start("""
        class Limit(Exception):
            pass

        def on_signal(number, frame):
            raise Limit

        signal.signal(signal.SIGALRM, on_signal)
        table = tf.Variable(tf.random.normal([1000, 4]))

        @terra.function
        def slow_ids(x):
            for _ in range(10):
                x = tf.linalg.l2_normalize(x @ x, axis=1)
            return tf.argmax(x[:4], axis=1)

        @terra.function
        def look_up(ids):
            return tf.gather(table, ids) * 2.0

        for _ in range(5):
            ids = slow_ids(large + 0.0)
            terra.synchronize()
            look_up(ids)
        assert slow_ids.stats().phase == look_up.stats().phase == "co-execution"
        num_raised = 0
        for _ in range(3):
            ids = slow_ids(large + 0.0)
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            try:
                for _ in range(1000):
                    look_up(ids)
                    time.sleep(0.001)
            except Limit:
                num_raised += 1
            expected = tf.gather(table, ids) * 2.0
            assert (look_up(ids).numpy() == expected.numpy()).all()
        assert num_raised == 3, num_raised
        print("done")
    """)
    stdout, stderr = process.communicate(timeout=90)
    assert process.returncode == 0 and stdout.strip() == "done", stderr[-3000:]
