"""Calls are replayed although shapes change from step to step: one record for each shape."""

import contextlib
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf.testing import assert_co_executing, find_difference, freeze

pytestmark = pytest.mark.timeout(300)

LENGTHS = [5, 8, 3, 9, 4, 7]
ROUNDS = 6  # of all lengths: exact graphs, the relaxed one, learning (twice at most), replay


def rows(length, *shape, seed=0):
    rng = np.random.default_rng(length + 100 * seed)
    return tf.constant(rng.normal(size=(length, *shape)).astype(np.float32))


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pooled(w):
    """Python takes shapes in every way that there is."""
    v = tf.Variable(numbers(6, seed=1))

    def step(length):
        x = rows(length, 4)
        with tf.GradientTape() as tape:
            h = tf.tanh(x @ w + v)
            h = tf.reshape(h, [tf.shape(x)[0], 2, 3])
            h = tf.reshape(h, (h.shape[0], -1))
            h = h - tf.reduce_mean(h, axis=0)
            places = tf.cast(tf.range(tf.shape(h)[0]), tf.float32)[:, None]
            loss = tf.reduce_mean(tf.square(h) + 0.1 * places) / tf.cast(len(x), tf.float32)
        for variable, gradient in zip((w, v), tape.gradient(loss, [w, v])):
            variable.assign_sub(0.1 * gradient)
        return loss, h

    return step


def embedded(w):
    def step(length):
        indices = tf.constant(np.random.default_rng(length).integers(0, 4, length))
        with tf.GradientTape() as tape:
            rows_of_w = tf.gather(w, indices) ** 2 + tf.gather(w, indices[::-1])
            loss = tf.reduce_sum(rows_of_w)
        slices = tape.gradient(loss, w)
        w.scatter_sub(tf.IndexedSlices(0.1 * slices.values, slices.indices))
        return loss

    return step


def messages(w):
    """A graph's: edges and nodes of any number."""

    def step(length):
        x = rows(length, 4)
        edges = np.random.default_rng(length).integers(0, length, (length + 2, 2))
        sources, targets = tf.constant(edges[:, 0]), tf.constant(edges[:, 1])
        with tf.GradientTape() as tape:
            h = tf.gather(x @ w, sources)
            h = tf.math.unsorted_segment_mean(h, targets, tf.shape(x)[0])
            loss = tf.reduce_mean(h**2)
        w.assign_sub(0.1 * tape.gradient(loss, w))
        return loss

    return step


def attention(w):
    def step(length):
        x = rows(length, 4)
        mask = tf.linalg.band_part(tf.ones((length, length)), -1, 0)
        with tf.GradientTape() as tape:
            q = tf.einsum("ld,de->le", x, w)
            scores = tf.matmul(q, q, transpose_b=True) - 1e9 * (1.0 - mask)
            out = tf.concat([tf.nn.softmax(scores) @ q, q], axis=-1)
            loss = tf.reduce_mean(tf.nn.relu(out))
        w.assign_sub(0.1 * tape.gradient(loss, w))
        return loss

    return step


PROGRAMS = [pooled, embedded, messages, attention]


def twins(program):
    return [program(tf.Variable(numbers(4, 6))) for _ in range(2)]


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_python_of_the_librarys_runs_for_a_shape_that_is_known(program):
    eager, function = twins(program)
    function = terra.function(function)
    for _ in range(ROUNDS + 1):
        before = function.stats()
        for length in LENGTHS:
            assert not find_difference(freeze(eager(length)), freeze(function(length)))
    assert_co_executing(function, after=before)
    after = function.stats()
    assert after.calls_not_replayed == before.calls_not_replayed
    assert sum(after.calls_replayed.values()) > sum(before.calls_replayed.values())
    assert after.tape_ops_recorded == before.tape_ops_recorded


@pytest.mark.parametrize("program", PROGRAMS)
def test_shapes_in_any_order_are_eagers(program):
    eager, function = twins(program)
    function = terra.function(function)
    rng = np.random.default_rng(0)
    for _ in range(60):
        length = int(rng.integers(1, 30))
        assert not find_difference(freeze(eager(length)), freeze(function(length)))
    assert sum(function.stats().calls_replayed.values()) > 0


