"""Functions declared by `terra_tf.pure`."""

import inspect

import numpy as np
import pytest
import tensorflow as tf
from hazards import draw_inputs, make_weight

import terra_tf
from terra_tf.testing import assert_matches_eager

pytestmark = pytest.mark.timeout(60)


def layer(x, weight, scale=1.0):
    """One layer."""
    return tf.nn.relu(tf.matmul(x, weight) * scale) + x


def test_pure_function_is_one_call():
    functions = []

    def make(wrap):
        weight, draw = make_weight(), draw_inputs()
        apply = terra_tf.pure(layer)

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                y = tf.reduce_sum(apply(apply(x, weight), weight, scale=0.5))
            return y, tape.gradient(y, weight)

        functions.append(step)
        return lambda: step(draw())

    assert_matches_eager(make)
    stats = functions[-1].stats()
    assert stats.calls_replayed["layer"] == 2 * (stats.co_executed_steps - 1)
    assert "tf.matmul" not in stats.calls_replayed


def test_python_of_a_pure_function_runs_only_where_it_must():
    runs = []

    @terra_tf.pure
    def doubled(x):
        runs.append(1)
        return x * 2.0

    step = terra_tf.function(lambda x: doubled(x) + 1.0)
    for number in range(20):
        assert step(tf.constant(float(number))).numpy() == 2.0 * number + 1.0
    assert len(runs) < 6
    assert doubled(tf.constant(4.0)).numpy() == 8.0  # outside of steps


def test_variables_of_its_own():
    def make(wrap):
        weight, total, draw = make_weight(), tf.Variable(0.0), draw_inputs()

        @terra_tf.pure
        def score(x):
            total.assign_add(1.0)
            return tf.reduce_sum(tf.matmul(x, weight)) + total

        step = wrap(lambda x: score(x) * 2.0)
        return lambda: (step(draw()), total)

    assert_matches_eager(make)


def test_function_that_is_not_pure_is_told_when_checked():
    state = {"power": 2.0}

    @terra_tf.pure
    def powered(x):
        return x * state["power"]

    step = terra_tf.function(lambda x: powered(x) + 1.0)
    with terra_tf.config.override(check_pure=True):
        for _ in range(6):
            assert step(tf.constant(3.0)).numpy() == 7.0
        state["power"] = 3.0
        with pytest.raises(terra_tf.ImpureError, match="does not do the same again"):
            step(tf.constant(3.0))
        assert step(tf.constant(3.0)).numpy() == 10.0


def test_checking_a_function_that_is_pure_changes_nothing():
    def make(wrap):
        weight, draw = make_weight(), draw_inputs()
        apply = terra_tf.pure(layer)
        step = wrap(lambda x, scale: apply(x, weight, scale))
        rng = np.random.default_rng(0)
        return lambda: step(draw(), float(rng.integers(1, 3)))

    with terra_tf.config.override(check_pure=True):
        assert_matches_eager(make, 20)


def test_what_it_returns_looks_like_the_function():
    apply = terra_tf.pure(layer)
    assert inspect.signature(apply) == inspect.signature(layer)
    assert apply.__name__ == "layer" and apply.__doc__ == "One layer."


def test_what_is_no_function_is_refused():
    with pytest.raises(terra_tf.NotCallableError, match=r"terra_tf\.pure was given a int"):
        terra_tf.pure(3)


def test_function_that_empties_what_it_is_given():
    """A tensor that was in a dictionary or list only is gone when the call is learned."""

    def make(wrap):
        draw = draw_inputs()

        @terra_tf.pure
        def emptied(given, items):
            y = given.pop("x") * 2.0
            return [tf.tanh(items.pop()) + y for _ in range(2)]

        @wrap
        def step(x):
            y, z = emptied({"x": tf.exp(x)}, [x * 3.0, x - 1.0])
            return y, z, emptied({"x": y - z}, [tf.sin(y), tf.cos(z)])

        return lambda: step(draw())

    (step,) = assert_matches_eager(make, 30)
    assert step.stats().co_executed_steps >= 27
