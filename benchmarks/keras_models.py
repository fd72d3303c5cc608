"""Models of benchmarks.keras_fit, as Keras' users write them, and their data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import terra_tf as terra

CONTESTANTS = ("stock", "eager", "terra")
BATCH_SIZE = 32
_NUM_WORDS, _NUM_TOKENS, _NUM_CLASSES = 100, 20, 10
_IMAGE, _LATENT_DIM = (16, 16, 1), 8


def _dense(activation: str | None = None) -> Any:
    return keras.Sequential([
        keras.Input((20,)), layers.Dense(64, activation="relu"),
        layers.Dense(64, activation="relu"), layers.Dense(_NUM_CLASSES, activation=activation),
    ])  # fmt: skip


def _cnn() -> Any:
    return keras.Sequential([
        keras.Input(_IMAGE), layers.Conv2D(8, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(16, 3, activation="relu"), layers.Flatten(), layers.Dense(_NUM_CLASSES),
    ])  # fmt: skip


def _cnn_with_batch_norm() -> Any:
    blocks = []
    for width in (16, 32):
        blocks += [
            layers.Conv2D(width, 3, padding="same", use_bias=False), layers.BatchNormalization(),
            layers.ReLU(), layers.MaxPooling2D(), layers.Dropout(0.2),
        ]  # fmt: skip
    last = [layers.Flatten(), layers.Dropout(0.5), layers.Dense(_NUM_CLASSES)]
    return keras.Sequential([keras.Input(_IMAGE), *blocks, *last])


def _lstm() -> Any:
    """Return a classifier of texts that are padded."""
    return keras.Sequential([
        keras.Input((_NUM_TOKENS,), dtype="int32"),
        layers.Embedding(_NUM_WORDS, 16, mask_zero=True), layers.LSTM(16),
        layers.Dense(_NUM_CLASSES),
    ])  # fmt: skip


class TransformerBlock(layers.Layer):
    """Attention and a small network, each with a shortcut around it."""

    def __init__(self, embed_dim: int, num_heads: int, feed_forward_dim: int) -> None:
        super().__init__()
        self.attention = layers.MultiHeadAttention(num_heads, embed_dim)
        self.feed_forward = keras.Sequential(
            [layers.Dense(feed_forward_dim, activation="relu"), layers.Dense(embed_dim)]
        )
        self.norm1, self.norm2 = layers.LayerNormalization(), layers.LayerNormalization()
        self.dropout1, self.dropout2 = layers.Dropout(0.1), layers.Dropout(0.1)

    def call(self, inputs: Any, training: bool = False) -> Any:
        attended = self.dropout1(self.attention(inputs, inputs), training=training)
        first = self.norm1(inputs + attended)
        return self.norm2(first + self.dropout2(self.feed_forward(first), training=training))


class TokenAndPositionEmbedding(layers.Layer):
    """What a token is, and where."""

    def __init__(self, length: int, num_words: int, embed_dim: int) -> None:
        super().__init__()
        self.tokens = layers.Embedding(num_words, embed_dim)
        self.positions = layers.Embedding(length, embed_dim)

    def call(self, x: Any) -> Any:
        return self.tokens(x) + self.positions(keras.ops.arange(0, x.shape[-1], 1))


def _transformer() -> Any:
    inputs = keras.Input((_NUM_TOKENS,), dtype="int32")
    x = TokenAndPositionEmbedding(_NUM_TOKENS, _NUM_WORDS, 32)(inputs)
    x = TransformerBlock(32, 2, 32)(x)
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling1D()(x))
    x = layers.Dropout(0.1)(layers.Dense(20, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(_NUM_CLASSES)(x))


class Sampling(layers.Layer):
    """Draws from a normal distribution."""

    def __init__(self) -> None:
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs: Any) -> Any:
        z_mean, z_log_var = inputs
        epsilon = keras.random.normal(keras.ops.shape(z_mean), seed=self.seed_generator)
        return z_mean + keras.ops.exp(0.5 * z_log_var) * epsilon


class VAE(keras.Model):
    """A variational autoencoder with steps of its own."""

    def __init__(self) -> None:
        super().__init__()
        inputs = keras.Input(_IMAGE)
        x = layers.Conv2D(16, 3, activation="relu", strides=2, padding="same")(inputs)
        x = layers.Dense(16, activation="relu")(layers.Flatten()(x))
        z = [layers.Dense(_LATENT_DIM)(x), layers.Dense(_LATENT_DIM)(x)]
        self.encoder = keras.Model(inputs, [*z, Sampling()(z)])
        self.decoder = keras.Sequential([
            keras.Input((_LATENT_DIM,)), layers.Dense(8 * 8 * 16, activation="relu"),
            layers.Reshape((8, 8, 16)),
            layers.Conv2DTranspose(1, 3, activation="sigmoid", strides=2, padding="same"),
        ])  # fmt: skip
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.kl_tracker = keras.metrics.Mean(name="kl_loss")

    @property
    def metrics(self) -> list[Any]:
        return [self.loss_tracker, self.kl_tracker]

    def call(self, inputs: Any) -> Any:
        return self.decoder(self.encoder(inputs)[0])

    def losses_of(self, data: Any) -> tuple[Any, Any]:
        z_mean, z_log_var, z = self.encoder(data)
        crossentropy = keras.losses.binary_crossentropy(data, self.decoder(z))
        reconstruction = keras.ops.mean(keras.ops.sum(crossentropy, axis=(1, 2)))
        kl = -0.5 * (1 + z_log_var - keras.ops.square(z_mean) - keras.ops.exp(z_log_var))
        kl_loss = keras.ops.mean(keras.ops.sum(kl, axis=1))
        return reconstruction + kl_loss, kl_loss

    def results(self, loss: Any, kl_loss: Any) -> dict[str, Any]:
        self.loss_tracker.update_state(loss)
        self.kl_tracker.update_state(kl_loss)
        return {metric.name: metric.result() for metric in self.metrics}

    def train_step(self, data: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss, kl_loss = self.losses_of(data)
        grads = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(grads, self.trainable_weights))
        return self.results(loss, kl_loss)

    def test_step(self, data: Any) -> dict[str, Any]:
        return self.results(*self.losses_of(data[0] if isinstance(data, tuple) else data))


class GAN(keras.Model):
    """A generator against a discriminator, each with its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.discriminator = keras.Sequential([
            keras.Input(_IMAGE), layers.Conv2D(16, 3, strides=2, padding="same"),
            layers.LeakyReLU(negative_slope=0.2), layers.Conv2D(16, 3, strides=2, padding="same"),
            layers.LeakyReLU(negative_slope=0.2), layers.GlobalMaxPooling2D(), layers.Dense(1),
        ])  # fmt: skip
        self.generator = keras.Sequential([
            keras.Input((_LATENT_DIM,)), layers.Dense(4 * 4 * _LATENT_DIM),
            layers.LeakyReLU(negative_slope=0.2), layers.Reshape((4, 4, _LATENT_DIM)),
            layers.Conv2DTranspose(16, 4, strides=2, padding="same"),
            layers.LeakyReLU(negative_slope=0.2),
            layers.Conv2DTranspose(16, 4, strides=2, padding="same"),
            layers.LeakyReLU(negative_slope=0.2),
            layers.Conv2D(1, 7, padding="same", activation="sigmoid"),
        ])  # fmt: skip
        self.seed_generator = keras.random.SeedGenerator(1337)
        self.d_loss_metric = keras.metrics.Mean(name="loss")
        self.g_loss_metric = keras.metrics.Mean(name="g_loss")

    def compile(self, d_optimizer: Any, g_optimizer: Any, loss_fn: Any, **options: Any) -> None:
        super().compile(**options)
        self.d_optimizer, self.g_optimizer, self.loss_fn = d_optimizer, g_optimizer, loss_fn

    @property
    def metrics(self) -> list[Any]:
        return [self.d_loss_metric, self.g_loss_metric]

    def train_step(self, real_images: Any) -> dict[str, Any]:
        if isinstance(real_images, tuple):  # of `train_on_batch`
            real_images = real_images[0]
        batch_size = keras.ops.shape(real_images)[0]
        noise = keras.random.normal((batch_size, _LATENT_DIM), seed=self.seed_generator)
        images = keras.ops.concatenate([self.generator(noise), real_images], axis=0)
        ones, zeros = keras.ops.ones((batch_size, 1)), keras.ops.zeros((batch_size, 1))
        labels = keras.ops.concatenate([ones, zeros], axis=0)
        labels += 0.05 * keras.random.uniform(keras.ops.shape(labels), seed=self.seed_generator)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(images))
        grads = tape.gradient(d_loss, self.discriminator.trainable_weights)
        self.d_optimizer.apply_gradients(zip(grads, self.discriminator.trainable_weights))
        noise = keras.random.normal((batch_size, _LATENT_DIM), seed=self.seed_generator)
        with tf.GradientTape() as tape:
            g_loss = self.loss_fn(zeros, self.discriminator(self.generator(noise)))
        grads = tape.gradient(g_loss, self.generator.trainable_weights)
        self.g_optimizer.apply_gradients(zip(grads, self.generator.trainable_weights))
        self.d_loss_metric.update_state(d_loss)
        self.g_loss_metric.update_state(g_loss)
        return {metric.name: metric.result() for metric in self.metrics}


