"""Programs whose arguments or results change their shapes from call to call.

Each `make_*(wrap)` builds a `ShapeProgram`; what `step(case)` means is in the docstring of each.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from programs import normal

BATCH, DEPTH, WIDTH = 4, 8, 16


class ShapeProgram(NamedTuple):
    """A step that takes one number (a length, a seed), and the variables it leaves."""

    step: Callable[[int], Any]
    variables: Sequence[Any] = ()


def draw(*shape, seed=0):
    return np.random.default_rng(seed + 1000 * sum(shape)).normal(size=shape).astype(np.float32)


def make_sequence_model(wrap, training):
    """Attention over sequences; a case is their length. Python reads shapes in several ways."""
    rng = np.random.default_rng(0)
    shapes = ([DEPTH, WIDTH], [WIDTH], [WIDTH, WIDTH], [WIDTH], [WIDTH, 1])
    variables = [tf.Variable(normal(rng, *shape, scale=0.3)) for shape in shapes]
    w1, b1, w2, b2, w3 = variables

    @wrap
    def step(x):
        with tf.GradientTape() as tape:
            h = tf.tanh(tf.einsum("bld,de->ble", x, w1) + b1)
            flat = tf.reshape(h, [x.shape[0] * x.shape[1], WIDTH])
            h = tf.reshape(tf.nn.relu(flat @ w2 + b2), [x.shape[0], -1, WIDTH])
            dynamic = tf.shape(x)
            h = tf.reshape(h, [dynamic[0], dynamic[1], WIDTH])
            scores = tf.nn.softmax(tf.matmul(h, tf.stop_gradient(h), transpose_b=True) / 4.0)
            context = tf.matmul(scores, tf.stop_gradient(h))
            places = tf.cast(tf.range(x.shape[1]), tf.float32)[None, :, None]
            context = context + 0.01 * places
            loss = tf.reduce_mean(tf.square(tf.reduce_mean(context, 1) @ w3))
        if training:
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                variable.assign_sub(0.05 * gradient)
        return loss, context, x.shape.as_list(), int(dynamic[1])

    def run(length):
        return step(tf.constant(draw(BATCH, length, DEPTH)))

    return ShapeProgram(run, variables)


def make_dropout(wrap):
    """Dropout, padding and broadcasting gradients; a case is the length."""
    rng = np.random.default_rng(0)
    weight = tf.Variable(normal(rng, DEPTH, DEPTH, scale=0.3))
    bias = tf.Variable(normal(rng, DEPTH))

    @wrap
    def step(x, mask):
        with tf.GradientTape() as tape:
            h = tf.nn.dropout(x @ weight, rate=0.4)
            h = tf.pad(h, [[1, 1], [0, 0]])[1:-1] * mask[:, None] + bias
            loss = tf.reduce_sum(tf.square(h)) / tf.cast(tf.size(h), tf.float32)
        gradients = tape.gradient(loss, [weight, bias])
        weight.assign_sub(0.1 * gradients[0])
        bias.assign_sub(0.1 * gradients[1])
        return loss, tf.concat([h, tf.zeros([len(x), 1])], 1)

    def run(length):
        return step(tf.constant(draw(length, DEPTH)), tf.constant(draw(length)))

    return ShapeProgram(run, [weight, bias])


def make_embedding(wrap):
    """A table of words, its gradient as IndexedSlices; a case is the number of words."""
    rng = np.random.default_rng(0)
    table = tf.Variable(normal(rng, 20, DEPTH))

    @wrap
    def step(words):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.tanh(tf.gather(table, words))) * 0.01
        gradient = tape.gradient(loss, table)
        table.scatter_sub(tf.IndexedSlices(0.1 * gradient.values, gradient.indices))
        return loss, gradient

    def run(length):
        return step(tf.constant(np.random.default_rng(length).integers(20, size=length)))

    return ShapeProgram(run, [table])


def make_batches(wrap):
    """Train on batches; a case is the batch's size."""
    rng = np.random.default_rng(0)
    weight = tf.Variable(normal(rng, DEPTH, 3, scale=0.3))

    @wrap
    def step(x, y):
        with tf.GradientTape() as tape:
            logits = x @ weight
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
            loss = tf.reduce_sum(losses) / x.shape[0]
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return loss

    def run(size):
        labels = np.random.default_rng(size).integers(3, size=size)
        return step(tf.constant(draw(size, DEPTH)), tf.constant(labels))

    return ShapeProgram(run, [weight])


