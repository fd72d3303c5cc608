"""`tf.vectorized_map`: its function's Python runs in each call, what is made of it is kept.

An equal graph is not vectorized again; another one is, whatever makes it another.
"""

import gc
import weakref

import numpy as np
import programs
import pytest
import tensorflow as tf
from tensorflow.python.ops.parallel_for import pfor

import terra_tf as terra
from terra_tf.testing import Program, assert_matches_eager

pytestmark = pytest.mark.timeout(180)

NUM_CALLS = 9
LATE = 6


@pytest.fixture
def vectorized(monkeypatch):
    """A list that grows by one with each graph that TensorFlow vectorizes."""
    return programs.count_calls(monkeypatch, pfor.PFor, "__init__")


def program(body, size=5):
    """A program of `body(weight, x, n)` on a new float32[size, 40] in each call."""

    def make(wrap):
        weight = tf.Variable(programs.normal(np.random.default_rng(7), 40, 40, scale=0.3))
        inputs, calls = np.random.default_rng(3), [0]
        function = wrap(lambda x, n: body(weight, x, n))

        def step():
            calls[0] += 1
            return function(tf.constant(programs.normal(inputs, size, 40)), calls[0])

        return Program(step, [weight])

    return make


def run(body, num_calls=NUM_CALLS, **kwargs):
    (function,) = assert_matches_eager(program(body, **kwargs), num_calls)
    return function


def assert_kept(body, vectorized, num_made=1):
    """What eager vectorizes in each call, this does once; all of it are ops of the graph."""
    function = run(body)
    stats = function.stats()
    assert len(vectorized) == NUM_CALLS * num_made + num_made, function.explain()
    assert not stats.fallbacks and not stats.imperative_ops, function.explain()
    assert stats.co_executed_steps == NUM_CALLS - 2, function.explain()


def per_row(weight, row):
    return tf.reduce_sum(tf.tanh(tf.linalg.matvec(weight, row)) ** 2)


# ------------------------------------------------------------------ it is kept


def test_forward(vectorized):
    assert_kept(lambda w, x, n: tf.vectorized_map(lambda row: per_row(w, row), x), vectorized)


def test_gradient_through_it(vectorized):
    def body(weight, x, n):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.vectorized_map(lambda row: per_row(weight, row), x))
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return loss

    assert_kept(body, vectorized)


def test_gradients_of_examples(vectorized):
    """A tape within the function, as for differential privacy."""

    def body(weight, x, n):
        def gradient_of(row):
            with tf.GradientTape() as tape:
                loss = per_row(weight, row)
            return tape.gradient(loss, weight)

        gradients = tf.vectorized_map(gradient_of, x)
        weight.assign_sub(0.1 * tf.reduce_mean(tf.clip_by_norm(gradients, 1.0, [1, 2]), 0))
        return gradients

    assert_kept(body, vectorized)


def test_watching_tape_within(vectorized):
    """What a tape within watches is of the graph: the step's own gradient is replayed."""

    def body(weight, x, n):
        def slope(row):
            with tf.GradientTape() as tape:
                tape.watch(row)
                y = per_row(weight, row)
            return tape.gradient(y, row)

        slopes = tf.vectorized_map(slope, x)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((x @ weight) ** 2)
        weight.assign_sub(0.01 * tape.gradient(loss, weight))
        return slopes

    assert_kept(body, vectorized)
    (function,) = assert_matches_eager(program(body), NUM_CALLS)
    replayed = function.stats().calls_replayed
    assert replayed.get("GradientTape.gradient", 0) > 0, function.explain()


def test_structures_and_several_arguments(vectorized):
    def body(weight, x, n):
        def both(pair):
            first, rest = pair["a"], pair["b"][0]
            return {"sum": first + rest, "none": None, "two": (first * 2.0, [rest[0]])}

        result = tf.vectorized_map(both, {"a": x, "b": (x * 2.0,)})
        return result["sum"], result["two"][0], result["two"][1][0], result["none"] is None

    assert_kept(body, vectorized)


def test_two_in_a_step_and_one_in_the_other(vectorized):
    def body(weight, x, n):
        first = tf.vectorized_map(lambda row: per_row(weight, row), x)
        inner = tf.vectorized_map(lambda row: tf.vectorized_map(tf.sin, row) + row[0], x)
        return first, inner

    # The one within is vectorized in each call: it is a part of the function.
    function = run(body)
    assert len(vectorized) == NUM_CALLS * 3 + 2 + NUM_CALLS, function.explain()
    stats = function.stats()
    assert not stats.fallbacks and not stats.imperative_ops, function.explain()


def test_jacobian_beside_it(vectorized):
    def body(weight, x, n):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            y = tf.vectorized_map(lambda row: tf.reduce_sum(tf.sin(row)), x)
            z = tf.tanh(x[:2, :3])
        return y, tape.gradient(y, x), tape.jacobian(z, x)

    (function,) = assert_matches_eager(program(body), NUM_CALLS, exact=False, rtol=1e-5)
    assert function.stats().co_executed_steps == NUM_CALLS - 2, function.explain()
    assert len(vectorized) < 2 * 2 * NUM_CALLS, "a map and a jacobian in each call"


# ------------------------------------------------------------------ what makes it another


