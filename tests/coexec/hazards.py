"""What programs about hazards share: a counter of calls, weights, inputs, a small training step.

`LATE` is the first step of the late ones, in which a function co-executes.
"""


import numpy as np
import programs
import tensorflow as tf

from terra_tf.testing import assert_matches_eager

LATE = 7
NUM_STEPS = 12
WIDTH = 16


class Counter:
    """Counts calls; true from the `LATE`-th on."""

    def __init__(self):
        self.value = -1

    def advance(self):
        self.value += 1
        return self.value

    @property
    def is_late(self):
        return self.value >= LATE


def make_weight():
    return tf.Variable(programs.normal(np.random.default_rng(0), WIDTH, WIDTH))


def draw_inputs(seed=1):
    """Return a function that makes a new float32[4, WIDTH] tensor at each call."""
    rng = np.random.default_rng(seed)
    return lambda: tf.constant(programs.normal(rng, 4, WIDTH, scale=1.0))


def train_once(x, weight, rate=0.1):
    """Run one step of gradient descent on float32[4, WIDTH]; return the loss."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.tanh(x @ weight) ** 2)
    weight.assign_sub(rate * tape.gradient(loss, weight))
    return loss


def assert_co_executed_before(function, num_steps=LATE):
    """Assert that the hazard of the late steps met a function that had co-executed."""
    assert function.stats().co_executed_steps >= num_steps - 5, function.explain()


def assert_like_eager(make, num_steps=NUM_STEPS, **kwargs):
    """Compare with eager; return the counters of the function that `make` has wrapped."""
    functions = []

    def make_and_keep(wrap):
        def keep(function):
            functions.append(wrap(function))
            return functions[-1]

        return make(keep)

    assert_matches_eager(make_and_keep, num_steps, **kwargs)
    return [f for f in functions if hasattr(f, "stats")][-1].stats()


def num_gradients(stats):
    """Return how many calls of `GradientTape.gradient` were replayed."""
    return stats.calls_replayed.get("GradientTape.gradient", 0)
