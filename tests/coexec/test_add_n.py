"""Sums of many tensors have eager's bits, in every call.

Eager adds in the order of a sum's inputs. A kernel in a graph begins with whichever input's buffer
nobody needs any more, unless it is told not to; so the inputs here are made in the graph, some are
needed again, and which of them is ready first differs from call to call.
"""

import collections
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

import terra_tf as terra
from terra_tf.runtime.plan import config_proto
from terra_tf.testing import assert_matches_eager
from tests.coexec.programs import normal

pytestmark = pytest.mark.timeout(240)

FLOATS = [tf.float32, tf.float64, tf.float16, tf.bfloat16]
DTYPES = [*FLOATS, tf.complex64, tf.complex128, tf.int32, tf.int64, tf.uint8]
COUNTS = range(2, 13)


def draw(rng, shape, dtype=tf.float32):
    """Draw numbers of many magnitudes, so that the order in which they are added shows."""
    values = rng.standard_normal(shape) * 10.0 ** rng.integers(-2, 3, shape)
    if dtype.is_complex:
        values = values + 1j * rng.standard_normal(shape)
    return tf.constant(values.astype(dtype.as_numpy_dtype if dtype.is_complex else np.float64))


def added_in_order(arrays):
    """Add as `AddNOp` of TensorFlow does without reuse: up to nine, and then by eight."""
    first = len(arrays) % 8 + 8 * (len(arrays) % 8 < 2)
    total = functools.reduce(np.add, arrays[:first])
    for i in range(first, len(arrays), 8):
        total = total + functools.reduce(np.add, arrays[i : i + 8])
    return total


@pytest.mark.parametrize("dtype", [*FLOATS, tf.complex64], ids=lambda dtype: dtype.name)
def test_eager_adds_in_the_order_of_the_inputs(dtype):
    rng = np.random.default_rng(0)
    for count in range(2, 20):
        for size in (1, 7, 1000):
            parts = [tf.cast(draw(rng, [size], dtype), dtype) for _ in range(count)]
            expected = added_in_order([part.numpy() for part in parts])
            held = tf.add_n(parts)
            free = tf.add_n([part * 1 for part in parts])  # nobody else holds the products
            assert held.numpy().tobytes() == free.numpy().tobytes() == expected.tobytes()


def sums_of(shape, dtype):
    """Make a program of sums of 2 to 12 tensors; every third of them is needed again."""

    def make(wrap):
        rng = np.random.default_rng(0)

        @wrap
        def step(x):
            sums, again = [], []
            for count in COUNTS:
                parts = [x[i] * tf.cast(i + 1, dtype) for i in range(count)]
                sums.append(tf.add_n(parts))
                again += parts[2::3]
            return sums, [part + part for part in again]

        return lambda: step(tf.cast(draw(rng, [12, *shape], dtype), dtype))

    return make


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_bits_are_eagers(dtype):
    (function,) = assert_matches_eager(sums_of([3, 5], dtype), 20)
    assert function.stats().co_executed_steps == 18
    sums = [
        node
        for node in function.built_graph.generated.lowered.definition.node_def
        if node.op == "AddN"
    ]
    assert collections.Counter(node.attr["N"].i for node in sums) == dict.fromkeys(COUNTS, 1)


@pytest.mark.parametrize("shape", [(), (1,), (100_003,), (0, 3)])
def test_bits_are_eagers_for_any_size(shape):
    assert_matches_eager(sums_of(shape, tf.float32), 10)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64, tf.bfloat16], ids=lambda d: d.name)
def test_bits_of_special_numbers_are_eagers(dtype):
    values = [np.nan, -np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-40, -1e-40, 1e-310, 1.0]

    def make(wrap):
        rng = np.random.default_rng(0)

        @wrap
        def step(x):
            parts = [tf.reshape(tf.transpose(x[i]), [-1]) for i in range(9)]
            return [tf.add_n(parts[:count]) for count in (2, 3, 5, 9)], parts[4] + parts[7]

        return lambda: step(tf.constant(rng.choice(values, [9, 7, 31]), dtype))

    assert_matches_eager(make, 20)


def test_which_of_two_nans_is_kept():
    bits = np.array([0x7FC00001, 0xFFC00002, 0x7FC00003], np.uint32).view(np.float32)

    def make(wrap):
        @wrap
        def step(x):
            parts = [tf.reshape(x[i], [-1]) for i in range(3)]
            kept = tf.reverse(parts[0], [0])
            return tf.add_n(parts[:2]), tf.add_n(parts), kept

        return lambda: step(tf.constant(np.broadcast_to(bits[:, None], [3, 37]).copy()))

    assert_matches_eager(make, 20)


