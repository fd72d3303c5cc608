"""DCGAN: a generator of images and a discriminator learn from each other.

Radford, Metz, Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks", 2016. Keras layers, as in TensorFlow's tutorial of that name.

What makes it hard: two tapes and two optimizers in one step; the discriminator learns first, then
the generator, from fresh noise and against the discriminator as it is by then. Data: scikit-learn's
handwritten digits.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from benchmarks.programs.images import load_digit_images
from benchmarks.programs.program import Program

FEATURE = "two tapes and two optimizers that alternate"
DATA = "scikit-learn's handwritten digits, enlarged"
SIZES = {
    "tiny": dict(side=16, width=8, noise_width=16, batch=4),
    "small": dict(side=32, width=16, noise_width=64, batch=16),
    "paper": dict(side=64, width=128, noise_width=100, batch=128),
}
_FIRST_SIDE = 4


def make_generator(side: int, width: int, noise_width: int) -> keras.Sequential:
    """Return a model from float32[batch, noise_width] to images float32[batch, side, side, 1]."""
    layers = keras.layers
    num_channels = width * side // (2 * _FIRST_SIDE)
    model = keras.Sequential([layers.Input((noise_width,))])
    model.add(layers.Dense(_FIRST_SIDE**2 * num_channels, use_bias=False))
    model.add(layers.Reshape((_FIRST_SIDE, _FIRST_SIDE, num_channels)))
    model.add(layers.BatchNormalization())
    model.add(layers.ReLU())
    while num_channels > width:
        num_channels //= 2
        model.add(layers.Conv2DTranspose(num_channels, 5, 2, "same", use_bias=False))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
    model.add(layers.Conv2DTranspose(1, 5, 2, "same", use_bias=False, activation="tanh"))
    return model


def make_discriminator(side: int, width: int) -> keras.Sequential:
    """Return a model from images float32[batch, side, side, 1] to logits float32[batch, 1]."""
    layers = keras.layers
    model = keras.Sequential([layers.Input((side, side, 1))])
    num_channels = width
    while side > _FIRST_SIDE:
        model.add(layers.Conv2D(num_channels, 5, 2, "same"))
        if num_channels > width:
            model.add(layers.BatchNormalization())
        model.add(layers.LeakyReLU(0.2))
        side, num_channels = side // 2, 2 * num_channels
    model.add(layers.Flatten())
    model.add(layers.Dense(1))
    return model


class Gan:
    """The two models, their optimizers, and the noise they feed on."""

    def __init__(self, side: int, width: int, noise_width: int, batch: int, seed: int):
        keras.utils.set_random_seed(seed)
        self.noise_shape = [batch, noise_width]
        self.seeds = keras.random.SeedGenerator(seed)
        self.generator = make_generator(side, width, noise_width)
        self.discriminator = make_discriminator(side, width)
        self.cross_entropy = keras.losses.BinaryCrossentropy(from_logits=True)
        self.generator_optimizer = keras.optimizers.Adam(2e-4, beta_1=0.5)
        self.discriminator_optimizer = keras.optimizers.Adam(2e-4, beta_1=0.5)
        self.generator_optimizer.build(self.generator.trainable_variables)
        self.discriminator_optimizer.build(self.discriminator.trainable_variables)

    def train_discriminator(self, images: tf.Tensor) -> tf.Tensor:
        """Teach the discriminator real from generated; return its loss."""
        weights = self.discriminator.trainable_variables
        noise = keras.random.normal(self.noise_shape, seed=self.seeds)
        fakes = self.generator(noise, training=True)
        with tf.GradientTape() as tape:
            real = self.discriminator(images, training=True)
            fake = self.discriminator(fakes, training=True)
            loss = self.cross_entropy(tf.ones_like(real), real)
            loss += self.cross_entropy(tf.zeros_like(fake), fake)
        gradients = tape.gradient(loss, weights)
        self.discriminator_optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return loss

    def train_generator(self) -> tf.Tensor:
        """Teach the generator to pass for real; return its loss."""
        weights = self.generator.trainable_variables
        noise = keras.random.normal(self.noise_shape, seed=self.seeds)
        with tf.GradientTape() as tape:
            fake = self.discriminator(self.generator(noise, training=True), training=True)
            loss = self.cross_entropy(tf.ones_like(fake), fake)
        gradients = tape.gradient(loss, weights)
        self.generator_optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return loss

    @property
    def variables(self) -> list[tf.Variable]:
        """Every variable of models, optimizers and noise."""
        parts = (
            self.generator,
            self.discriminator,
            self.generator_optimizer,
            self.discriminator_optimizer,
        )
        found = [variable.value for part in parts for variable in part.variables]
        return [*found, self.seeds.state.value]


def make(
    wrap: Callable,
    *,
    side: int,
    width: int,
    noise_width: int,
    batch: int,
    num_batches: int = 8,
    seed: int = 0,
) -> Program:
    """Build the program on float32[batch, side, side, 1] images; `side` is a power of two."""
    gan = Gan(side, width, noise_width, batch, seed)
    rng = np.random.default_rng(seed)
    images, _ = load_digit_images(side)
    batches = [
        tf.constant(images[rng.integers(0, len(images), batch)]) for _ in range(num_batches)
    ]

    @wrap
    def train_step(images):
        discriminator_loss = gan.train_discriminator(images)
        generator_loss = gan.train_generator()
        return discriminator_loss + generator_loss

    return Program(
        step=lambda i: train_step(batches[i % num_batches]),
        variables=gan.variables,
        function=train_step,
    )
