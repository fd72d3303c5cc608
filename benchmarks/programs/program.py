"""What every benchmark program is made of: the `Program` record, initial values, optimizers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Program:
    """One training program, ready to step.

    step: runs step `i` on its batch and returns the loss, float32[].
    variables: every variable a step may change or read, optimizer state included.
    function: what the decorator returned (for terra it has `.stats()` and `.explain()`).
    python_state: returns what the step's Python has noted down so far, in plain Python values; two
        ways of running the program that agree leave equal states.
    """

    step: Callable[[int], tf.Tensor]
    variables: list[tf.Variable]
    function: Any
    python_state: Callable[[], Any] = lambda: None


def normal_variable(rng: np.random.Generator, *shape: int, scale: float = 0.05) -> tf.Variable:
    """Return a float32 variable drawn from a normal distribution of deviation `scale`."""
    return tf.Variable((rng.standard_normal(shape) * scale).astype(np.float32))


def normal_batches(rng: np.random.Generator, num_batches: int, *shape: int) -> list[tf.Tensor]:
    """Return `num_batches` float32 tensors of `shape` with standard normal values."""
    return [tf.constant(rng.standard_normal(shape).astype(np.float32)) for _ in range(num_batches)]


def label_batches(
    rng: np.random.Generator, num_batches: int, num_classes: int, *shape: int
) -> list[tf.Tensor]:
    """Return `num_batches` int64 tensors of `shape` with values below `num_classes`."""
    return [tf.constant(rng.integers(0, num_classes, shape)) for _ in range(num_batches)]


def make_update(
    optimizer: str, variables: Sequence[tf.Variable], learning_rate: float
) -> tuple[Callable[[Sequence[Any]], None], list[tf.Variable]]:
    """Return a function that applies gradients to `variables`, and the state it keeps.

    Args:
      optimizer: "sgd" (plain assignments, one a variable) or "adam" (Keras' Adam).
      variables: the variables, in the order in which the gradients will come.
      learning_rate: the step size.
    """
    if optimizer == "sgd":
        return lambda gradients: _descend(variables, gradients, learning_rate), []
    if optimizer == "adam":
        adam = keras.optimizers.Adam(learning_rate)
        adam.build(variables)
        state = [variable.value for variable in adam.variables]
        return lambda gradients: adam.apply_gradients(zip(gradients, variables, strict=True)), state
    raise ValueError(f"optimizer must be 'sgd' or 'adam', not {optimizer!r}")


def _descend(variables: Sequence[tf.Variable], gradients: Sequence[Any], rate: float) -> None:
    for variable, gradient in zip(variables, gradients, strict=True):
        if isinstance(gradient, tf.IndexedSlices):
            scaled = tf.IndexedSlices(rate * gradient.values, gradient.indices)
            variable.scatter_sub(scaled)
        else:
            variable.assign_sub(rate * gradient)