def assert_like_eager(step, cases):
    function = terra.function(step)
    for case in cases:
        assert not find_difference(freeze(step(*case)), freeze(function(*case)))
    terra.synchronize()
    assert function.stats().co_executed_steps > len(cases) // 2
    return function


def test_shape_that_follows_from_a_value_is_no_part_of_a_key():
    """The same arguments but for a value, and Python that makes numbers of the result's shape."""
    w = tf.Variable(numbers(1, 3))

    def step(shape):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.broadcast_to(w, shape) ** 2, axis=0)
        return loss, tape.gradient(loss, w)

    cases = [(tf.constant([2 + i % 5, 3]),) for i in range(60)]
    assert_like_eager(step, cases)


def test_size_that_follows_from_a_value_inside_of_a_call():
    """`tf.one_hot` and `tf.repeat` make shapes of what they are given."""
    w = tf.Variable(numbers(4, 3))

    def step(x, times):
        with tf.GradientTape() as tape:
            repeated = tf.repeat(x @ w, times, axis=0)
            loss = tf.reduce_mean(repeated, axis=0)
        return loss, tape.gradient(loss, w), tf.shape(repeated)

    rng = np.random.default_rng(0)
    cases = [
        (rows(3 + i % 4, 4), tf.constant(rng.integers(1, 4, 3 + i % 4).astype(np.int32)))
        for i in range(60)
    ]
    assert_like_eager(step, cases)


def test_number_of_items_that_follows_from_a_value_on_the_host():
    """`tf.range` of a small number that Python has: computed at once, and as long as that says."""
    w = tf.Variable(numbers(1, 3))

    def step(x, limit):
        with tf.GradientTape() as tape:
            places = tf.cast(tf.range(limit), tf.float32)[:, None]
            loss = tf.reduce_mean(places * w + tf.reduce_mean(x), axis=0)
        return loss, tape.gradient(loss, w), tf.zeros_like(places)

    rng = np.random.default_rng(0)
    cases = [(rows(3 + i % 4, 4), tf.constant(int(rng.integers(1, 7)))) for i in range(80)]
    assert_like_eager(step, cases)


@terra.pure
def mean_of_widened(w, shape):
    wide = tf.broadcast_to(w, shape)
    return tf.reduce_sum(wide) / wide.shape[0]


@terra.pure
def mean_of_places(w, limit):
    places = tf.range(limit)
    return tf.reduce_sum(w) * tf.cast(tf.reduce_sum(places), tf.float32) / len(places)


@pytest.mark.parametrize("function", [mean_of_widened, mean_of_places])
@pytest.mark.parametrize("use_tape", [False, True], ids=["plain", "taped"])
def test_python_that_makes_a_number_of_a_size_that_is_a_value(function, use_tape):
    """A call with the same key but for a value that it is given, inferred or on the host."""
    w = tf.Variable(numbers(1, 3))

    def step(value):
        with tf.GradientTape() if use_tape else contextlib.nullcontext():
            return function(w * 1.0, value)

    sizes = np.random.default_rng(0).integers(1, 7, 60)
    of = [lambda n: tf.constant([n, 3]), lambda n: tf.constant(n)][function is mean_of_places]
    assert_like_eager(step, [(of(int(n)),) for n in sizes])


def test_value_of_a_shape_that_python_reads_is_this_steps():
    def step(x):
        length = tf.shape(x)[0]
        return tf.reduce_sum(x) * 2.0 if length > 5 else tf.reduce_sum(x, axis=0)

    function = assert_like_eager(step, [(rows(3 + i % 6, 4),) for i in range(60)])
    assert sum(function.stats().calls_replayed.values()) > 0


def test_shape_of_an_argument_that_is_of_shapes():
    """A number that follows from another tensor's shape, given to a call."""

    def step(x, y):
        n = tf.shape(y)[0]
        filled = tf.fill([n], 2.0), tf.eye(n), tf.ones([n, 2]), tf.zeros(n)
        return tf.tile(x, [n, 1]), filled, tf.reshape(x, [-1]) * float(n)

    rng = np.random.default_rng(0)
    cases = [(rows(3, 4), rows(int(rng.integers(1, 9)), 2)) for _ in range(60)]
    function = assert_like_eager(step, cases)
    assert sum(function.stats().calls_replayed.values()) > 0


