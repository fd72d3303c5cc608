"""Keras' layers, losses and metrics, replayed: every way to change one, and what cannot be."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from hazards import Counter

import terra_tf
from terra_tf.runtime import entry
from terra_tf.testing import assert_matches_eager

pytestmark = pytest.mark.timeout(120)


def small_model():
    model = keras.Sequential(
        [
            keras.layers.Dense(6, activation="tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.25, seed=3),
            keras.layers.Dense(2),
        ]
    )
    model.build([None, 4])
    for number, weight in enumerate(model.trainable_weights):
        weight.assign(tf.fill(weight.shape, 0.1 * (number + 1)))
    return model


def train(
    make_model=small_model,
    change=lambda model, n: None,
    num_steps=20,
    training=True,
):
    """Compare training with eager, the model changed before each step; return the counters."""
    functions = []

    def make(wrap):
        rng = np.random.default_rng(0)
        model, count = make_model(), Counter()

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                y = model(x, training=training)
                loss = tf.reduce_mean(y * y) + sum(model.losses)
            variables = model.trainable_variables
            gradients = tape.gradient(loss, variables)
            for variable, gradient in zip(variables, gradients):
                variable.assign(variable - 0.1 * gradient)
            return loss, len(gradients), len(model.losses)

        functions.append(step)

        def run():
            change(model, count.advance())
            result = step(tf.constant(rng.normal(size=[3, 4]).astype("f")))
            return result, [weight.value for weight in model.weights]

        return run

    assert_matches_eager(make, num_steps)
    return functions[-1].stats()


def test_whole_model_is_one_call():
    stats = train()
    assert stats.calls_replayed["Layer.__call__"] >= stats.co_executed_steps - 2, stats


def test_gradients_and_running_means_of_inference_too():
    assert train(training=False).calls_replayed["Layer.__call__"] > 0


def set_kernel(model, n):
    model.layers[0].kernel.assign(model.layers[0].kernel * (1.0 + 0.1 * n))


def replace_call(model, n):
    layer = model.layers[0]
    original = type(layer).call
    layer.call = lambda x, training=None: original(layer, x) * float(n)


def replace_call_of_the_class(model, n):
    del model
    original = keras.layers.Dense.call
    keras.layers.Dense.call = lambda self, x, training=None: original(self, x) * 0.5


CHANGES = {
    "activation": lambda m, n: setattr(m.layers[0], "activation", tf.nn.relu if n % 2 else tf.sin),
    "activation of Keras": lambda m, n: setattr(
        m.layers[0], "activation", keras.activations.relu if n % 2 else keras.activations.gelu
    ),
    "frozen layer": lambda m, n: setattr(m.layers[0], "trainable", n % 2 == 0),
    "frozen batch norm": lambda m, n: setattr(m.layers[1], "trainable", n % 2 == 0),
    "momentum": lambda m, n: setattr(m.layers[1], "momentum", 0.5 + 0.01 * n),
    "epsilon through __dict__": lambda m, n: m.layers[1].__dict__.update(epsilon=0.1 * n),
    "dropout's rate": lambda m, n: setattr(m.layers[2], "rate", 0.05 * (n % 10)),
    "bias taken away": lambda m, n: setattr(m.layers[3], "use_bias", False)
    or m.layers[3].__dict__.update(bias=None),
    "kernel's value": set_kernel,
    "regularizer": lambda m, n: setattr(
        m.layers[0].kernel, "regularizer", keras.regularizers.L2(0.1 * n)
    ),
    "activity regularizer": lambda m, n: setattr(
        m.layers[3], "activity_regularizer", keras.regularizers.L2(0.1 * n)
    ),
    "layer's call": replace_call,
    "layer taken away": lambda m, n: len(m.layers) > 3 and m.pop(),
    "variable's trainable flag": lambda m, n: setattr(m.layers[0].bias, "trainable", n % 2 == 0),
}


@pytest.mark.parametrize("what", CHANGES)
def test_change_of_a_model_is_seen(what):
    def change(model, n):
        if n in (9, 10, 13):
            CHANGES[what](model, n)

    stats = train(change=change)
    assert stats.calls_replayed.get("Layer.__call__", 0) > 0


def test_what_is_learned_of_replayed_parts_is_on_the_tape():
    """The model is learned again when it has changed, while its layers are replayed."""

    def make(wrap):
        rng = np.random.default_rng(0)
        model, count = small_model(), Counter()

        @wrap
        def step(x):
            variables = model.trainable_variables
            for _ in range(count.value):  # a new history: the gradient's Python asks the tape
                with tf.GradientTape():
                    pass
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(model(x, training=True) ** 2)
            gradients = tape.gradient(loss, variables)
            for variable, gradient in zip(variables, gradients):
                variable.assign(variable - 0.1 * gradient)
            return gradients

        def run():
            n = count.advance()
            model.note = n // 4  # nobody reads it
            return step(tf.constant(rng.normal(size=[3, 4]).astype("f")))

        functions.append(step)
        return run

    functions = []
    assert_matches_eager(make, 20)
    replayed = functions[-1].stats().calls_replayed
    assert replayed["Layer.__call__"] > 15 and "GradientTape.gradient" not in replayed


def test_change_of_a_layers_class_is_seen():
    original = keras.layers.Dense.call

    def change(model, n):
        if n == 0:
            keras.layers.Dense.call = original
        if n == 9:
            replace_call_of_the_class(model, n)

    try:
        train(change=change)
    finally:
        keras.layers.Dense.call = original


def test_losses_that_layers_add():
    def make_model():
        model = small_model()
        model.layers[0].kernel_regularizer = keras.regularizers.L2(0.1)
        model.layers[3].activity_regularizer = keras.regularizers.L1(0.1)
        return model

    train(make_model)


class UserModel(keras.Model):
    """A loop over layers, a layer that is left out at times, state in Python."""

    def __init__(self):
        super().__init__()
        self.blocks = [keras.layers.Dense(4, activation="tanh") for _ in range(3)]
        self.norm = keras.layers.BatchNormalization()
        self.dropout = keras.layers.Dropout(0.5, seed=1)
        self.head = keras.layers.Dense(2)
        self.num_calls = 0

    def build(self, shape):
        for layer in (*self.blocks, self.norm, self.dropout, self.head):
            layer.build(shape)
        self.built = True

    def call(self, x, training=None):
        self.num_calls += 1
        for number, block in enumerate(self.blocks):
            if number != self.num_calls % 3:
                x = x + block(x)
        x = self.norm(x) if self.num_calls % 4 else self.norm(x, training=not training)
        return self.head(self.dropout(x))


def user_model():
    model = UserModel()
    model(tf.zeros([1, 4]))
    for number, weight in enumerate(model.trainable_weights):
        weight.assign(tf.fill(weight.shape, 0.1 * (number + 1)))
    return model


def test_layers_inside_a_users_model_inherit_training():
    stats = train(user_model, num_steps=40)
    assert stats.calls_replayed["Layer.__call__"] > 40


def test_masks_and_recurrent_layers():
    def make(wrap):
        rng = np.random.default_rng(0)
        model = keras.Sequential(
            [
                keras.layers.Embedding(10, 4, mask_zero=True),
                keras.layers.GRU(3),
                keras.layers.Dense(1),
            ]
        )
        model.build([None, 5])
        for number, weight in enumerate(model.weights):
            weight.assign(tf.fill(weight.shape, 0.02 * (number + 1)))
        step = wrap(lambda x: model(x))
        return lambda: step(tf.constant(rng.integers(0, 10, [2, 5])))

    assert_matches_eager(make, 12)


def test_softmax_carries_its_logits():
    """Keras' losses look at an attribute that its softmax sets."""

    def make(wrap):
        rng = np.random.default_rng(0)
        layer = keras.layers.Dense(3, activation="softmax")
        loss = keras.losses.CategoricalCrossentropy()
        layer.build([None, 4])
        layer.kernel.assign(tf.fill([4, 3], 0.3))

        @wrap
        def step(x, y):
            with tf.GradientTape() as tape:
                value = loss(y, layer(x))
            return value, tape.gradient(value, layer.trainable_variables)

        return lambda: step(
            tf.constant(rng.normal(size=[2, 4]).astype("f")), tf.one_hot([0, 2], 3)
        )

    assert_matches_eager(make, 12)


