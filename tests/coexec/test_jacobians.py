"""`GradientTape.jacobian` and `batch_jacobian`: vectorized once, then replayed.

TensorFlow runs a vectorized gradient in a function of its own, in which Grappler rearranges
products: so floats are compared within a tolerance.
"""

import gc

import numpy as np
import pytest
import tensorflow as tf
from hazards import LATE, Counter, assert_like_eager, draw_inputs, make_weight, num_gradients

import terra_tf as terra
from terra_tf._tf_internals import pfor_ops
from terra_tf.runtime import jacobian_calls

pytestmark = pytest.mark.timeout(180)
NUM_STEPS = 7


def assert_close(make, num_steps=NUM_STEPS, **tolerance):
    tolerance = {"rtol": 1e-5, "atol": 1e-6} | tolerance
    return assert_like_eager(make, num_steps, exact=False, **tolerance)


def num_vectorized(stats):
    return stats.calls_replayed.get("a vectorized gradient", 0)


def stepping(body, num_weights=1):
    """A program: `body(x, weights, n)` on new inputs in each step, then a change of the weights."""

    def make(wrap):
        weights, draw, count = [make_weight() for _ in range(num_weights)], draw_inputs(), Counter()

        @wrap
        def step(x, n):
            result = body(x, weights, n)
            for weight in weights:
                weight.assign(weight * 0.97)
            return result

        return lambda: (step(draw(), count.advance()), weights)

    return make


def jacobian_of(target, sources, **options):
    """The jacobian of `target(x, w)` with respect to what `sources(x, w)` picks."""

    def body(x, weights, n):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            y = target(x, weights[0])
        return tape.jacobian(y, sources(x, weights[0]), **options)

    return stepping(body)


def small(x, w):
    return tf.tanh(x @ w)[:, :3]


# ------------------------------------------------------------------ it is replayed

SOURCES = {
    "variable": lambda x, w: w,
    "tensor": lambda x, w: x,
    "list": lambda x, w: [w, x],
    "nested": lambda x, w: {"a": (x,), "b": [w]},
}


@pytest.mark.parametrize("sources", SOURCES.values(), ids=SOURCES)
def test_sources(sources):
    stats = assert_close(jacobian_of(small, sources))
    assert stats.calls_replayed["GradientTape.jacobian"] >= NUM_STEPS - 5, stats
    assert num_vectorized(stats) >= NUM_STEPS - 5, stats.calls_not_replayed
    assert not stats.imperative_ops, stats.imperative_ops


TARGETS = {
    "product": lambda x, w: (x @ w)[:, :3],
    "softmax": lambda x, w: tf.nn.softmax(x @ w)[:, :4],
    "log_softmax": lambda x, w: tf.nn.log_softmax(x @ w)[0],
    "layer norm": lambda x, w: ((h := x @ w) - tf.reduce_mean(h, 1, keepdims=True))[:2, :4],
    "convolution": lambda x, w: tf.nn.conv2d(
        tf.reshape(x, [1, 8, 8, 1]), tf.reshape(w[:3, :6], [3, 3, 1, 2]), 2, "SAME"
    )[0, 0],
    "gather": lambda x, w: tf.gather(x @ w, [1, 3, 3]) [:, :3],
    "where": lambda x, w: tf.where((h := x @ w) > 0.0, h, 0.1 * h)[:, :3],
    "division": lambda x, w: (x / (1.0 + tf.exp(-x @ w)))[:, :3],
    "power": lambda x, w: ((x @ w) ** 3)[:, :3],
    "slice of a variable": lambda x, w: tf.sin(x[0, :5] * w[1, 2]) * w[0, 0],
    "norm": lambda x, w: tf.norm(x @ w, axis=1),
    "scan": lambda x, w: tf.cumsum(x @ w, axis=1)[:, :3],
    "unstacked": lambda x, w: tf.stack(tf.unstack(x @ w, axis=1)[:3]),
    "einsum": lambda x, w: tf.einsum("bi,ij,bj->b", x, w, x),
    "silu": lambda x, w: tf.nn.silu(x @ w)[:, :3],
    "scalar": lambda x, w: tf.reduce_sum(tf.tanh(x @ w)),
}  # fmt: skip


