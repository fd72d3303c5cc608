"""Indices and labels that are fed: the cursor looks at them, so that their ops cannot fail."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf.runtime import in_flight
from terra_tf.testing import Program, assert_matches_eager

pytestmark = pytest.mark.timeout(60)
NUM_STEPS = 24
NUM_TOKENS, NUM_CLASSES = 10, 4


def make_classifier(wrap, bad_tokens=(), bad_labels=(), catches=False):
    """Tokens are embedded; some batches have a token, or a label, that there is none of."""
    numbers = itertools.count()
    rng = np.random.default_rng(0)
    embedding = tf.Variable(rng.standard_normal((NUM_TOKENS, 3)).astype(np.float32))
    weight = tf.Variable(rng.standard_normal((3, NUM_CLASSES)).astype(np.float32))
    caught = []

    def train(tokens, labels):
        with tf.GradientTape() as tape:
            logits = tf.reduce_mean(tf.gather(embedding, tokens), 1) @ weight
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        slices, gradient = tape.gradient(loss, [embedding, weight])
        embedding.scatter_sub(tf.IndexedSlices(0.1 * slices.values, slices.indices))
        weight.assign_sub(0.1 * gradient)
        return loss

    @wrap
    def step(tokens, labels):
        if not catches:
            return train(tokens, labels)
        try:
            return train(tokens, labels)
        except tf.errors.InvalidArgumentError:
            caught.append(len(caught))
            return tf.constant(-1.0)

    def run():
        i = next(numbers)
        tokens = np.random.default_rng(i).integers(NUM_TOKENS, size=(5, 2))
        labels = np.random.default_rng(i).integers(NUM_CLASSES, size=5)
        if i in bad_tokens:
            tokens[1, 1] = NUM_TOKENS
        if i in bad_labels:
            labels[2] = -1
        return step(tf.constant(tokens), tf.constant(labels)), list(caught)

    run.function = step
    return Program(run, [embedding, weight])


def ranges_of(function):
    return sorted(function.built_graph.generated.feed_ranges.values())


def test_step_with_tokens_and_labels_cannot_fail():
    (step,) = assert_matches_eager(make_classifier, num_steps=NUM_STEPS)
    assert not step.built_graph.generated.is_fallible
    assert ranges_of(step) == [(0, NUM_CLASSES), (0, NUM_TOKENS)]
    assert step.stats().fallbacks == {}
    counts = [op.type for op in step.built_graph.generated.function.graph.get_operations()]
    assert "Terra>CheckIndices" not in counts


@pytest.mark.parametrize("catches", [False, True])
@pytest.mark.parametrize("bad", [{"bad_tokens": (9, 15)}, {"bad_labels": (9, 15)}])
def test_bad_batch_raises_where_eager_does(bad, catches):
    (step,) = assert_matches_eager(
        lambda wrap: make_classifier(wrap, **bad, catches=catches), num_steps=NUM_STEPS
    )
    stats = step.stats()
    assert stats.fallbacks == {"index_out_of_range": 2}
    assert stats.imperative_ops == {}
    assert not step.built_graph.generated.is_fallible


def test_bad_batches_again_and_again_are_ops_that_can_fail():
    bad_labels = (9, 12, 15, 18, 20, 22)
    (step,) = assert_matches_eager(
        lambda wrap: make_classifier(wrap, bad_labels=bad_labels), num_steps=NUM_STEPS
    )
    assert step.stats().fallbacks["index_out_of_range"] == 3
    assert ranges_of(step) == [(0, NUM_TOKENS)]


def make_padded(wrap):
    """The padding is out of range, but cut off before anything fails on it."""
    numbers = itertools.count()
    table = tf.Variable(tf.range(8.0))

    @wrap
    def step(ids):
        return tf.reduce_sum(tf.gather(table, ids[:, :2])) + tf.reduce_sum(tf.cast(ids, tf.float32))

    def run():
        i = next(numbers)
        padding = -1 if i > 6 else 0
        return step(tf.constant([[i % 8, 1, padding], [2, (3 * i) % 8, padding]]))

    return Program(run, [table])


def test_values_that_no_op_takes_may_be_out_of_range():
    (step,) = assert_matches_eager(make_padded, num_steps=NUM_STEPS)
    stats = step.stats()
    assert stats.fallbacks == {"index_out_of_range": 3}
    assert stats.phase == "co-execution"
    assert ranges_of(step) == []
    assert step.built_graph.generated.is_fallible


CHAINS = {
    "reshaped": lambda x: tf.reshape(x, [-1]),
    "keras' labels": lambda x: tf.cast(tf.cast(x, tf.float32), tf.int64),
    "sliced": lambda x: x[:, 1:],
    "split": lambda x: tf.split(x, 2, axis=1)[1],
    "stacked": lambda x: tf.stack([x, x]),
    "with a constant": lambda x: tf.concat([x, tf.constant([[1, 2]])], 0),
    "turned": lambda x: tf.transpose(tf.expand_dims(x, 0)),
}
COMPUTED = {
    "added": lambda x: x + 1,
    "a constant that is too large": lambda x: tf.concat([x, tf.constant([[1, 200]])], 0),
    "cast to a narrow type": lambda x: tf.cast(tf.cast(x, tf.float16), tf.int32),
}


def make_lookup(wrap, select, size=3000):
    numbers = itertools.count()
    table = tf.Variable(tf.range(float(size)))

    @wrap
    def step(ids):
        try:
            return tf.reduce_sum(tf.gather(table, select(ids)))
        except tf.errors.InvalidArgumentError:
            return tf.constant(-1.0)

    def run():
        i = next(numbers)
        return step(tf.constant([[i, 2 * i], [i // 2, 1]]))

    return Program(run, [table])


@pytest.mark.parametrize("select", CHAINS.values(), ids=CHAINS)
def test_what_only_moves_values_keeps_their_range(select):
    (step,) = assert_matches_eager(lambda wrap: make_lookup(wrap, select), num_steps=8)
    assert ranges_of(step) == [(0, 3000)]
    assert not step.built_graph.generated.is_fallible


@pytest.mark.parametrize("select", COMPUTED.values(), ids=COMPUTED)
def test_what_is_computed_has_no_range(select):
    size = 150 if "large" in next(k for k, v in COMPUTED.items() if v is select) else 3000
    (step,) = assert_matches_eager(lambda wrap: make_lookup(wrap, select, size), num_steps=8)
    assert ranges_of(step) == []


@pytest.mark.parametrize("dtype", [tf.uint8, tf.int8, tf.int16, tf.uint16, tf.int32, tf.int64])
@pytest.mark.parametrize("last", [5, 6])
def test_integers_of_each_type_are_compared(dtype, last):
    table = tf.Variable(tf.range(6.0))
    step = terra.function(lambda ids: tf.gather(table, tf.cast(ids, tf.int32)))
    for i in range(6):
        step(tf.constant([i % 3, 2, 1], dtype))
    if last == 6:
        with pytest.raises(tf.errors.InvalidArgumentError):
            step(tf.constant([0, 1, last], dtype))
    else:
        step(tf.constant([0, 1, last], dtype))
    assert step.stats().fallbacks == ({"index_out_of_range": 1} if last == 6 else {})


def test_indices_of_a_step_in_flight_are_waited_for():
    def make(wrap):
        table = tf.Variable(tf.constant([3, 0, 1, 2, 4]))
        state = {"at": tf.constant([0, 4])}

        @wrap
        def step(at):
            return tf.gather(table, at)

        def run():
            state["at"] = step(state["at"])
            return state["at"]

        return Program(run, [table])

    (step,) = assert_matches_eager(make, num_steps=NUM_STEPS)
    assert step.stats().fallbacks == {}
    assert not step.built_graph.generated.is_fallible


def test_a_step_that_cannot_fail_returns_before_its_graph_has_ended():
    """Python is not held up by a graph that works for long on tokens that it has seen."""
    table = tf.Variable(tf.random.normal([64, 512]))
    square = tf.random.normal([512, 512]) / 512.0

    @terra.function
    def step(ids):
        h = tf.gather(table, ids)
        for _ in range(40):
            h = h @ square
        return tf.reduce_sum(h)

    for i in range(6):
        float(step(tf.constant([i] * 512)))
    terra.synchronize()
    result = step(tf.constant([7] * 512))
    (session,) = in_flight._queue
    assert session.native.python_stall_s == 0
    assert np.isfinite(float(result))
    assert session.native.python_stall_s > 0


def make_gather_by(wrap, indices_of):
    numbers = itertools.count()
    table = tf.Variable(tf.range(10))

    @wrap
    def step(x):
        table.assign_add(tf.ones([10], tf.int32))
        rows = tf.gather(table, indices_of(x))
        return rows, tf.gather(x, indices_of(x), axis=1)

    def run():
        return step(tf.random.stateless_normal([3, 10], [next(numbers), 1]))

    return Program(run, [table])


BOUNDED = [
    lambda x: tf.math.top_k(x, k=3).indices,
    lambda x: tf.argmax(x, axis=1),
    lambda x: tf.expand_dims(tf.argmin(x, axis=-1, output_type=tf.int32), 1),
    lambda x: tf.cast(x * 100.0, tf.int32) % 10,
    lambda x: tf.clip_by_value(tf.cast(x * 100.0, tf.int32), 2, 9),
    lambda x: tf.maximum(tf.minimum(tf.cast(x * 100.0, tf.int32), 9), 0),
]


@pytest.mark.parametrize("indices_of", BOUNDED)
def test_indices_that_are_always_in_range_make_no_op_fallible(indices_of):
    (step,) = assert_matches_eager(lambda wrap: make_gather_by(wrap, indices_of), 12)
    assert step.stats().co_executed_steps == 10
    assert not step.built_graph.generated.is_fallible


UNBOUNDED = [
    lambda x: tf.abs(tf.cast(x, tf.int32)),
    lambda x: tf.cast(tf.abs(x) * 2.0, tf.int32) % 11,
    lambda x: tf.minimum(tf.abs(tf.cast(x, tf.int32)), 9),
    lambda x: tf.abs(tf.cast(x, tf.int32) - tf.cast(tf.argmax(x, axis=1), tf.int32)[:, None]) // 9,
]


@pytest.mark.parametrize("indices_of", UNBOUNDED)
def test_indices_that_may_be_out_of_range_make_ops_fallible(indices_of):
    (step,) = assert_matches_eager(lambda wrap: make_gather_by(wrap, indices_of), 12)
    assert step.built_graph.generated.is_fallible