def test_losses_and_metrics():
    functions = []

    def make(wrap):
        rng, count = np.random.default_rng(0), Counter()
        mean, accuracy = keras.metrics.Mean(), keras.metrics.SparseCategoricalAccuracy()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

        @wrap
        def step(x, y):
            value = loss(y, x)
            mean.update_state(value)
            accuracy.update_state(y, x)
            return value, mean.result(), accuracy.result()

        functions.append(step)

        def run():
            n = count.advance()
            if n == 8:
                loss.reduction = "sum"
            if n == 11:
                mean.reset_state()
            x = tf.constant(rng.normal(size=[4, 3]).astype("f"))
            return step(x, tf.constant(rng.integers(0, 3, [4]))), float(mean.result())

        return run

    assert_matches_eager(make, 20)
    replayed = functions[-1].stats().calls_replayed
    assert replayed["Loss.__call__"] > 0
    assert any("update_state" in name for name in replayed), replayed


def test_mixed_precision_scopes():
    def make_model():
        model = keras.Sequential(
            [keras.layers.Dense(4, dtype="mixed_float16"), keras.layers.Dense(2)]
        )
        model.build([None, 4])
        for weight in model.weights:
            weight.assign(tf.fill(weight.shape, 0.1))
        return model

    train(make_model)