OFTEN = {"softmax", "convolution", "division", "power", "slice of a variable", "einsum", "silu"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in OFTEN else pytest.mark.slow) for n in TARGETS]
)
def test_targets(name):
    target = TARGETS[name]
    stats = assert_close(jacobian_of(target, lambda x, w: [x, w]), rtol=2e-5)
    assert num_vectorized(stats) > 0, stats.calls_not_replayed
    assert not stats.imperative_ops, stats.imperative_ops


@pytest.mark.parametrize("is_persistent", [False, True])
def test_rows_of_a_batch(is_persistent):
    def body(x, weights, n):
        with tf.GradientTape(persistent=is_persistent) as tape:
            tape.watch(x)
            y = tf.tanh(tf.tanh(x @ weights[0]) @ weights[1])[:, :3]
        rows = tape.batch_jacobian(y, x)
        return rows, rows[n % 4], [v.name for v in tape.watched_variables()]

    stats = assert_close(stepping(body, 2))
    assert stats.calls_replayed["GradientTape.batch_jacobian"] >= NUM_STEPS - 5
    assert num_vectorized(stats) >= NUM_STEPS - 5, stats.calls_not_replayed


@pytest.mark.parametrize("unconnected", ["none", "zero"])
@pytest.mark.parametrize("method", ["jacobian", "batch_jacobian"])
def test_unconnected(method, unconnected):
    def body(x, weights, n):
        other = x * 2.0
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([x, other])
            y = small(x, weights[0])
        sources = [x, other] if method == "jacobian" else other
        return getattr(tape, method)(y, sources, unconnected_gradients=unconnected)

    stats = assert_close(stepping(body))
    assert stats.calls_replayed[f"GradientTape.{method}"] > 0, stats.calls_not_replayed


def test_both_of_one_tape_and_a_gradient():
    def body(x, weights, n):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            y = small(x, weights[0])
            loss = tf.reduce_sum(y * y)
        first = tape.gradient(loss, weights)
        return first, tape.jacobian(y, weights), tape.batch_jacobian(y, x), tape.gradient(loss, x)

    stats = assert_close(stepping(body))
    assert num_vectorized(stats) >= 2 * (NUM_STEPS - 5), stats.calls_not_replayed
    assert num_gradients(stats) > 0, stats.calls_not_replayed


# -------------------------------------------------------------------- other tapes


def test_hessian():
    def body(x, weights, n):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                loss = tf.reduce_mean(tf.nn.softmax(x[:, :3] @ weights[0][:3, :2]) ** 2)
            gradient = inner.gradient(loss, weights[0])[:3, :2]
        return outer.jacobian(gradient, weights[0])

    stats = assert_close(stepping(body))
    assert num_vectorized(stats) > 0, stats.calls_not_replayed


@pytest.mark.parametrize("is_inside", [False, True])
def test_trained_through(is_inside):
    """The loss has a jacobian in it, as in networks that are told about physics."""

    def body(x, weights, n):
        with tf.GradientTape() as outer:
            with tf.GradientTape(persistent=True) as inner:
                inner.watch(x)
                u = tf.tanh(x @ weights[0])[:, :2]
                rows = inner.batch_jacobian(u, x) if is_inside else None
            if rows is None:
                rows = inner.batch_jacobian(u, x)
            loss = tf.reduce_mean(rows * rows) + tf.reduce_mean(u)
        gradients = outer.gradient(loss, weights)
        weights[0].assign_sub(0.1 * gradients[0])
        return loss, gradients

    stats = assert_close(stepping(body))
    if not is_inside:
        assert num_vectorized(stats) >= NUM_STEPS - 5, stats.calls_not_replayed
        assert num_gradients(stats) > 0, stats.calls_not_replayed


def test_jacobian_of_a_jacobian():
    def body(x, weights, n):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = tf.tanh(x[:, :3] @ weights[0][:3, :2])
            rows = inner.batch_jacobian(y, x)[0, :, :2]
        return outer.jacobian(rows, x)

    stats = assert_close(stepping(body))
    assert num_vectorized(stats) > 0, stats.calls_not_replayed


