"""Small training programs that the tests of co-execution run, and what they share.

Each `make_*(wrap)` builds a `terra_tf.testing.Program`: fixed NumPy seeds, new input tensors every
step, so that eager and Terra see the same data.
"""

import keras
import numpy as np
import tensorflow as tf

from terra_tf.testing import Program

BATCH = 8
LEARNING_RATE = 0.05


def warm_up(function, call, num_steps=6):
    """Call until `function` co-executes, at least `num_steps` times; return its statistics then."""
    for _ in range(num_steps):
        call()
    assert function.stats().phase == "co-execution", f"{function.stats()}\n{function.explain()}"
    return function.stats()


def count_calls(monkeypatch, owner, name):
    """Return a list that grows by one with each call of `owner.name` while the test runs."""
    calls, original = [], getattr(owner, name)

    def count(*args, **kwargs):
        calls.append(None)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, count)
    return calls


def normal(rng, *shape, scale=0.1):
    """Draw float32[*shape] from a normal distribution of width `scale`."""
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def make_trainer(wrap, model, variables, optimizer, inputs, num_classes=4):
    """Build a classifier's training program.

    Args:
      wrap: decorates the training step.
      model: callable(float32[batch, ...]) -> logits float32[batch, num_classes].
      variables: a callable that returns the trainable variables and the others.
      optimizer: "sgd" (raw assign_sub) or "adam" (Keras).
      inputs: callable(rng) -> float32[batch, ...].
      num_classes: of the random labels.
    """
    rng = np.random.default_rng(1)
    adam = keras.optimizers.Adam(1e-3) if optimizer == "adam" else None

    @wrap
    def train(x, y):
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x))
            loss = tf.reduce_mean(losses)
        trainable, _ = variables()
        gradients = tape.gradient(loss, trainable)
        if adam is None:
            for variable, gradient in zip(trainable, gradients, strict=True):
                variable.assign_sub(LEARNING_RATE * gradient)
        else:
            adam.apply_gradients(zip(gradients, trainable, strict=True))
        return loss

    def step():
        labels = rng.integers(0, num_classes, BATCH).astype(np.int32)
        return train(tf.constant(inputs(rng)), tf.constant(labels))

    class AllVariables:
        """Read at the end, when Keras has built what it builds in the first step."""

        def __iter__(self):
            trainable, others = variables()
            return iter([*trainable, *others, *(adam.variables if adam else ())])

    return Program(step, AllVariables())


def batch_norm(x, scale, offset, moving):
    """Normalize float32[batch, height, width, channels] and move the moving mean and variance."""
    y, mean, variance = tf.compat.v1.nn.fused_batch_norm(x, scale, offset, is_training=True)
    for variable, value in zip(moving, (mean, variance), strict=True):
        variable.assign(0.9 * variable + 0.1 * value)
    return y


def make_batch_norm_variables(channels):
    trainable = [tf.Variable(tf.ones([channels])), tf.Variable(tf.zeros([channels]))]
    moving = [
        tf.Variable(tf.zeros([channels]), trainable=False),
        tf.Variable(tf.ones([channels]), trainable=False),
    ]
    return trainable, moving


def make_raw_mlp(wrap, optimizer="sgd"):
    """Two dense layers with batch normalization and dropout, raw TensorFlow."""
    rng = np.random.default_rng(0)
    weights = [tf.Variable(normal(rng, 16, 32)), tf.Variable(normal(rng, 32, 4))]
    biases = [tf.Variable(tf.zeros([32])), tf.Variable(tf.zeros([4]))]
    norm, moving = make_batch_norm_variables(32)

    def model(x):
        h = tf.nn.relu(x @ weights[0] + biases[0])
        h = tf.reshape(batch_norm(tf.reshape(h, [-1, 1, 1, 32]), *norm, moving), [-1, 32])
        return tf.nn.dropout(h, 0.2) @ weights[1] + biases[1]

    def variables():
        return [*weights, *biases, *norm], moving

    return make_trainer(
        wrap, model, variables, optimizer, lambda rng: normal(rng, BATCH, 16, scale=1.0)
    )