def test_training_flag_that_alternates():
    def make(wrap):
        rng, count, model = np.random.default_rng(0), Counter(), small_model()
        step = wrap(lambda x, training: model(x, training=training))

        def run():
            x = tf.constant(rng.normal(size=[3, 4]).astype("f"))
            result = step(x, count.advance() % 3 == 0)
            return result, [weight.value for weight in model.weights]

        return run

    assert_matches_eager(make, 24)


def test_layers_that_are_kept_alive_are_bounded(monkeypatch):
    monkeypatch.setattr(entry, "_MAX_GUARDED_OBJECTS", 4)
    layers = []
    # Too deep to count for an instance, which would have entries of its own.
    step = terra_tf.function(lambda deep, x: tf.reduce_sum(deep[0][0](x)))
    for _ in range(16):
        layer = keras.layers.Dense(3)
        layer.build([None, 4])
        layers.append(weakref.ref(layer))
        for _ in range(2):
            step([[layer]], tf.ones([2, 4])).numpy()
    del layer
    gc.collect()
    assert sum(layer() is not None for layer in layers) <= 5
    assert any("too many" in call for call in step.stats().calls_not_replayed)


class Outer(keras.layers.Layer):
    """A layer of the user's: what is inside inherits `training` from it."""

    def __init__(self):
        super().__init__()
        self.norm = keras.layers.BatchNormalization()

    def build(self, shape):
        self.norm.build(shape)
        self.built = True

    def call(self, x, training=None):
        return self.norm(x)


def test_layers_inherit_training_after_keras_session_was_cleared():
    terra_tf.function(lambda: tf.zeros([]))()

    def make(wrap):
        keras.backend.clear_session()
        rng, count, layer = np.random.default_rng(0), Counter(), Outer()
        layer.build([None, 4])
        step = wrap(lambda x, training: layer(x, training=training))

        def run():
            x = tf.constant(rng.normal(size=[3, 4]).astype("f"))
            result = step(x, count.advance() < 10)
            return result, [weight.value for weight in layer.weights]

        return run

    functions = assert_matches_eager(make, 20)
    assert functions[-1].stats().calls_replayed["Layer.__call__"] > 0


def test_change_of_keras_settings_is_seen():
    def make(wrap):
        rng, count = np.random.default_rng(0), Counter()
        loss = keras.losses.MeanAbsolutePercentageError()
        step = wrap(lambda x: loss(x, x * 0.5))

        def run():
            n = count.advance()
            keras.config.set_epsilon(0.5 if n in (9, 10, 13) else 1e-7)
            return step(tf.constant(rng.normal(size=[3, 4]).astype("f")))

        return run

    assert_matches_eager(make, 20)
