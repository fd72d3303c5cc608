"""Layers from raw operations, as small TensorFlow projects write them: `tf.Module`s with variables.

    rng, seeds = np.random.default_rng(0), keras.random.SeedGenerator(0)
    layer, drop = Linear(rng, 16, 32), Dropout(0.1, seeds)
    h = drop(layer(x))    # float32[batch, time, 16] -> float32[batch, time, 32]

Weights are drawn with NumPy, so that a model made twice is the same twice. Dropout draws from a
seed generator that keeps its count in a variable: it draws the same numbers in every mode but XLA,
where `tf.nn.dropout` would have other seeds in a graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

_BATCH_NORM_MOMENTUM = 0.9
_EPSILON = 1e-5


def draw_weight(rng: np.random.Generator, *shape: int, deviation: float = 0.02) -> tf.Variable:
    """Return a float32 variable of normal draws, of which none is beyond two deviations."""
    values = np.clip(rng.standard_normal(shape), -2.0, 2.0) * deviation
    return tf.Variable(values.astype(np.float32))


class Linear(tf.Module):
    """An affine map of the last axis."""

    def __init__(
        self, rng: np.random.Generator, num_in: int, num_out: int, deviation: float = 0.02
    ):
        super().__init__()
        self.weight = draw_weight(rng, num_in, num_out, deviation=deviation)
        self.bias = tf.Variable(tf.zeros(num_out))

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        num_in, num_out = self.weight.shape
        if x.shape.rank == 2:
            return tf.matmul(x, self.weight) + self.bias
        rows = tf.matmul(tf.reshape(x, [-1, num_in]), self.weight) + self.bias
        return tf.reshape(rows, [*x.shape[:-1], num_out])


class LayerNorm(tf.Module):
    """Normalize the last axis, then scale and shift it."""

    def __init__(self, width: int):
        super().__init__()
        self.gain, self.bias = tf.Variable(tf.ones(width)), tf.Variable(tf.zeros(width))

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        return tf.nn.batch_normalization(x, mean, variance, self.bias, self.gain, _EPSILON)


class Dropout:
    """Drop units at a rate; the rate is a plain attribute."""

    def __init__(self, rate: float, seeds: keras.random.SeedGenerator):
        self.rate, self.seeds = rate, seeds

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return keras.random.dropout(x, self.rate, seed=self.seeds)


class Convolution(tf.Module):
    """A square 2-D convolution with "SAME" padding, with a bias on request."""

    def __init__(
        self,
        rng: np.random.Generator,
        num_in: int,
        num_out: int,
        side: int = 3,
        stride: int = 1,
        use_bias: bool = False,
    ):
        super().__init__()
        deviation = (2.0 / (side * side * num_in)) ** 0.5
        self.kernel = draw_weight(rng, side, side, num_in, num_out, deviation=deviation)
        self.bias = tf.Variable(tf.zeros(num_out)) if use_bias else None
        self.stride = stride

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        h = tf.nn.conv2d(x, self.kernel, self.stride, "SAME")
        return h if self.bias is None else tf.nn.bias_add(h, self.bias)


class BatchNorm(tf.Module):
    """Normalize each channel over the batch, and keep moving averages of its moments."""

    def __init__(self, num_channels: int):
        super().__init__()
        self.gain = tf.Variable(tf.ones(num_channels))
        self.bias = tf.Variable(tf.zeros(num_channels))
        self.moving_mean = tf.Variable(tf.zeros(num_channels), trainable=False)
        self.moving_variance = tf.Variable(tf.ones(num_channels), trainable=False)

    def __call__(self, x: tf.Tensor, training: bool = True) -> tf.Tensor:
        if not training:
            return tf.nn.batch_normalization(
                x, self.moving_mean, self.moving_variance, self.bias, self.gain, _EPSILON
            )
        h, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            x, self.gain, self.bias, epsilon=_EPSILON, is_training=True
        )
        self._move(self.moving_mean, mean)
        self._move(self.moving_variance, variance)
        return h

    def _move(self, moving: tf.Variable, moment: tf.Tensor) -> None:
        moving.assign_sub((1.0 - _BATCH_NORM_MOMENTUM) * (moving - moment))


class ConvolutionUnit(tf.Module):
    """Convolution, batch norm and an activation, the brick of most image models."""

    def __init__(
        self,
        rng: np.random.Generator,
        num_in: int,
        num_out: int,
        side: int = 3,
        stride: int = 1,
        activation: str = "relu",
    ):
        super().__init__()
        self.convolution = Convolution(rng, num_in, num_out, side, stride)
        self.norm = BatchNorm(num_out)
        self.activation = _ACTIVATIONS[activation]

    def __call__(self, x: tf.Tensor, training: bool = True) -> tf.Tensor:
        return self.activation(self.norm(self.convolution(x), training))


class ResidualBlock(tf.Module):
    """Two convolutions of 3 x 3 around a shortcut, which is projected where the shape changes."""

    def __init__(self, rng: np.random.Generator, num_in: int, num_out: int, stride: int = 1):
        super().__init__()
        self.first = ConvolutionUnit(rng, num_in, num_out, 3, stride)
        self.second = ConvolutionUnit(rng, num_out, num_out, 3, activation="none")
        is_projected = stride != 1 or num_in != num_out
        self.shortcut = (
            ConvolutionUnit(rng, num_in, num_out, 1, stride, "none") if is_projected else None
        )

    def __call__(self, x: tf.Tensor, training: bool = True) -> tf.Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x, training)
        return tf.nn.relu(shortcut + self.second(self.first(x, training), training))


def split_variables(modules: Sequence[tf.Module]) -> tuple[list[tf.Variable], list[tf.Variable]]:
    """Return the trainable and the other variables of some modules, each in a fixed order."""
    trainable = [variable for module in modules for variable in module.trainable_variables]
    others = [variable for module in modules for variable in module.non_trainable_variables]
    return trainable, others


def _identity(x: tf.Tensor) -> tf.Tensor:
    return x


def _leaky_relu(x: tf.Tensor) -> tf.Tensor:
    return tf.nn.leaky_relu(x, 0.1)


_ACTIVATIONS = {"relu": tf.nn.relu, "leaky_relu": _leaky_relu, "none": _identity}