def make_raw_cnn(wrap, optimizer="sgd"):
    """Two convolutions with batch normalization, pooling and dropout, raw TensorFlow."""
    rng = np.random.default_rng(0)
    kernels = [tf.Variable(normal(rng, 3, 3, 3, 8)), tf.Variable(normal(rng, 3, 3, 8, 8))]
    norm, moving = make_batch_norm_variables(8)
    head = tf.Variable(normal(rng, 8, 4))

    def model(x):
        h = tf.nn.relu(batch_norm(tf.nn.conv2d(x, kernels[0], 1, "SAME"), *norm, moving))
        h = tf.nn.max_pool2d(tf.nn.relu(tf.nn.conv2d(h, kernels[1], 1, "SAME")), 2, 2, "VALID")
        return tf.nn.dropout(tf.reduce_mean(h, axis=[1, 2]), 0.1) @ head

    def variables():
        return [*kernels, *norm, head], moving

    return make_trainer(
        wrap, model, variables, optimizer, lambda rng: normal(rng, BATCH, 8, 8, 3, scale=1.0)
    )


def make_raw_transformer(wrap, optimizer="sgd"):
    """One pre-norm attention block with a batch-normalized feed-forward part, raw TensorFlow."""
    rng = np.random.default_rng(0)
    width, length = 16, 6
    qkv = tf.Variable(normal(rng, width, 3 * width))
    out = tf.Variable(normal(rng, width, width))
    up, down = tf.Variable(normal(rng, width, 32)), tf.Variable(normal(rng, 32, width))
    norm, moving = make_batch_norm_variables(32)
    head = tf.Variable(normal(rng, width, 4))

    def attend(x):
        query, key, value = tf.split(tf.einsum("blw,wv->blv", x, qkv), 3, axis=-1)
        weights = tf.nn.softmax(tf.matmul(query, key, transpose_b=True) * width**-0.5)
        return tf.einsum("blw,wv->blv", tf.nn.dropout(weights, 0.1) @ value, out)

    def model(x):
        x = x + attend(x)
        h = tf.reshape(tf.einsum("blw,wv->blv", x, up), [-1, 1, length, 32])
        h = tf.reshape(tf.nn.gelu(batch_norm(h, *norm, moving)), [-1, length, 32])
        x = x + tf.einsum("blw,wv->blv", tf.nn.dropout(h, 0.1), down)
        return tf.reduce_mean(x, axis=1) @ head

    def variables():
        return [qkv, out, up, down, *norm, head], moving

    return make_trainer(
        wrap, model, variables, optimizer, lambda rng: normal(rng, BATCH, length, width, scale=1.0)
    )


def make_keras_trainer(wrap, model, optimizer, inputs):
    """Train a Keras model, its layers in training mode."""

    def variables():
        return model.trainable_variables, model.non_trainable_variables

    return make_trainer(wrap, lambda x: model(x, training=True), variables, optimizer, inputs)


def make_keras_mlp(wrap, optimizer="adam"):
    """Dense, batch normalization, dropout, dense, of Keras layers."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input([16]),
            layers.Dense(32, "relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Dense(4),
        ]
    )
    return make_keras_trainer(wrap, model, optimizer, lambda rng: normal(rng, BATCH, 16, scale=1.0))


def make_keras_cnn(wrap, optimizer="adam"):
    """Two convolutions, batch normalization and dropout, of Keras layers."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input([8, 8, 3]),
            layers.Conv2D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Conv2D(8, 3, activation="relu"),
            layers.Dropout(0.1),
            layers.Flatten(),
            layers.Dense(4),
        ]
    )
    return make_keras_trainer(
        wrap, model, optimizer, lambda rng: normal(rng, BATCH, 8, 8, 3, scale=1.0)
    )


def make_keras_transformer(wrap, optimizer="adam"):
    """One attention block of Keras layers."""
    layers = keras.layers
    inputs = keras.Input([6, 16])
    h = layers.LayerNormalization()(inputs)
    h = layers.Add()([inputs, layers.MultiHeadAttention(2, 8, dropout=0.1)(h, h)])
    h = layers.Add()(
        [h, layers.Dense(16)(layers.BatchNormalization()(layers.Dense(32, "gelu")(h)))]
    )
    outputs = layers.Dense(4)(layers.GlobalAveragePooling1D()(layers.Dropout(0.1)(h)))
    model = keras.Model(inputs, outputs)
    return make_keras_trainer(
        wrap, model, optimizer, lambda rng: normal(rng, BATCH, 6, 16, scale=1.0)
    )
