"""What Python holds where an epoch ends is known from the traces, at every such place at once."""

import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf.testing import assert_matches_eager

pytestmark = pytest.mark.timeout(120)


def test_one_trace_tells_what_is_held_at_every_end_of_an_epoch():
    """Each round ends an epoch, and holds a tensor then that is let go before the next one."""

    def make(wrap):
        table = tf.Variable(tf.zeros([4, 2]))

        @wrap
        def step(x):
            for number in range(4):
                held = x * (number + 2.0)
                table.scatter_update(tf.IndexedSlices(held[:1], [number]))
                x = table[number] + held
                del held
            return tf.reduce_sum(x)

        inputs = iter(range(100))
        return lambda: (step(tf.fill([3, 2], float(next(inputs)))), table.numpy())

    (step,) = assert_matches_eager(make, num_steps=10)
    stats = step.stats()
    assert (stats.traced_steps, stats.graph_builds, stats.co_executed_steps) == (2, 1, 8)
    assert dict(stats.fallbacks) == {}
    assert stats.num_fetches == 4 + 3 + 1  # `held`; `x`, but for the argument; the result


def test_epoch_that_another_way_brings_ends_where_it_is_known_what_is_held():
    """Every fourth step writes in place what the others use; so all of them end an epoch there."""

    def make(wrap):
        table = tf.Variable(tf.ones([4, 2]))
        count = [0]

        @wrap
        def step(x):
            count[0] += 1
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.tanh(table) ** 2 * x)
            gradient = tape.gradient(loss, table)
            if count[0] % 4 == 0:
                table.scatter_update(tf.IndexedSlices(gradient[:1], [count[0] % 3]))
            return loss, tf.norm(gradient), table[0]

        return lambda: step(tf.fill([4, 2], 0.1 * count[0]))

    (step,) = assert_matches_eager(make, num_steps=32)
    assert "live_tensor_not_fetched" not in step.stats().fallbacks
    assert step.stats().graph_builds <= 3
    assert step.stats().co_executed_steps >= 26


def test_optimizers_that_make_their_variables_in_different_steps():
    """Making variables ends epochs, in a graph that all the optimizers share."""
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("Keras runs on another backend")

    def make(wrap):
        optimizers = [keras.optimizers.Adam(0.01), keras.optimizers.Nadam(0.01)]
        pairs = [[keras.Variable(tf.ones([3, 2])), keras.Variable(tf.zeros([2]))] for _ in range(2)]

        @wrap
        def step(which, x):
            weight, bias = pairs[which]
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((x @ weight.value + bias.value - 1.0) ** 2)
            gradients = tape.gradient(loss, [weight.value, bias.value])
            optimizers[which].apply_gradients(zip(gradients, pairs[which], strict=True))
            return loss

        inputs = iter(range(100))

        def run():
            x = tf.fill([4, 3], 0.1 * next(inputs))
            return [(step(which, x), pairs[which][0].numpy()) for which in range(2)]

        return run

    (step,) = assert_matches_eager(make, num_steps=10)
    assert "live_tensor_not_fetched" not in step.stats().fallbacks
    assert step.stats().graph_builds <= 3


def test_what_is_let_go_before_an_epoch_ends_is_not_fetched():
    table = tf.Variable(tf.zeros([4, 2]))

    @terra.function
    def step(x):
        for _ in range(5):
            x = tf.tanh(x) + 1.0
        table.scatter_update(tf.IndexedSlices(x[:1], [0]))
        return table[0] * 2.0

    for number in range(6):
        step(tf.fill([3, 2], float(number)))
    stats = step.stats()
    assert (stats.graph_builds, dict(stats.fallbacks)) == (1, {})
    assert stats.num_fetches == 2  # the last `x`, and the result