_MAKERS: dict[str, Callable[[], Any]] = {
    "dense": _dense,
    "dense_softmax": lambda: _dense("softmax"),
    "cnn": _cnn,
    "cnn_bn": _cnn_with_batch_norm,
    "lstm": _lstm,
    "transformer": _transformer,
    "vae": VAE,
    "gan": GAN,
}
MODELS = tuple(_MAKERS)
_WITHOUT_LABELS = ("vae", "gan")


def can_call(name: str, call: str) -> bool:
    """Say whether a model has what a call of Keras' needs: the GAN can only be trained."""
    return name != "gan" or call in ("fit", "train_on_batch")


def make_model(name: str, contestant: str) -> Any:
    """Return a compiled model, the same for each contestant."""
    keras.utils.set_random_seed(0)
    model = _MAKERS[name]()
    options: dict[str, Any] = {"run_eagerly": contestant == "eager"}
    if name == "gan":
        optimizers = [keras.optimizers.Adam(3e-4) for _ in range(2)]
        model.compile(*optimizers, keras.losses.BinaryCrossentropy(from_logits=True), **options)
    elif name == "vae":
        model.compile("adam", **options)
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=name != "dense_softmax")
        model.compile("adam", loss, metrics=["accuracy"], **options)
    return terra.keras.accelerate(model) if contestant == "terra" else model


def make_data(name: str, num_batches: int) -> tuple[np.ndarray, ...]:
    """Return inputs, and labels where the model has any."""
    rng = np.random.default_rng(0)
    num = num_batches * BATCH_SIZE
    y = rng.integers(0, _NUM_CLASSES, num)
    if name in ("lstm", "transformer"):
        tokens = rng.integers(1, _NUM_WORDS, (num, _NUM_TOKENS))
        lengths = rng.integers(1, _NUM_TOKENS + 1, num)
        return np.where(np.arange(_NUM_TOKENS) < lengths[:, None], tokens, 0).astype(np.int32), y
    if name in _WITHOUT_LABELS:
        return (rng.random((num, *_IMAGE)).astype(np.float32),)
    shape = _IMAGE if name.startswith("cnn") else (20,)
    return rng.standard_normal((num, *shape)).astype(np.float32), y