def test_rows_that_no_longer_fit_leave_the_graph():
    """What is written has the shape of a step before, until it has not."""
    v = tf.Variable(numbers(4, 3), shape=tf.TensorShape([None, 3]))
    eager_v = tf.Variable(numbers(4, 3), shape=tf.TensorShape([None, 3]))

    def make(variable):
        def step(x):
            variable.assign(tf.concat([x, 2.0 * x], axis=0))
            return tf.reduce_sum(variable)

        return step

    eager, function = make(eager_v), terra.function(make(v))
    for i in range(60):
        x = rows(2 + i % 3, 3)
        assert not find_difference(freeze(eager(x)), freeze(function(x)))
    terra.synchronize()
    assert not find_difference(freeze(eager_v), freeze(v))


# ------------------------------------------------ shapes that depend on data


def masked(length):
    """Some of 40 rows: more than the host would look at."""
    return tf.boolean_mask(rows(40, 3), tf.constant(np.arange(40) < length))


def made_outside_of_the_tape(v):
    def step(length):
        y = masked(length)
        with tf.GradientTape() as tape:
            tape.watch(y)
            loss = tf.reduce_mean(y)
        return len(y), tape.gradient(loss, y)

    return step


def read_outside_of_the_tape(v):
    def step(length):
        v.assign(rows(length, 3))
        y = v.read_value()
        with tf.GradientTape() as tape:
            tape.watch(y)
            loss = tf.reduce_mean(y)
        return tape.gradient(loss, y)

    return step


def arrived_under_the_tape(v):
    def step(length):
        v.assign(rows(length, 3))
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(v)
        return loss, tape.gradient(loss, v)

    return step


def segments_under_the_tape(v):
    def step(length):
        ids = tf.constant(np.random.default_rng(length).integers(0, length, 6))
        x = rows(6, 4)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_mean(tf.math.segment_sum(x, tf.sort(ids)))
        return loss, tape.gradient(loss, x)

    return step


def joined_with_others(v):
    def step(length):
        y = masked(length)
        z = tf.concat([y * 2.0, rows(2, 3)], axis=0)
        with tf.GradientTape() as tape:
            tape.watch(z)
            loss = tf.reduce_sum(z / tf.cast(tf.shape(z)[0], tf.float32), axis=0)
        return tape.gradient(loss, z), tf.ones_like(y) / len(y)

    return step


def jacobian(v):
    def step(length):
        y = masked(length)
        y.numpy()
        with tf.GradientTape() as tape:
            tape.watch(y)
            loss = tf.reduce_mean(y, axis=0)
        return tape.jacobian(loss, y)

    return step


def written_by_an_optimizer(v):
    optimizer = keras.optimizers.SGD(0.1)
    w = tf.Variable(numbers(3, 2))
    optimizer.build([w])

    def step(length):
        y = masked(length)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.tanh(y @ w))
        optimizer.apply_gradients(zip(tape.gradient(loss, [w]), [w]))
        return w.read_value()

    return step


LATE = [
    made_outside_of_the_tape,
    read_outside_of_the_tape,
    arrived_under_the_tape,
    segments_under_the_tape,
    joined_with_others,
    jacobian,
    written_by_an_optimizer,
]


@pytest.mark.parametrize("slow", [False, True], ids=["", "slow"])
@pytest.mark.parametrize("program", LATE)
def test_shapes_that_depend_on_data_are_this_steps(program, slow):
    """They are known when they have arrived, which says nothing about the next step's."""
    variables = [tf.Variable(numbers(4, 3), shape=[None, 3]) for _ in range(2)]
    eager, step = (program(v) for v in variables)
    function = terra.function(step)
    delays = "graph" if slow else ""
    with terra.config.override(inject_delays=delays):
        for i in range(40):
            got = freeze(function(3 + i % 3))
            assert not find_difference(freeze(eager(3 + i % 3)), got), (i, function.explain())
    terra.synchronize()
    assert function.stats().co_executed_steps > 20


@terra.pure
def late_mean(x, mask):
    kept = tf.boolean_mask(x, mask)
    time.sleep(0.003)
    return tf.reduce_sum(kept) / kept.shape[0]


def test_late_shape_that_python_reads_in_a_call():
    def step(x, mask):
        return late_mean(x, mask)

    masks = [tf.constant(np.arange(40) < 3 + i % 3) for i in range(40)]
    assert_like_eager(step, [(rows(40, 3), mask) for mask in masks])
