"""Optimizers from plain operations, as BERT's and many detectors' repositories bring their own.

    optimizer = AdamW(variables, learning_rate=1e-4)
    optimizer.apply(tape.gradient(loss, variables))

The programs that use Keras' optimizers do so directly.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

_MATRIX_RANK = 2


class Momentum:
    """Gradient descent with momentum and weight decay; `state` holds a velocity a variable."""

    def __init__(
        self,
        variables: Sequence[tf.Variable],
        learning_rate: float,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
    ):
        self.variables, self.learning_rate = variables, learning_rate
        self.momentum, self.weight_decay = momentum, weight_decay
        self.state = [_zeros_like(variable) for variable in variables]

    def apply(self, gradients: Sequence[tf.Tensor]) -> None:
        """Move the variables; the gradients come in their order."""
        for variable, velocity, gradient in zip(
            self.variables, self.state, gradients, strict=True
        ):
            if variable.shape.rank >= _MATRIX_RANK:
                gradient = gradient + self.weight_decay * variable
            velocity.assign(self.momentum * velocity + gradient)
            variable.assign_sub(self.learning_rate * velocity)


class AdamW:
    """Adam with decoupled weight decay of matrices, as BERT's.

    state: the number of steps, then first and second moments, variable by variable.
    """

    def __init__(
        self,
        variables: Sequence[tf.Variable],
        learning_rate: float,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        weight_decay: float = 0.01,
        epsilon: float = 1e-6,
    ):
        self.variables, self.learning_rate = variables, learning_rate
        self.beta_1, self.beta_2 = beta_1, beta_2
        self.weight_decay, self.epsilon = weight_decay, epsilon
        self.num_steps = tf.Variable(0.0)
        self.first_moments = [_zeros_like(variable) for variable in variables]
        self.second_moments = [_zeros_like(variable) for variable in variables]
        self.state = [self.num_steps, *self.first_moments, *self.second_moments]

    def apply(self, gradients: Sequence[tf.Tensor | tf.IndexedSlices]) -> None:
        """Move the variables; the gradients come in their order."""
        self.num_steps.assign_add(1.0)
        correction_1 = 1.0 - tf.pow(self.beta_1, self.num_steps)
        correction_2 = 1.0 - tf.pow(self.beta_2, self.num_steps)
        rate = self.learning_rate * tf.sqrt(correction_2) / correction_1
        for variable, first, second, gradient in zip(
            self.variables, self.first_moments, self.second_moments, gradients, strict=True
        ):
            gradient = tf.convert_to_tensor(gradient)
            first.assign_add((1.0 - self.beta_1) * (gradient - first))
            second.assign_add((1.0 - self.beta_2) * (tf.square(gradient) - second))
            change = rate * first / (tf.sqrt(second) + self.epsilon)
            if variable.shape.rank >= _MATRIX_RANK:
                change += self.learning_rate * self.weight_decay * variable
            variable.assign_sub(change)


def _zeros_like(variable: tf.Variable) -> tf.Variable:
    return tf.Variable(tf.zeros_like(variable), trainable=False)