# ------------------------------------------------------------------- what changes


def test_other_ways_through_the_step():
    """Depth and activation change: a graph that was made on one way is not run on another."""

    def body(x, weights, n):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            h = x
            for _ in range(1 + n % 3):
                h = tf.tanh(h @ weights[0]) if n % 2 else tf.sin(h @ weights[0])
            y = h[:, :3]
        return tape.batch_jacobian(y, x)

    stats = assert_close(stepping(body), 24)
    assert stats.calls_replayed["GradientTape.batch_jacobian"] > 4, stats.calls_not_replayed


def test_small_tensors_that_change():
    """TensorFlow would make constants of them."""

    def body(x, weights, n):
        scale = tf.constant([1.0, float(n), 0.5])
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            y = small(x, weights[0]) * scale * tf.reduce_max(x)
        return tape.jacobian(y, [x, weights[0]])

    stats = assert_close(stepping(body), 12, rtol=2e-5)
    assert num_vectorized(stats) > 4, stats.calls_not_replayed


def test_numbers_that_change():
    def body(x, weights, n):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            y = small(x, weights[0]) * float(n) + x[:, n % 3, None]
        return tape.jacobian(y, [x, weights[0]])

    assert assert_close(stepping(body), 12, rtol=2e-5).co_executed_steps > 4


def test_watched_late_and_another_source_late():
    def body(x, weights, n):
        with tf.GradientTape(persistent=True) as tape:
            if n != LATE:
                tape.watch(x)
            y = small(x, weights[0])
        return tape.jacobian(y, weights[0] if n == LATE + 1 else x, unconnected_gradients="zero")

    assert assert_close(stepping(body), LATE + 4).co_executed_steps > 2


def test_sizes_that_change():
    def make(wrap):
        weight, count = make_weight(), Counter()

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = small(x, weight)
            return tape.batch_jacobian(y, x)

        def run():
            n = count.advance()
            rows = 2 + (n % 3)
            return step(tf.constant(np.random.RandomState(n).randn(rows, 16), tf.float32))

        return run

    assert assert_close(make, 15).co_executed_steps > 4


def test_in_a_loop_of_the_program():
    def body(x, weights, n):
        results = []
        for i in range(3):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.tanh(x @ weights[0])[:, i : i + 2]
            results.append(tape.batch_jacobian(y, x))
        return results

    stats = assert_close(stepping(body))
    assert num_vectorized(stats) >= 3 * (NUM_STEPS - 5), stats.calls_not_replayed


# ----------------------------------------------------------- what is not taken apart


def test_loop_in_the_graph_is_run_as_one_function_that_is_kept():
    stats = assert_close(jacobian_of(lambda x, w: tf.sort(x @ w)[:, :2], lambda x, w: x))
    assert stats.imperative_ops and num_vectorized(stats) == 0
    assert stats.calls_replayed["GradientTape.jacobian"] > 1, stats.calls_not_replayed


def test_chunks_are_vectorized_anew():
    stats = assert_close(jacobian_of(small, lambda x, w: x, parallel_iterations=4))
    assert stats.imperative_ops and num_vectorized(stats) == 0
    assert any("GradientTape.jacobian" in call for call in stats.calls_not_replayed)


def test_without_vectorizing():
    stats = assert_close(jacobian_of(small, lambda x, w: x, experimental_use_pfor=False))
    assert num_gradients(stats) >= 12 * (NUM_STEPS - 5), stats.calls_not_replayed


@pytest.mark.parametrize("kind", ["plain", "py_function", "random", "print"])
def test_gradient_of_the_users_runs_once_in_each_step(kind):
    calls = []

    @tf.custom_gradient
    def noted(x):
        def backward(gradient):
            calls.append(len(calls))
            if kind == "plain":
                gradient = gradient * 0.5
            elif kind == "py_function":
                gradient = tf.py_function(lambda g: 2.0 * g, [gradient], tf.float32)
            elif kind == "random":
                gradient = gradient * tf.cast(tf.random.uniform([], 1, 2, tf.int32), tf.float32)
            else:
                tf.print(tf.reduce_sum(gradient), output_stream="file:///dev/null")
            return gradient

        return x * 1.0, backward

    def body(x, weights, n):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = noted(small(x, weights[0]))
        before = len(calls)
        return tape.batch_jacobian(y, x), len(calls) - before

    stats = assert_close(stepping(body))
    assert "GradientTape.batch_jacobian" not in stats.calls_replayed
    assert num_vectorized(stats) == 0 and bool(stats.imperative_ops) is (kind != "plain")


