"""Programs of tests/keras: how models, layers and steps are written."""

from __future__ import annotations

import functools

import keras
import numpy as np
import tensorflow as tf
from keras_training import BATCH_SIZE, NUM_BATCHES, Setup

LAYERS = keras.layers
NUM = NUM_BATCHES * BATCH_SIZE


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal((NUM, *shape)).astype(np.float32)


def labels(num_classes, *shape):
    return np.random.default_rng(1).integers(0, num_classes, (NUM, *shape))


def tokens(length=4):
    made = np.random.default_rng(2).integers(1, 9, (NUM, length))
    lengths = np.random.default_rng(3).integers(1, length + 1, (NUM, 1))
    return np.where(np.arange(length) < lengths, made, 0).astype(np.int32)


def dense(units=1, activation=None, **options):
    return keras.Sequential([
        keras.Input((5,)), LAYERS.Dense(6, "relu", **options), LAYERS.Dense(units, activation)
    ])  # fmt: skip


class Stepping(keras.Model):
    """Its own training step, with Python in it."""

    def __init__(self, effects):
        super().__init__()
        self.hidden, self.last, self.effects = LAYERS.Dense(6, "tanh"), LAYERS.Dense(1), effects

    def call(self, x, training=False):
        self.effects.append(("call", bool(training)))
        return self.last(self.hidden(x))

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        self.effects.append(float(loss))
        return {"loss": loss, "twice": loss * 2.0}


def decorated_step_of_a_class(contestant):
    effects = []

    class Decorated(Stepping):
        train_step = contestant.wrap(Stepping.train_step)

    model = Decorated(effects)
    model.compile("sgd", "mse", run_eagerly=True)
    if not contestant.is_terra:
        return Setup(model, numbers(5), numbers(1), effects=effects)
    stats = lambda: model.train_step.stats()  # noqa: E731
    return Setup(model, numbers(5), numbers(1), effects=effects, stats=stats)


def step_of_an_instance(contestant):
    model = dense()
    step = model.train_step = contestant.wrap(model.train_step)
    model.compile("sgd", "mse", run_eagerly=True)
    stats = step.stats if contestant.is_terra else None
    return Setup(model, numbers(5), numbers(1), stats=stats)


def wrapped_train_function(contestant):
    model, effects = dense(), []
    contestant.compile(model)
    model.make_train_function()
    inner = model.train_function

    def counting(iterator):
        effects.append("begin")
        logs = inner(iterator)
        effects.append(list(logs))
        return logs

    model.train_function = counting
    return Setup(model, numbers(5), numbers(1), effects=effects)


def own_step(contestant):
    effects = []
    return Setup(contestant.compile(Stepping(effects)), numbers(5), numbers(1), effects=effects)


def super_step(contestant):
    effects = []

    class Logging(keras.Model):
        def train_step(self, data):
            logs = super().train_step(data)
            effects.append(sorted(logs))
            return {**logs, "rate": self.optimizer.learning_rate * 1.0}

        def test_step(self, data):
            effects.append("test")
            return super().test_step(data)

    x = keras.Input((5,))
    model = Logging(x, LAYERS.Dense(1)(LAYERS.Dense(4, "relu")(x)))
    return Setup(contestant.compile(model), numbers(5), numbers(1), effects=effects)


def timed(step):
    """Decorate as users do: with Python before and after."""

    @functools.wraps(step)
    def run(self, data):
        self.effects.append("before")
        logs = step(self, data)
        self.effects.append("after")
        return logs

    return run


def step_with_a_users_decorator(contestant):
    effects = []

    class Timed(Stepping):
        train_step = timed(Stepping.train_step)

    return Setup(contestant.compile(Timed(effects)), numbers(5), numbers(1), effects=effects)


class Block(LAYERS.Layer):
    """A layer of a user's, with weights, layers, TensorFlow's functions and Python."""

    def __init__(self, effects):
        super().__init__()
        self.effects, self.inner = effects, LAYERS.Dense(5, "relu")

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 5), name="kernel")
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False, name="seen")
        self.inner.build(shape)

    def call(self, x):
        self.effects.append(tuple(x.shape))
        self.seen.assign_add(1.0)
        return self.inner(x) + tf.matmul(x, self.kernel) * 0.5


