"""Slices of variables: a tensor with a method of its own, replayed like others."""

import pytest
import tensorflow as tf
from hazards import Counter, assert_like_eager, draw_inputs, make_weight

pytestmark = pytest.mark.timeout(120)
SLICE = "Variable.__getitem__"


def stepping(body):
    def make(wrap):
        weight, draw, count = make_weight(), draw_inputs(), Counter()
        step = wrap(lambda x, n: body(x, weight, n))
        return lambda: (step(draw(), count.advance()), weight)

    return make


INDICES = {
    "number": lambda w, x, n: w[1],
    "two": lambda w, x, n: w[1, 2],
    "range": lambda w, x, n: w[1:3, ::2],
    "new axis": lambda w, x, n: w[tf.newaxis, ..., 0],
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_slice_and_what_is_made_of_it_are_replayed(index):
    def body(x, w, n):
        part = index(w, x, n)
        return tf.reduce_sum(tf.tanh(part)), part.assign is not None

    stats = assert_like_eager(stepping(body))
    assert stats.calls_replayed[SLICE] > 6, stats.calls_not_replayed
    assert stats.calls_replayed["tf.tanh"] > 6, stats.calls_not_replayed


def test_replayed_slice_is_assigned_to():
    def body(x, w, n):
        part = w[1]
        part.assign(part * 0.5 + x[0])
        w[2, :3].assign(tf.zeros(3) + float(n))
        return tf.reduce_sum(w * w)

    assert assert_like_eager(stepping(body)).co_executed_steps > 4


def test_under_a_tape():
    def body(x, w, n):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.sin(x * w[0]) * w[1, 1])
        w.assign_sub(0.1 * tape.gradient(loss, w))
        return loss

    stats = assert_like_eager(stepping(body))
    assert stats.calls_replayed[SLICE] > 6, stats.calls_not_replayed
    assert stats.calls_replayed["GradientTape.gradient"] > 6, stats.calls_not_replayed


def test_index_of_the_step():
    """What its `assign` holds is another one in each step."""

    def body(x, w, n):
        row = tf.argmax(x[0])
        part = w[row]
        part.assign(part + 1.0)
        return w[row], w[n % 3]

    stats = assert_like_eager(stepping(body))
    assert stats.co_executed_steps > 4


def test_index_that_changes():
    stats = assert_like_eager(stepping(lambda x, w, n: (w[n % 4] * 2.0, w[-1])), 24)
    assert stats.calls_replayed[SLICE] > 12, stats.calls_not_replayed


def test_attribute_of_the_same_name_that_is_the_users():
    def body(x, w, n):
        part = tf.tanh(x)
        part.assign = lambda value: n
        return tf.reduce_sum(part), part.assign(1.0)

    stats = assert_like_eager(stepping(body))
    assert "tf.reduce_sum" not in stats.calls_replayed


def test_first_trace_of_a_function_under_a_tape_is_no_gradient_of_the_users():
    def make(wrap):
        weight, draw, count = make_weight(), draw_inputs(), Counter()

        @wrap
        def step(x, n):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.tanh(x @ weight))
                size = tf.function(lambda t: tf.shape(t)[0] + n)(x)  # traced in each step
            return tape.gradient(loss, weight), size

        return lambda: step(draw(), count.advance())

    stats = assert_like_eager(make, 10)
    assert stats.calls_replayed["GradientTape.gradient"] > 3, stats.calls_not_replayed