def test_what_is_made_anew_in_each_step_does_not_pile_up():
    numbers = iter(range(1000))

    @tf.custom_gradient
    def scaled(x):
        scale = np.full(8, next(numbers), np.float32)
        return x * 1.0, lambda gradient: gradient * tf.reduce_sum(scale)

    @terra.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = scaled(x)
        return tape.jacobian(y, x)

    before = num_bodies()
    for i in range(12):
        np.testing.assert_array_equal(step(tf.constant([1.0, 2.0])), 8.0 * i * np.eye(2))
    assert num_bodies() < before + 6


def num_bodies():
    gc.collect()
    return sum(type(o) is jacobian_calls._StraightBody for o in gc.get_objects())


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, KeyError])
def test_gradient_of_the_users_that_raises(kind):
    calls = []

    @tf.custom_gradient
    def raising(x):
        def backward(gradient):
            calls.append(len(calls))
            raise kind("no gradient here")

        return x * 1.0, backward

    def body(x, weights, n):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = small(x, weights[0])
            if n % 2:
                y = raising(y)
        before = len(calls)
        try:
            return tape.batch_jacobian(y, x)
        except Exception as error:
            cause = error.__cause__
            return type(error), str(error), str(cause), len(calls) - before, tape._tape is None

    assert assert_close(stepping(body), 8).steps == 8


def test_gradient_that_reads_a_value():
    @tf.custom_gradient
    def scaled(x):
        largest = tf.reduce_max(tf.abs(x))

        def backward(gradient):
            return gradient * (2.0 if float(largest) > 2.0 else 1.0)

        return x * 1.0, backward

    def body(x, weights, n):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = scaled(small(3.0 * x, weights[0]))
        return tape.batch_jacobian(y, x)

    assert assert_close(stepping(body)).co_executed_steps > 0


def test_replay_off_is_exact():
    with terra.config.override(replay_calls=False):
        stats = assert_like_eager(jacobian_of(TARGETS["power"], lambda x, w: [x, w]), NUM_STEPS)
    assert not num_vectorized(stats)


# ------------------------------------------------------------------------- errors

WRONG = {
    "used twice": lambda tape, x, y: (tape.jacobian(y, x), tape.jacobian(y, x)),
    "rows differ": lambda tape, x, y: tape.batch_jacobian(y, x[:2]),
    "not persistent": lambda tape, x, y: tape.jacobian(y, x, experimental_use_pfor=False),
    "no rows": lambda tape, x, y: tape.batch_jacobian(y[0], x),
    "one iteration": lambda tape, x, y: tape.jacobian(y, x, parallel_iterations=1),
    "sources twice": lambda tape, x, y: tape.jacobian(y, x, sources=x),
    "unknown": lambda tape, x, y: tape.batch_jacobian(y, x, tape=1),
    "none": lambda tape, x, y: tape.jacobian(y),
    "unconnected": lambda tape, x, y: tape.jacobian(y, x, unconnected_gradients="some"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_errors_are_eagers(wrong):
    def body(x, weights, n):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = small(x, weights[0])
        if n == 6:
            try:
                return wrong(tape, x, y)
            except Exception as error:
                return type(error), str(error), tape._tape is None
        return tape.batch_jacobian(y, x), tape._tape is None

    assert assert_close(stepping(body)).co_executed_steps > 2


def test_other_users_of_pfor_are_left_alone():
    def body(x, weights, n):
        y = x @ weights[0]
        return pfor_ops.pfor(lambda i: tf.reduce_sum(tf.gather(y, i) ** 2), 4)

    stats = assert_like_eager(stepping(body), NUM_STEPS)
    assert stats.imperative_ops
