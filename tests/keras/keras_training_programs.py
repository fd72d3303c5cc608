"""Programs of tests/keras: masks and recurrent layers, losses, weights of samples, optimizers."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras_model_programs import LAYERS, dense, labels, numbers, tokens
from keras_training import Setup

OPTIMIZERS = keras.optimizers


def sequence(*layers, num_classes=3):
    """Make a program that classifies padded texts."""

    def program(contestant):
        model = keras.Sequential([
            keras.Input((4,), dtype="int32"), LAYERS.Embedding(9, 4, mask_zero=True),
            *[layer() for layer in layers], LAYERS.Dense(num_classes, "softmax"),
        ])  # fmt: skip
        contestant.compile(model, "adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return Setup(model, tokens(), labels(num_classes))

    return program


def masking(contestant):
    model = keras.Sequential(
        [keras.Input((4, 3)), LAYERS.Masking(), LAYERS.LSTM(4), LAYERS.Dense(1)]
    )
    x = numbers(4, 3)
    x[::2, 2:] = 0.0
    return Setup(contestant.compile(model, "adam"), x, numbers(1))


def masked_loss(contestant):
    """The mask reaches loss and metrics: an output for each token."""
    model = keras.Sequential([
        keras.Input((4,), dtype="int32"), LAYERS.Embedding(9, 4, mask_zero=True),
        LAYERS.GRU(4, return_sequences=True), LAYERS.Dense(9),
    ])  # fmt: skip
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    contestant.compile(model, "adam", loss, metrics=["accuracy"])
    return Setup(model, tokens(), tokens())


def attention(contestant):
    x = keras.Input((4,), dtype="int32")
    h = LAYERS.Embedding(9, 4, mask_zero=True)(x)
    h = LAYERS.LayerNormalization()(h + LAYERS.MultiHeadAttention(2, 3)(h, h))
    model = keras.Model(x, LAYERS.Dense(1)(LAYERS.GlobalAveragePooling1D()(h)))
    return Setup(contestant.compile(model, "adam"), tokens(), numbers(1))


def softmax(contestant):
    model = dense(3, "softmax")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=False)
    return Setup(contestant.compile(model, "adam", loss), numbers(5), labels(3))


def one_hot(contestant):
    model = dense(3, "softmax")
    contestant.compile(model, "adam", "categorical_crossentropy", metrics=["accuracy"])
    return Setup(model, numbers(5), np.eye(3, dtype=np.float32)[labels(3)])


def class_weight(contestant):
    model = dense(3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    options = {"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}}
    return Setup(contestant.compile(model, "adam", loss), numbers(5), labels(3), options)


def sample_weight(contestant):
    model = contestant.compile(dense(), weighted_metrics=["mae"])
    options = {"sample_weight": np.linspace(0, 1, len(numbers())).astype(np.float32)}
    return Setup(model, numbers(5), numbers(1), options)


def with_optimizer(make, **options):
    def program(contestant):
        return Setup(contestant.compile(dense(), make()), numbers(5), numbers(1), **options)

    return program


# Each fourth or second step is of another kind, and Keras' Python looks at the count to tell.
COUNTING = {"num_lost": 5, "reasons": ("Optimizer.apply: its Python reads a result of the step",)}


class Warmup(OPTIMIZERS.schedules.LearningRateSchedule):
    """A schedule of a user's."""

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        return 0.1 * tf.minimum(tf.math.rsqrt(step + 1.0), step * 0.01)


class Signs(OPTIMIZERS.Optimizer):
    """An optimizer of a user's."""

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.momenta = [self.add_variable_from_reference(v, "momentum") for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        momentum = self.momenta[self._get_variable_index(variable)]
        self.assign(momentum, momentum * 0.9 + gradient * 0.1)
        self.assign_sub(variable, learning_rate * keras.ops.sign(momentum))


def loss_scaling(contestant):
    optimizer = OPTIMIZERS.LossScaleOptimizer(
        OPTIMIZERS.Adam(0.01), initial_scale=64.0, dynamic_growth_steps=4
    )
    model = contestant.compile(dense(), optimizer)
    return Setup(model, numbers(5), numbers(1), num_lost=5)


def mixed_precision(contestant):
    policy = keras.DTypePolicy("mixed_float16")
    model = keras.Sequential([
        keras.Input((5,)), LAYERS.Dense(6, "relu", dtype=policy),
        LAYERS.Dense(3, "softmax", dtype="float32"),
    ])  # fmt: skip
    optimizer = OPTIMIZERS.LossScaleOptimizer(OPTIMIZERS.Adam(0.01), initial_scale=64.0)
    contestant.compile(model, optimizer, "sparse_categorical_crossentropy")
    return Setup(model, numbers(5), labels(3))


PROGRAMS = {
    "LSTM with mask_zero": sequence(lambda: LAYERS.LSTM(4)),
    "GRU with mask_zero": sequence(lambda: LAYERS.GRU(4)),
    "Bidirectional": sequence(lambda: LAYERS.Bidirectional(LAYERS.LSTM(3))),
    "Masking": masking,
    "a mask that reaches the loss": masked_loss,
    "attention with a mask": attention,
    "softmax": softmax,
    "one-hot labels": one_hot,
    "class_weight": class_weight,
    "sample_weight": sample_weight,
    "a user's schedule": with_optimizer(lambda: OPTIMIZERS.Adam(Warmup()), schedules=False),
    "a user's optimizer": with_optimizer(lambda: Signs(0.01)),
    "loss scaling": loss_scaling,
    "mixed precision": mixed_precision,
    "weight decay": with_optimizer(lambda: OPTIMIZERS.AdamW(0.01, weight_decay=0.1)),
    "use_ema": with_optimizer(
        lambda: OPTIMIZERS.SGD(0.1, use_ema=True, ema_overwrite_frequency=4), **COUNTING
    ),
    "gradient_accumulation_steps": with_optimizer(
        lambda: OPTIMIZERS.SGD(0.1, gradient_accumulation_steps=2), **COUNTING
    ),
    "clipnorm": with_optimizer(lambda: OPTIMIZERS.Adam(0.01, clipnorm=0.1)),
    "global_clipnorm": with_optimizer(lambda: OPTIMIZERS.SGD(0.01, global_clipnorm=0.1)),
}