def test_python_of_the_function_runs_in_each_call():
    seen = []

    def body(weight, x, n):
        def noted(row):
            seen.append(n)
            return row * float(n // 3)

        return tf.vectorized_map(noted, x)

    run(body)
    assert seen == [*range(1, NUM_CALLS + 1)] * 2


def multiplied_by(variable):
    return lambda row: row * variable


@pytest.mark.parametrize(
    "function",
    {
        "other ops": lambda w, n: tf.sin if n < LATE else tf.cos,
        "other constant": lambda w, n: lambda row: row * (2.0 if n < LATE else 3.0),
        "other result": lambda w, n: lambda row: (tf.sin(row), tf.cos(row))[n >= LATE],
        "other structure": lambda w, n: lambda row: [row] if n < LATE else {"a": row},
        "other attribute": lambda w, n: lambda row: tf.cumsum(row, reverse=n >= LATE),
        "other shape": lambda w, n: lambda row: row[:3] if n < LATE else row[:4],
        "other variable": lambda w, n: multiplied_by(tf.Variable([1.0 * n] * 40)),
        "a value that it reads": lambda w, n: lambda row: row * float(w[0, 0]),
    }.values(),
)
def test_another_function(function):
    stats = run(lambda weight, x, n: tf.vectorized_map(function(weight, n), x), 12).stats()
    assert stats.co_executed_steps >= 3, stats


def test_another_result_of_the_same_ops(vectorized):
    """Both are computed, and another one is returned: each is vectorized once."""

    def body(weight, x, n):
        def one_of(row):
            both = tf.sin(row), tf.cos(row) * row
            return both[n % 2]

        return tf.vectorized_map(one_of, x)

    function = run(body, 12)
    assert len(vectorized) == 12 + 2, function.explain()


def test_another_batch_size():
    def make(wrap):
        function = wrap(lambda x: tf.vectorized_map(lambda row: row * tf.reduce_sum(row), x))
        calls = [0]

        def step():
            calls[0] += 1
            return function(tf.ones([2 + calls[0] // 5, 3]) * (0.1 * calls[0]))

        return Program(step, [])

    (function,) = assert_matches_eager(make, 14)
    assert function.stats().co_executed_steps >= 5, function.explain()


def test_ragged_results_and_random_numbers_are_tensorflows():
    def body(weight, x, n):
        ragged = tf.vectorized_map(
            lambda row: tf.RaggedTensor.from_row_lengths(row[:3], [1, 2]), x
        )
        noise = tf.vectorized_map(lambda row: tf.random.stateless_uniform([2], [n, 3]) + row[0], x)
        return ragged.flat_values, noise

    assert run(body).stats().co_executed_steps == NUM_CALLS - 2


def test_loop_within():
    def body(weight, x, n):
        def powers(row):
            total = row
            for _ in tf.range(3):
                total = total * row
            return total

        return tf.vectorized_map(powers, x)

    assert run(body).stats().co_executed_steps == NUM_CALLS - 2


def test_random_draws_are_eagers():
    def body(weight, x, n):
        return tf.vectorized_map(lambda row: row + tf.random.uniform([40]), x)

    def make(wrap):
        tf.random.set_seed(5)
        return program(body)(wrap)

    (function,) = assert_matches_eager(make, NUM_CALLS)
    assert function.stats().steps == NUM_CALLS


# ------------------------------------------------------------------ errors, variables, memory


def test_an_error_of_the_function():
    def body(weight, x, n):
        def fails_late(row):
            if n >= LATE:
                raise KeyError(n)
            return row * 2.0

        try:
            return tf.vectorized_map(fails_late, x)
        except KeyError as error:
            raised.append(n)
            return str(error)

    raised = []
    function = run(body, 10)
    assert raised == [*range(LATE, 11)] * 2
    assert function.stats().co_executed_steps >= LATE - 3, function.explain()


def test_an_op_that_cannot_be_vectorized_raises():
    def body(weight, x, n):
        def looked_up(row):
            return tf.strings.to_number(tf.strings.as_string(row)) if n >= LATE else row

        try:
            return tf.vectorized_map(looked_up, x, fallback_to_while_loop=False)
        except ValueError as error:
            return type(error).__name__

    run(body, 10)


def test_function_that_survives_what_it_cannot_make():
    """That a variable is refused here is nothing that the function's own `except` may see."""
    caught = []

    def make(wrap):
        held = []

        def scaled(row):
            if not held:
                try:
                    held.append(tf.Variable(2.0))
                except Exception as error:
                    caught.append(error)
                    held.append(3.0)
            return row * held[0]

        function = wrap(lambda x: tf.vectorized_map(scaled, x))
        calls = [0]

        def step():
            calls[0] += 1
            return function(tf.ones([2, 3]) * calls[0])

        return Program(step, [])

    assert_matches_eager(make, NUM_CALLS)
    assert not caught


def test_variables_made_in_the_function_once():
    def make(wrap):
        held = []

        def scaled(row):
            if not held:
                held.append(tf.Variable(2.0))
            return row * held[0]

        function = wrap(lambda x: tf.vectorized_map(scaled, x))
        calls = [0]

        def step():
            calls[0] += 1
            return function(tf.ones([2, 3]) * calls[0])

        return Program(step, held)

    (function,) = assert_matches_eager(make, NUM_CALLS)
    assert function.stats().co_executed_steps >= NUM_CALLS - 3, function.explain()


def test_nothing_is_kept_alive():
    class Owner:
        pass

    variable, owner = tf.Variable(tf.ones([200])), Owner()
    gone = [weakref.ref(owner), weakref.ref(variable)]

    @terra.function
    def function(x, variable, owner):
        large = x * 2.0
        result = tf.vectorized_map(lambda row: row * variable + (0.0 * id(owner)) + large[0], x)
        gone.append(weakref.ref(large))
        return result

    for i in range(6):
        function(tf.ones([3, 200]) * i, variable, owner)
    assert function.stats().co_executed_steps > 0, function.explain()
    terra.synchronize()
    del variable, owner
    gc.collect()
    assert [reference() for reference in gone] == [None] * len(gone)