def make_time_loop(wrap):
    """A recurrent net over `range(x.shape[1])`; a case is the length."""
    rng = np.random.default_rng(0)
    weight = tf.Variable(normal(rng, DEPTH, DEPTH, scale=0.3))

    @wrap
    def step(x):
        state = tf.zeros([x.shape[0], DEPTH])
        for t in range(x.shape[1]):
            state = tf.tanh(x[:, t] + state @ weight)
        return tf.square(state), x.shape[1]

    def run(length):
        return step(tf.constant(draw(BATCH, length, DEPTH)))

    return ShapeProgram(run, [weight])


# ------------------------------------------------------------- shapes by data


def _scores(case, num=12):
    return tf.constant(np.random.default_rng(case).normal(size=num).astype(np.float32))


def make_where(wrap):
    """`tf.where` and what is gathered by it, its length read by Python."""

    @wrap
    def step(x):
        places = tf.where(x > 0)
        chosen = tf.gather_nd(x, places)
        scaled = chosen * 2.0
        return places, scaled, tf.shape(scaled), len(places), tf.reduce_sum(chosen)

    return ShapeProgram(lambda case: step(_scores(case)))


def make_boolean_mask(wrap):
    """`tf.boolean_mask` under a tape, and a step on its gradient."""
    weight = tf.Variable(np.ones(12, np.float32))

    @wrap
    def step(x):
        with tf.GradientTape() as tape:
            kept = tf.boolean_mask(x * weight, x > 0)
            loss = tf.reduce_sum(kept * kept)
        weight.assign_sub(0.01 * tape.gradient(loss, weight))
        return kept, loss

    return ShapeProgram(lambda case: step(_scores(case)), [weight])


def make_unique(wrap):
    """`tf.unique`, a segment sum over it, and `tf.dynamic_partition`."""

    @wrap
    def step(x):
        whole = tf.cast(tf.round(x * 2.0), tf.int32)
        values, places = tf.unique(whole)
        sums = tf.math.unsorted_segment_sum(x, places, tf.size(values))
        low, high = tf.dynamic_partition(x, tf.cast(x > 0, tf.int32), 2)
        return values, sums, tf.concat([high, low], 0), high.shape[0]

    return ShapeProgram(lambda case: step(_scores(case)))


def make_nms(wrap):
    """Boxes that survive non-maximum suppression; what they cover."""

    @wrap
    def step(corners, scores):
        boxes = tf.concat([corners, corners + 1.0], 1)
        kept = tf.image.non_max_suppression(boxes, scores, 6, iou_threshold=0.3)
        chosen = tf.gather(boxes, kept)
        return chosen, tf.reduce_max(chosen, 0), kept.shape.as_list()

    def run(case):
        corners = np.random.default_rng(case).uniform(0, 3, size=(12, 2)).astype(np.float32)
        return step(tf.constant(corners), _scores(case))

    return ShapeProgram(run)


def make_joined_lengths(wrap):
    """Values of one length in the first calls, by two ways; their shape must not be a constant."""
    masks = [0b00111, 0b01011, 0b01101, 0b01110, 0b00111, 0b01101]

    @wrap
    def step(x, doubles):
        y = tf.cast(tf.where(x > 0), tf.float32)
        if doubles:
            y = y * 2.0
        return y, tf.ones(tf.shape(y)), tf.size(y)

    def run(case):
        mask = masks[case] if case < len(masks) else case
        bits = [1.0 if mask >> place & 1 else -1.0 for place in range(5)]
        return step(tf.constant(bits), case % 2 == 0)

    return ShapeProgram(run)


# ------------------------------------------------------- ragged, sparse, others


