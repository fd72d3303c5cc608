"""Calls that are not replayed run their Python, and `stats()` says why."""

import pytest
import tensorflow as tf
from hazards import NUM_STEPS, draw_inputs
from tensorflow.python.framework import op_callbacks

from terra_tf.testing import assert_matches_eager

pytestmark = pytest.mark.timeout(120)

SEEN = []


def under_an_accumulator(x):
    with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
        y = tf.nn.relu(x)
    return accumulator.jvp(y)


def with_an_op_callback(x):
    def see(op_type, inputs, attributes, outputs, **_):
        SEEN.append(op_type)

    op_callbacks.add_op_callback(see)
    try:
        return tf.nn.relu(x)
    finally:
        op_callbacks.remove_op_callback(see)


@pytest.mark.parametrize(
    "body, why",
    [
        (under_an_accumulator, "a forward accumulator computes"),
        (with_an_op_callback, "op callback"),
    ],
    ids=["under_an_accumulator", "with_an_op_callback"],
)
def test_what_is_not_replayed_is_counted(body, why):
    def make(wrap):
        draw, step = draw_inputs(), wrap(body)
        return lambda: step(draw())

    (step,) = assert_matches_eager(make, NUM_STEPS)
    refused = step.stats().calls_not_replayed
    assert any(why in call for call in refused), refused
