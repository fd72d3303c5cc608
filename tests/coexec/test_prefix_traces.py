"""What a diverged step's prefix says of its arguments: one tensor stays one, and no other's."""

import numpy as np
import pytest
import tensorflow as tf

from terra_tf import _native
from terra_tf.testing import Program, assert_matches_eager

pytestmark = pytest.mark.timeout(60)

LATE = 7


def _constant(value, owns_memory):
    """A tensor of the values that is, or is not, NumPy's memory: that depends on the address."""
    tensors = []
    for _ in range(200):
        tensors.append(tf.constant(value))
        if _native.load().module.owns_memory(tensors[-1]) == owns_memory:
            return tensors[-1]
        value = value.copy()
        tensors.append(value)
    raise AssertionError("TensorFlow decided always alike")


@pytest.mark.parametrize("owns_memory", [True, False])
def test_argument_in_numpys_memory_stays_one_tensor_on_a_new_path(owns_memory):
    """The graph was sent copies of it, a copy for each use; they passed for different tensors."""

    def make(wrap):
        calls = [0]

        @wrap
        def way(x, late):
            y = tf.sin(x)
            if late:
                y += tf.cos(x)
            return y * x + tf.tanh(x)

        def step():
            calls[0] += 1
            x = _constant(np.full([4, 8], calls[0], np.float32), owns_memory)
            return way(x, calls[0] in (LATE, LATE + 4))

        return Program(step)

    (function,) = assert_matches_eager(make, 20)
    stats = function.stats()
    assert stats.num_feeds == 1, function.explain()
    assert sum(stats.fallbacks.values()) == 1


def test_program_uses_a_zero_after_an_argument_that_only_imperative_ops_saw():
    """A stand-in for that argument was the very scalar 0 that TensorFlow caches for all."""

    def make(wrap):
        table, calls = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, 0), [0]

        @wrap
        def function(i):
            calls[0] += 1
            table.insert(i, i)
            if calls[0] % 3 == 0:
                tf.abs(i)
            return tf.gather([1.0, 2.0, 3.0], i, axis=0)

        return Program(lambda: function(tf.constant([0, 1], tf.int64)))

    (function,) = assert_matches_eager(make, 24)
    assert function.stats().co_executed_steps >= 16, function.explain()
