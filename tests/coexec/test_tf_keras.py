"""Models and optimizers of `tf_keras`, the old Keras: as in eager, with the optimizer replayed."""


import numpy as np
import programs
import pytest
import tensorflow as tf
from hazards import LATE, NUM_STEPS, Counter

import terra_tf
from terra_tf.testing import assert_matches_eager

tf_keras = pytest.importorskip("tf_keras", reason="pip install --no-deps tf_keras")

pytestmark = pytest.mark.timeout(180)

OPTIMIZERS = {
    "adam": lambda: tf_keras.optimizers.Adam(1e-2),
    "sgd": lambda: tf_keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "rmsprop": lambda: tf_keras.optimizers.RMSprop(1e-2, centered=True, clipnorm=1.0),
    "adamw": lambda: tf_keras.optimizers.AdamW(1e-2, weight_decay=0.1, use_ema=True),
    "ftrl": lambda: tf_keras.optimizers.Ftrl(0.1),
    "schedule": lambda: tf_keras.optimizers.Adam(
        tf_keras.optimizers.schedules.ExponentialDecay(0.01, 3, 0.5)
    ),
}


def make_model():
    tf_keras.utils.set_random_seed(0)
    model = tf_keras.Sequential([
        tf_keras.layers.Dense(8, activation="relu"),
        tf_keras.layers.BatchNormalization(),
        tf_keras.layers.Dense(4),
    ])  # fmt: skip
    model.build((None, 6))
    return model


def make_training(wrap, optimizer, change=None):
    model, rng, counter = make_model(), np.random.default_rng(0), Counter()
    loss_of = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @wrap
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        weights = model.trainable_variables
        gradients = tape.gradient(loss, weights)
        result = optimizer.apply_gradients(zip(gradients, weights))
        return loss, result, optimizer.iterations

    def run():
        counter.advance()
        if change is not None and counter.is_late:
            change(model, optimizer, counter.value)
        x = tf.constant(programs.normal(rng, 5, 6, scale=1.0))
        y = tf.constant(rng.integers(0, 4, 5), tf.int32)
        loss, result, iterations = step(x, y)
        return loss, tf.identity(result), type(result).__name__, iterations, model.get_weights()

    return run, step


def train(make_optimizer, change=None, num_steps=NUM_STEPS):
    """Compare with eager; return the counters."""
    steps = []

    def make(wrap):
        run, step = make_training(wrap, make_optimizer(), change)
        steps.append(step)
        return run

    assert_matches_eager(make, num_steps)
    return [step for step in steps if hasattr(step, "stats")][-1].stats()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_replayed(name):
    stats = train(OPTIMIZERS[name])
    assert stats.co_executed_steps >= NUM_STEPS - 4
    assert stats.calls_replayed["Optimizer.apply_gradients"] >= NUM_STEPS - 7


def set_rate(model, optimizer, step):
    optimizer.learning_rate = 0.1 / step


def set_momentum(model, optimizer, step):
    optimizer.momentum = 0.5 if step % 2 else 0.7


def freeze(model, optimizer, step):
    model.layers[0].trainable = step % 3 == 0


@pytest.mark.parametrize("change", [set_rate, set_momentum, freeze], ids=lambda f: f.__name__)
def test_changes_of_the_optimizer_and_the_model_are_seen(change):
    train(OPTIMIZERS["sgd"], change, num_steps=LATE + 8)


def test_tensors_without_a_mask_are_like_others():
    """`tf_keras` says of each output that it has no mask; functions replay all the same."""
    stats = train(OPTIMIZERS["sgd"])
    assert stats.calls_replayed["tf.matmul"] >= 2 * (stats.co_executed_steps - 3)
    assert not any("attributes" in call for call in stats.calls_not_replayed)


def test_masks_are_kept():
    def make(wrap):
        tf_keras.utils.set_random_seed(0)
        embed = tf_keras.layers.Embedding(5, 3, mask_zero=True)
        relu, recur = tf_keras.layers.Activation("relu"), tf_keras.layers.SimpleRNN(2)
        rng = np.random.default_rng(0)

        @wrap
        def step(ids):
            embedded = embed(ids)
            active = relu(embedded)
            plain = relu(tf.cast(ids, tf.float32))
            return active._keras_mask, tf.nn.relu(embedded), recur(active), plain._keras_mask

        return lambda: step(tf.constant(rng.integers(0, 5, (2, 4)), tf.int32))

    assert_matches_eager(make, NUM_STEPS)


def test_the_switch_takes_the_hook_off():
    optimizer = tf_keras.optimizers.Optimizer
    terra_tf.function(lambda x: x + 1.0)(tf.constant(1.0))
    assert "_internal_apply_gradients" in vars(optimizer)
    terra_tf.config.replay_calls = False
    try:
        stats = train(OPTIMIZERS["adam"])
    finally:
        terra_tf.config.replay_calls = True
    assert not stats.calls_replayed.get("Optimizer.apply_gradients")
