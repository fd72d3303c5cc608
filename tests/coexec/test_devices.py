"""Where a result is: with several logical CPUs it says in co-execution what it says in eager.

Logical devices are made before TensorFlow starts; so each program has a process of its own.
"""

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

HEAD = """
import contextlib
import tensorflow as tf
import terra_tf as terra

cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)


def place_of(tensor):
    return tensor.device[-5:], tensor.backing_device[-5:]


def places_of(tensors):
    return [place_of(tensor) for tensor in tensors]


def check(step, calls, fallbacks=None, num_co_executed=None):
    '''Compares inside of the step and after it; `step` returns tensors, and what it saw.'''
    function = terra.function(step)
    for number, args in enumerate(calls):
        expected, seen = step(*args)
        tensors, found = function(*args)
        where = f"call {number}: {function.explain()}"
        assert places_of(tensors) == places_of(expected), where
        assert found == seen, f"{found} is not {seen} in {where}"
        for tensor, other in zip(tensors, expected):
            # ops, copies and reads afterwards are eager's
            assert tensor.numpy().tolist() == other.numpy().tolist(), where
            assert place_of(tf.identity(tensor)) == place_of(tf.identity(other))
            assert place_of(tensor.cpu()) == place_of(other.cpu())
            with tf.device("CPU:1"):
                assert place_of(tf.identity(tensor)) == ("CPU:1", place_of(tf.identity(other))[1])
        assert places_of(tensors) == places_of(expected), where
    stats = function.stats()
    assert stats.fallbacks == (fallbacks or {}), function.explain()
    if num_co_executed is None:
        num_co_executed = len(calls) - 2
    assert stats.co_executed_steps == num_co_executed, function.explain()
    return function


numbers = [(tf.constant([float(i), 1.0]),) for i in range(6)]
"""


def run(program):
    environment = dict(os.environ, PYTHONPATH=str(ROOT), TF_CPP_MIN_LOG_LEVEL="3")
    done = subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(program)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]


PROGRAMS = {
    "scopes": """
        def step(x):
            with tf.device("CPU:1"):
                y = tf.identity(x * 2.0)
                shape, text, whole = tf.shape(y), tf.strings.as_string(y), tf.cast(y, tf.int32)
                more = whole + 1
            with tf.device("CPU:0"):
                z = tf.identity(y)
            outside = [y + 1.0, tf.identity(whole), tf.reshape(y, [2, 1]), tf.identity(text)]
            tensors = [y, z, shape, text, whole, more, *outside]
            return tensors, places_of(tensors)
        check(step, numbers)
    """,
    "reads in the middle": """
        def step(x):
            with tf.device("CPU:1"):
                y = x * 2.0
                before = place_of(y), y.numpy().tolist(), place_of(y)
                z = y + float(y[0])
            return [y, z, tf.reduce_sum(z)], (before, place_of(z))
        check(step, numbers)
    """,
    "a scope that is chosen": """
        def step(x, is_second):
            with tf.device("CPU:1") if is_second else contextlib.nullcontext():
                y = x * 2.0
            return [y, y + 1.0], place_of(y)
        calls = [(x, is_second) for x, in numbers for is_second in (False, True)]
        check(step, calls, num_co_executed=len(calls) - 3)
    """,
    "a scope around the call": """
        inner = lambda x: ([x * 2.0, tf.shape(x)], place_of(tf.nn.relu(x)))
        function = terra.function(inner)
        for i in range(16):
            with tf.device(f"CPU:{i % 2}") if i >= 6 else contextlib.nullcontext():
                (x,) = numbers[i % 6]
                (expected, seen), (tensors, found) = inner(x), function(x)
                assert found == seen and places_of(tensors) == places_of(expected), i
        assert function.stats().co_executed_steps >= 10, function.explain()
    """,
    "variables and gradients": """
        with tf.device("CPU:1"):
            weight = tf.Variable([1.0, 2.0])

        def step(x):
            with tf.GradientTape() as tape:
                with tf.device("CPU:1"):
                    loss = tf.reduce_sum(weight * x)
                square = loss * loss
            gradient = tape.gradient(square, weight)
            with tf.device("CPU:1"):
                drawn = tf.shape(tf.random.normal([2]))
            tensors = [loss, square, gradient, weight.read_value(), weight + 1.0, drawn]
            return tensors, places_of(tensors)
        check(step, numbers)
    """,
    "variables on different devices": """
        variables = []
        for i in range(4):
            with tf.device(f"CPU:{i // 3}"):
                variables.append(tf.Variable([1.0 + i, 2.0]))
        def step(x, variable):
            read = tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=tf.float32)
            return [read, read * x], places_of([read])
        calls = [(x, variables[i % 3]) for _ in range(2) for i, (x,) in enumerate(numbers)]
        calls += [(numbers[0][0], variables[3]), *calls[:2]]
        check(step, calls, {"variable_changed": 1}, 12)
    """,
    "divergence": """
        def step(x, bigger):
            with tf.device("CPU:1"):
                y = x * 2.0
                z = y + 1.0
            kept = y - 1.0
            if bigger:
                z = tf.nn.relu(z)
            return [y, z, kept], places_of([y, z, kept])
        calls = [(x, i == 4) for i, (x,) in enumerate(numbers)]
        check(step, calls, {"new_path": 1}, 2)
    """,
    "an error": """
        def step(x, index):
            with tf.device("CPU:1"):
                y = x * 2.0
                z = tf.gather(y, index)
            return [y, z], places_of([y, z])
        function = check(step, [(x, tf.constant(1)) for x, in numbers])
        kept = []
        def failing(x, index):
            with tf.device("CPU:1"):
                kept.append(x * 2.0)
                return tf.reshape(kept[-1], tf.stack([index, 1]))
        function = terra.function(failing)
        for index in (2, 2, 2, 2, 3):
            outcomes = []
            for f in (failing, function):
                try:
                    outcomes.append(f(numbers[0][0], tf.constant(index)).numpy().tolist())
                except tf.errors.InvalidArgumentError as error:
                    outcomes.append(str(error))
            assert outcomes[0] == outcomes[1], outcomes
        assert places_of(kept) == [("CPU:1", "CPU:1")] * 10, places_of(kept)
        assert function.stats().co_executed_steps == 3, function.explain()
    """,
    "Keras in a scope": """
        import keras
        layer = keras.layers.Dense(2)
        layer.build([1, 2])
        def step(x, is_second):
            with tf.device("CPU:1") if is_second else contextlib.nullcontext():
                y = layer(x)
            return [y, y + 1.0], place_of(y)
        calls = [(x[None], i % 2 == 1) for _ in range(2) for i, (x,) in enumerate(numbers)]
        check(step, calls, num_co_executed=len(calls) - 3)
    """,
    "results of other steps": """
        def make(x):
            with tf.device("CPU:1"):
                return [x * 3.0], None
        first = check(make, numbers)
        def use(y):
            with tf.device("CPU:1"):
                return [y + 1.0, tf.shape(y)], place_of(y)
        second = terra.function(use)
        for x, in numbers:
            made, _ = first(x)
            (result, shape), place = second(made[0])
            assert place == ("CPU:1", "CPU:1") == place_of(result)
            assert place_of(shape) == ("CPU:1", "CPU:0")
            assert result.numpy().tolist() == (x * 3.0 + 1.0).numpy().tolist()
        assert second.stats().co_executed_steps == 4
    """,
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_results_are_where_eager_has_them(program):
    run(program)