def test_large_sums_are_not_taken_apart():
    """Of such tensors Grappler makes a variable each is added to as soon as it is ready.

    It does so in a `tf.function`. A graph of Terra's, which returns nothing, it has left alone;
    that is not relied on.
    """

    def make(wrap):
        rng = np.random.default_rng(0)

        @wrap
        def step(x):
            total = tf.add_n([tf.cos(x * float(i)) for i in range(1, 6)])
            return tf.bitcast(total, tf.int32)[::4097], tf.reduce_max(total)

        x = tf.constant(normal(rng, 8_000_000, scale=1.0))
        return lambda: step(x)

    (function,) = assert_matches_eager(make, 5)
    assert function.stats().co_executed_steps == 3
    definition = function.built_graph.generated.lowered.definition
    assert [node.op for node in definition.node_def].count("AddN") == 1
    rewrites = config_pb2.ConfigProto.FromString(config_proto()).graph_options.rewrite_options
    assert rewrites.memory_optimization == rewrites.NO_MEM_OPT


# ------------------------------------------------------------------- gradients


def make_shared_weight(wrap):
    """A weight that is used 2 to 12 times has as many gradients, which the tape adds up."""
    rng = np.random.default_rng(0)
    weight = tf.Variable(normal(rng, 16, 16, scale=0.3))

    @wrap
    def step(x):
        with tf.GradientTape(persistent=True) as tape:
            losses, y = [], x
            for _ in range(12):
                y = tf.tanh(tf.matmul(y, weight) + y)
                losses.append(tf.reduce_sum(y * y))
        gradients = [tape.gradient(losses[count - 1], weight) for count in COUNTS]
        weight.assign_sub(0.01 * gradients[-1])
        return gradients

    return lambda: (step(tf.constant(normal(rng, 4, 16))), weight)


def make_embedding(wrap):
    rng = np.random.default_rng(0)
    table = tf.Variable(normal(rng, 20, 8))

    @wrap
    def step(indices):
        with tf.GradientTape() as tape:
            rows = [tf.gather(table, indices[i]) for i in range(5)]
            loss = tf.reduce_sum(tf.accumulate_n([tf.sin(row) for row in rows]) ** 2)
            loss += sum(tf.reduce_sum(tf.sin(table * float(i))) for i in range(3))
        gradient = tape.gradient(loss, table)
        table.assign_sub(0.1 * gradient)
        return loss

    return lambda: (step(tf.constant(rng.integers(0, 20, (5, 6)))), table)


def make_rolled_loop(wrap):
    """Sums in a loop of any length, in a branch of it, and behind it."""
    rng = np.random.default_rng(0)
    lengths = iter([3, 9, 6, 12, 4, 7, 12, 5, 11, 8] * 3)
    weight = tf.Variable(normal(rng, 8, 8, scale=0.3))

    @wrap
    def step(x, length):
        for i in range(length):
            with tf.GradientTape() as tape:
                y = tf.tanh(tf.matmul(tf.tanh(tf.matmul(x, weight)), weight))
                loss = tf.reduce_sum(tf.matmul(y, weight) ** 2)
            weight.assign_sub(0.01 * tape.gradient(loss, weight))
            parts = [tf.sin(x), tf.cos(x) * 100.0, x * x]
            x = tf.add_n(parts) * 0.01 if i % 3 else tf.add_n([*parts, y, x]) * 0.02
        return tf.add_n([x * 3.0, tf.exp(x), x / 7.0])

    return lambda: (step(tf.constant(normal(rng, 4, 8)), next(lengths)), weight)


@pytest.mark.parametrize("make", [make_shared_weight, make_embedding, make_rolled_loop])
def test_gradients_are_eagers(make):
    (function,) = assert_matches_eager(make, 20)
    assert function.stats().co_executed_steps > 10


def make_episodes(wrap):
    """Episodes of 3 to 8 trips under a tape, as in policy gradients."""
    keras.utils.set_random_seed(1)
    body, head = keras.layers.Dense(16, activation="relu"), keras.layers.Dense(2)
    optimizer, rng = keras.optimizers.Adam(0.01), np.random.default_rng(0)
    lengths = iter(np.random.default_rng(3).integers(3, 9, 60))

    @wrap
    def episode(length):
        with tf.GradientTape() as tape:
            state, logs = tf.ones([1, 4]), []
            for _ in range(length):
                chances = tf.nn.softmax(head(body(state)))[0]
                logs.append(tf.math.log(chances[int(rng.random() < 0.5)]))
                state = tf.constant(normal(rng, 1, 4, scale=1.0))
            loss = -tf.reduce_mean(tf.stack(logs))
        variables = body.trainable_variables + head.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return lambda: episode(next(lengths))


def test_the_same_seeds_give_the_same_bits_in_every_run():
    for _ in range(4):
        (function,) = assert_matches_eager(make_episodes, 60)
        assert function.stats().co_executed_steps > 30


def test_arithmetic_may_be_rewritten_on_request():
    with terra.config.override(grappler_arithmetic=True):
        (function,) = assert_matches_eager(sums_of([5], tf.int32), 6)
    assert function.stats().co_executed_steps == 4