def make_ragged(size_by_case):
    """Returns a builder: ragged words are embedded, averaged by row, and scaled row by row."""

    def make(wrap):
        rng = np.random.default_rng(0)
        table = tf.Variable(normal(rng, 20, DEPTH))

        @wrap
        def step(batch):
            words = batch["words"]
            rows = words.with_values(tf.gather(table, words.values))
            means = tf.reduce_sum(rows, 1) / tf.cast(words.row_lengths(), tf.float32)[:, None]
            longer = tf.concat([words, words[:, :1]], 1)
            return means, words * 2, longer, words.nrows()

        def run(case):
            rng = np.random.default_rng(case)
            lengths = size_by_case(rng)
            values = rng.integers(20, size=sum(lengths))
            words = tf.RaggedTensor.from_row_lengths(values, lengths)
            return step({"words": words, "name": "batch"})

        return ShapeProgram(run, [table])

    return make


def make_sparse(wrap):
    """A sparse tensor times a dense one, a sparse result, and a dense one made sparse inside."""
    weight = tf.Variable(draw(6, 3))

    @wrap
    def step(pair):
        sparse, dense = pair
        product = tf.sparse.sparse_dense_matmul(sparse, weight)
        scaled = sparse.with_values(tf.tanh(sparse.values))
        inner = tf.sparse.from_dense(tf.nn.relu(dense))
        return product, scaled, inner, tf.sparse.to_dense(scaled)

    def run(case):
        rng = np.random.default_rng(case)
        dense = rng.normal(size=(4, 6)).astype(np.float32)
        dense[rng.uniform(size=(4, 6)) < 0.6] = 0.0
        return step([tf.sparse.from_dense(dense), tf.constant(draw(4, 6, seed=case))])

    return ShapeProgram(run, [weight])


def make_slices(wrap):
    """IndexedSlices as argument, of one size."""
    table = tf.Variable(draw(10, 2))

    @wrap
    def step(slices):
        table.scatter_sub(tf.IndexedSlices(0.1 * slices.values, slices.indices))
        return tf.reduce_sum(slices.values), tf.IndexedSlices(slices.values * 2.0, slices.indices)

    def run(case):
        indices = np.random.default_rng(case).integers(10, size=3)
        return step(tf.IndexedSlices(tf.constant(draw(3, 2, seed=case)), tf.constant(indices)))

    return ShapeProgram(run, [table])


class Masked(tf.experimental.ExtensionType):
    """Values, and which of them count."""

    values: tf.Tensor
    mask: tf.Tensor


def make_extension_type(wrap):
    """An extension type in a nest, and one made inside."""

    @wrap
    def step(*, given):
        masked = given[0]
        doubled = Masked(masked.values * 2.0, tf.logical_not(masked.mask))
        total = tf.reduce_sum(tf.where(masked.mask, masked.values, 0.0))
        return total, doubled.values, doubled.mask

    def run(case):
        values = _scores(case)
        return step(given=(Masked(values, values > 0), "x"))

    return ShapeProgram(run)


def make_batch_norms(wrap):
    """Four batch norms of one's own in a row, trained; a case is how many images."""
    rng = np.random.default_rng(0)
    kernels = [tf.Variable(normal(rng, 3, 3, 6, 6, scale=0.2)) for _ in range(4)]
    scales, offsets, moving = (
        [tf.Variable(tf.fill([6], value)) for _ in range(4)] for value in (1.0, 0.0, 0.0)
    )
    trained = kernels + scales + offsets

    @wrap
    def step(x):
        with tf.GradientTape() as tape:
            for kernel, scale, offset, mean in zip(kernels, scales, offsets, moving, strict=True):
                x = tf.nn.conv2d(x, kernel, 1, "SAME")
                x, of_batch, _ = tf.compat.v1.nn.fused_batch_norm(x, scale, offset)
                mean.assign(0.9 * mean + 0.1 * of_batch)
                x = tf.nn.relu(x)
            loss = tf.reduce_mean(x * x)
        for variable, gradient in zip(trained, tape.gradient(loss, trained), strict=True):
            variable.assign_sub(0.1 * gradient)
        return loss

    return ShapeProgram(lambda num: step(tf.constant(draw(num, 5, 5, 6))), trained + moving)
