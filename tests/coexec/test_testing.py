"""The comparison that the other tests rest on can fail."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from terra_tf.testing import (
    Program,
    assert_co_executing,
    assert_matches_eager,
    describe_exception,
    find_difference,
    freeze,
)


@pytest.mark.parametrize(
    ("eager", "other"),
    [
        (1.0, 1),
        ([1, 2], [1, 2, 3]),
        ([1], (1,)),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (tf.constant(1.0), np.float32(1.0)),
        (tf.constant(1.0), tf.constant(1.0, tf.float64)),
        (tf.constant([1.0]), tf.constant([np.nextafter(np.float32(1), np.float32(2))])),
        (np.float32(0.0), np.float32(-0.0)),
        (tf.constant("a"), tf.constant("b")),
        (ValueError("a"), ValueError("b")),
        (ValueError("a"), TypeError("a")),
        ({1, 2}, {1, 3}),
    ],
    ids=repr,
)
def test_differences_are_found(eager, other):
    frozen = [
        describe_exception(x) if isinstance(x, Exception) else freeze(x) for x in (eager, other)
    ]
    assert find_difference(*frozen, path="here").startswith("here")
    assert find_difference(frozen[0], frozen[0]) is None


def test_tolerance_is_kept():
    one, near = freeze(tf.constant([1.0])), freeze(tf.constant([1.001]))
    assert find_difference(one, near, exact=False, rtol=1e-2) is None
    assert find_difference(one, near, exact=False, rtol=1e-4)
    assert find_difference(freeze(tf.constant([1])), freeze(tf.constant([2])), exact=False, rtol=9)


def make_wrong(what):
    """Build a program that under Terra does something else than eagerly."""

    def make(wrap):
        is_eager = wrap(abs) is abs
        variable = tf.Variable(1.0 if is_eager or what != "variable" else 2.0)
        num_steps = itertools.count()

        def step():
            index = next(num_steps)
            if index == 3 and not is_eager and what == "result":
                return -1
            if index == 3 and what == "exception":
                raise ValueError if is_eager else KeyError
            if index == 3 and not is_eager and what == "no_exception":
                raise ValueError
            return index

        return Program(step, [variable])

    return make


@pytest.mark.parametrize("what", ["result", "exception", "no_exception"])
def test_wrong_step_is_named(what):
    with pytest.raises(AssertionError, match="step 3"):
        assert_matches_eager(make_wrong(what), 5)


def test_wrong_variable_is_named():
    with pytest.raises(AssertionError, match=r"variables\[0\]"):
        assert_matches_eager(make_wrong("variable"), 5)
    assert_matches_eager(make_wrong("variable"), 5, compare_variables=False)


def test_symbolic_tensor_is_refused():
    leaked = []
    tf.function(lambda x: leaked.append(x))(tf.constant(1.0))
    with pytest.raises(AssertionError, match="symbolic"):
        freeze(leaked)


def test_function_that_only_traced_is_not_co_executing():
    (double,) = assert_matches_eager(
        lambda wrap: (lambda double: lambda: double(tf.constant(1.0)))(wrap(lambda x: x * 2.0)), 1
    )
    with pytest.raises(AssertionError, match="phase is tracing"):
        assert_co_executing(double)


def test_steady_state_without_a_step_is_not_accepted():
    (double,) = assert_matches_eager(
        lambda wrap: (lambda double: lambda: double(tf.constant(1.0)))(wrap(lambda x: x * 2.0)), 5
    )
    with pytest.raises(AssertionError, match="no step was run"):
        assert_co_executing(double, after=double.stats())