class Residual(keras.Model):
    def __init__(self, effects):
        super().__init__()
        self.blocks = [Block(effects) for _ in range(2)]
        self.head = LAYERS.Dense(1)

    def call(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def subclassed_layers(contestant):
    effects = []
    return Setup(contestant.compile(Residual(effects)), numbers(5), numbers(1), effects=effects)


class Penalty(LAYERS.Layer):
    def call(self, x):
        self.add_loss(0.01 * tf.reduce_sum(x**2))
        return x


def added_losses(contestant):
    model = keras.Sequential([
        keras.Input((5,)), LAYERS.Dense(6, "relu", kernel_regularizer="l2"), Penalty(),
        LAYERS.Dense(1, activity_regularizer=keras.regularizers.L1(0.01)),
    ])  # fmt: skip
    reasons = ("Layer.__call__: it changes an object",)  # the activity's loss goes into a list
    contestant.compile(model, metrics=["mae"])
    return Setup(model, numbers(5), numbers(1), reasons=reasons)


def tensors_of_layers(contestant):
    """Layers that hold tensors: what is subtracted and divided by, and a regularizer's factor."""
    layer = LAYERS.Normalization()
    layer.adapt(numbers(5))
    model = keras.Sequential([
        keras.Input((5,)), layer, LAYERS.Dense(6, "relu", kernel_regularizer="l1"), LAYERS.Dense(1)
    ])  # fmt: skip
    return Setup(contestant.compile(model, "adam"), numbers(5), numbers(1))


def own_loop_over_losses(contestant):
    class Summing(keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(keras.losses.mean_squared_error(y, self(x, training=True)))
                loss += tf.add_n(self.losses)
            gradients = tape.gradient(loss, self.trainable_weights)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_weights))
            return {"loss": loss}

    x = keras.Input((5,))
    h = LAYERS.Dense(6, "relu", kernel_regularizer=keras.regularizers.L1L2(0.01, 0.02))(x)
    model = Summing(x, LAYERS.Dense(1, bias_regularizer="l1")(Penalty()(h)))
    return Setup(contestant.compile(model, loss=None), numbers(5), numbers(1))


def two_inputs_and_outputs(contestant):
    a, b = keras.Input((5,), name="a"), keras.Input((3,), name="b")
    h = LAYERS.concatenate([LAYERS.Dense(4, "relu")(a), LAYERS.Dense(4)(b)])
    outputs = {"p": LAYERS.Dense(1, name="p")(h), "q": LAYERS.Dense(2, name="q")(h)}
    model = keras.Model({"a": a, "b": b}, outputs)
    weights, metrics = {"p": 1.0, "q": 0.5}, {"p": "mae"}
    contestant.compile(
        model, "rmsprop", {"p": "mse", "q": "mae"}, loss_weights=weights, metrics=metrics
    )
    x = numbers(5)
    return Setup(model, {"a": x, "b": x[:, :3]}, {"p": numbers(1), "q": x[:, 3:]})


def list_of_inputs_and_outputs(contestant):
    a, b = keras.Input((5,)), keras.Input((3,))
    h = LAYERS.Add()([LAYERS.Dense(4, "relu")(a), LAYERS.Dense(4)(b)])
    model = keras.Model([a, b], [LAYERS.Dense(1)(h), LAYERS.Dense(2, "softmax")(h)])
    contestant.compile(model, "adam", ["mse", "sparse_categorical_crossentropy"])
    return Setup(model, [numbers(5), numbers(3, seed=4)], [numbers(1), labels(2)])


class Peak(keras.metrics.Metric):
    """A metric of a user's, with state and Python."""

    def __init__(self, effects):
        super().__init__(name="peak")
        self.peak = self.add_weight(shape=(), initializer="zeros", name="peak")
        self.effects = effects

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.effects.append("update")
        self.peak.assign(tf.maximum(self.peak, tf.reduce_max(tf.abs(y_pred))))

    def result(self):
        return self.peak * 2.0


def stateful_metrics(contestant):
    effects, metrics = [], keras.metrics
    model = dense(1, "sigmoid")
    made = [metrics.AUC(), metrics.Precision(), "accuracy", Peak(effects)]
    contestant.compile(model, "adam", "binary_crossentropy", metrics=made)
    return Setup(model, numbers(5), labels(2, 1), effects=effects)


def normalized(contestant):
    model = keras.Sequential([
        keras.Input((6, 6, 1)), LAYERS.Conv2D(3, 3), LAYERS.BatchNormalization(), LAYERS.ReLU(),
        LAYERS.MaxPooling2D(), LAYERS.Flatten(), LAYERS.Dropout(0.3), LAYERS.Dense(3, "softmax"),
    ])  # fmt: skip
    loss = "sparse_categorical_crossentropy"
    contestant.compile(model, "adam", loss, metrics=["accuracy"])
    return Setup(model, numbers(6, 6, 1), labels(3))


class Noisy(LAYERS.Layer):
    """Draws random numbers as Keras' guide says."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(7)

    def call(self, x, training=False):
        if training:
            x = x + keras.random.normal(keras.ops.shape(x), stddev=0.1, seed=self.seeds)
        return keras.random.dropout(x, 0.2, seed=self.seeds) if training else x


def seed_generators(contestant):
    model = keras.Sequential([
        keras.Input((5,)), Noisy(), LAYERS.GaussianNoise(0.1, seed=3), LAYERS.Dense(1)
    ])  # fmt: skip
    return Setup(contestant.compile(model), numbers(5), numbers(1))


PROGRAMS = {
    "decorated train_step of a class": decorated_step_of_a_class,
    "train_step of an instance": step_of_an_instance,
    "wrapped train_function": wrapped_train_function,
    "own train_step": own_step,
    "super().train_step": super_step,
    "train_step with a user's decorator": step_with_a_users_decorator,
    "subclassed model and layers": subclassed_layers,
    "regularizers and add_loss": added_losses,
    "layers that hold tensors": tensors_of_layers,
    "own loop over model.losses": own_loop_over_losses,
    "dictionaries of inputs and outputs": two_inputs_and_outputs,
    "lists of inputs and outputs": list_of_inputs_and_outputs,
    "stateful metrics": stateful_metrics,
    "batch normalization and dropout": normalized,
    "seed generators": seed_generators,
}

