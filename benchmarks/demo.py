"""Train on real images in three modes and compare: `python -m benchmarks.demo`.

A small convolutional classifier with DropBlock learns scikit-learn's handwritten digits (1,797 real
images, 8 x 8). It is written imperatively: a custom loop, a GradientTape, a NumPy metric inside the
step, and a schedule that changes keep probability and block size on plain Python attributes while
training goes on. The same program runs eagerly, under `tf.function` and under `terra.function`.

DropBlock: Ghiasi, Lin, Le, "DropBlock: A regularization method for convolutional networks", 2018.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from absl import app, flags
from sklearn.datasets import load_digits
from tqdm import tqdm

import terra_tf as terra
from benchmarks.timing import Comparison, Timing, compare

_WRAPS = {"eager": lambda function: function, "tf_function": tf.function, "terra": terra.function}

_EPOCHS = flags.DEFINE_integer("epochs", 12, "Passes over the training images.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "Images in a step.", lower_bound=1, upper_bound=1024
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of split, weights, order of images and DropBlock.")
_MODES = flags.DEFINE_list("modes", list(_WRAPS), "The modes to run, in this order.")
_MAX_STEPS = flags.DEFINE_integer("max_steps", None, "End each run after this many steps.")

flags.register_validator(
    "modes", lambda modes: set(modes) <= set(_WRAPS), f"modes are {', '.join(_WRAPS)}"
)

_NUM_TEST_IMAGES = 360
_LEARNING_RATE = 0.02
_MOMENTUM = 0.9
_KEEP_PROB_PERIOD = 20
_KEEP_PROB_DECREMENT = 0.02
_LOWEST_KEEP_PROB = 0.8
_BLOCK_SIZES = (1, 2, 3)
_LOSS_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Digits:
    """Standardized images float32[n, 8, 8, 1] and their labels int64[n], as NumPy arrays."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    def batches(self, num_epochs: int, batch_size: int, seed: int) -> Iterator[tuple]:
        """Yield shuffled training batches as tensors; what fills no batch is left out."""
        rng = np.random.default_rng(seed)
        for _ in range(num_epochs):
            order = rng.permutation(len(self.train_labels))
            for start in range(0, len(order) - batch_size + 1, batch_size):
                chosen = order[start : start + batch_size]
                yield tf.constant(self.train_images[chosen]), tf.constant(self.train_labels[chosen])


def load(seed: int) -> Digits:
    """Load the digits, split them at random, and standardize with the training images' moments."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    test, train = order[:_NUM_TEST_IMAGES], order[_NUM_TEST_IMAGES:]
    mean, deviation = digits.images[train].mean(), digits.images[train].std()
    images = ((digits.images - mean) / deviation).astype(np.float32)[..., np.newaxis]
    labels = digits.target.astype(np.int64)
    return Digits(images[train], labels[train], images[test], labels[test])


class DropBlock:
    """Zero square blocks of a feature map; `keep_prob` and `block_size` may change at any time."""

    def __init__(self):
        self.keep_prob = 1.0
        self.block_size = 1

    def __call__(self, features: tf.Tensor) -> tf.Tensor:
        """Return float32[batch, side, side, channels] features with blocks dropped."""
        if self.keep_prob >= 1.0:
            return features
        batch, side, _, channels = features.shape
        size, num_centers = self.block_size, side - self.block_size + 1
        gamma = (1.0 - self.keep_prob) / size**2 * side**2 / num_centers**2
        noise = tf.random.uniform([batch, num_centers, num_centers, channels])
        centers = tf.cast(noise < gamma, tf.float32)
        margin = [size - 1, size - 1]
        blocks = tf.nn.max_pool2d(
            tf.pad(centers, [[0, 0], margin, margin, [0, 0]]), size, strides=1, padding="VALID"
        )
        mask = 1.0 - blocks
        num_kept = tf.maximum(tf.reduce_sum(mask), 1.0)
        return features * mask * (tf.cast(tf.size(mask), tf.float32) / num_kept)


class Classifier:
    """Two convolutions with DropBlock after each, pooling, and a linear layer."""

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self.drop_block = DropBlock()
        self.kernels = [_he_normal(rng, 3, 3, 1, 16), _he_normal(rng, 3, 3, 16, 32)]
        self.biases = [tf.Variable(tf.zeros(16)), tf.Variable(tf.zeros(32))]
        self.head = _he_normal(rng, 4 * 4 * 32, 10)
        self.variables = [*self.kernels, *self.biases, self.head]

    def __call__(self, images: tf.Tensor, training: bool) -> tf.Tensor:
        """Return the logits float32[batch, 10]."""
        h = images
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            h = tf.nn.relu(tf.nn.conv2d(h, kernel, 1, "SAME") + bias)
            if training:
                h = self.drop_block(h)
        h = tf.nn.max_pool2d(h, 2, 2, "VALID")
        return tf.matmul(tf.reshape(h, [h.shape[0], -1]), self.head)


def _he_normal(rng: np.random.Generator, *shape: int) -> tf.Variable:
    deviation = (2.0 / np.prod(shape[:-1])) ** 0.5
    return tf.Variable((deviation * rng.standard_normal(shape)).astype(np.float32))


class Trainer:
    """The training program: its step, its schedule, and what its Python code noted down."""

    def __init__(self, seed: int):
        self.model = Classifier(seed)
        self.velocities = [tf.Variable(tf.zeros_like(v)) for v in self.model.variables]
        self.settings_seen: list[tuple[float, int]] = []

    def step(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, float]:
        """Update the weights; return loss and batch accuracy, the latter computed with NumPy."""
        loss, logits = self.update(images, labels)
        return loss, _accuracy(logits, labels)

    def update(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Update the weights; return loss and logits."""
        drop_block = self.model.drop_block
        self.settings_seen.append((drop_block.keep_prob, drop_block.block_size))
        variables = self.model.variables
        with tf.GradientTape() as tape:
            logits = self.model(images, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, variables)
        for variable, velocity, gradient in zip(variables, self.velocities, gradients, strict=True):
            velocity.assign(_MOMENTUM * velocity + gradient)
            variable.assign_sub(_LEARNING_RATE * velocity)
        return loss, logits

    def schedule(self, step: int, num_steps: int) -> None:
        """Drop a little more every few steps, and larger blocks in each third of the training."""
        drop_block = self.model.drop_block
        keep_prob = 1.0 - _KEEP_PROB_DECREMENT * (step // _KEEP_PROB_PERIOD)
        drop_block.keep_prob = max(_LOWEST_KEEP_PROB, round(keep_prob, 2))
        drop_block.block_size = _BLOCK_SIZES[step * len(_BLOCK_SIZES) // num_steps]


def _accuracy(logits: tf.Tensor, labels: tf.Tensor) -> float:
    return float(np.mean(np.argmax(logits.numpy(), -1) == labels.numpy()))


@dataclasses.dataclass(frozen=True)
class Run:
    """What one mode did: a loss and a time per step, and the DropBlock settings Python saw."""

    losses: list[float]
    step_times_s: list[float]
    test_accuracy: float
    settings_seen: list[tuple[float, int]]
    function: Any
    complaint: str | None = None


def run(mode: str, digits: Digits) -> Run:
    """Train in a mode; where it cannot run the step as it is, move the metric out and say so."""
    wrap = _WRAPS[mode]
    trainer = Trainer(_SEED.value)
    try:
        step = wrap(trainer.step)
        return _train(mode, digits, trainer, step, step)
    except AttributeError as error:
        if mode != "tf_function":
            raise
        complaint = _last_line(error)
    trainer = Trainer(_SEED.value)
    update = wrap(trainer.update)

    def step_with_metric_outside(images, labels):
        loss, logits = update(images, labels)
        return loss, _accuracy(logits, labels)

    run_outside = _train(mode, digits, trainer, step_with_metric_outside, update)
    return dataclasses.replace(run_outside, complaint=complaint)


def _train(mode: str, digits: Digits, trainer: Trainer, step: Callable, function: Any) -> Run:
    tf.random.set_seed(_SEED.value)
    batches = list(digits.batches(_EPOCHS.value, _BATCH_SIZE.value, _SEED.value))
    batches = batches[: _MAX_STEPS.value]
    losses, step_times_s = [], []
    progress = tqdm(batches, desc=f"{mode:<12}", disable=None, leave=False)
    for i, (images, labels) in enumerate(progress):
        trainer.schedule(i, len(batches))
        start_s = time.perf_counter()
        loss, accuracy = step(images, labels)
        losses.append(float(loss))
        step_times_s.append(time.perf_counter() - start_s)
        progress.set_postfix(loss=f"{losses[-1]:.3f}", accuracy=f"{accuracy:.2f}", refresh=False)
    logits = trainer.model(tf.constant(digits.test_images), training=False)
    test_accuracy = _accuracy(logits, tf.constant(digits.test_labels))
    return Run(losses, step_times_s, test_accuracy, trainer.settings_seen, function)


def _last_line(error: Exception) -> str:
    """Return the message itself: AutoGraph puts the user's stack in front of it."""
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1]


def describe(mode: str, result: Run, eager: Run | None) -> list[str]:
    """Return the lines that sum up a run, next to the eager one if there was one."""
    median_s = Timing(tuple(result.step_times_s)).median_s
    lines = [
        f"{mode}: test accuracy {result.test_accuracy:.1%}, median step {1e3 * median_s:.2f} ms"
    ]
    if result.complaint is not None:
        lines.append(f"the step as written fails ({result.complaint}); metric moved out of it")
    if eager is not None and eager is not result:
        eager_median_s = Timing(tuple(eager.step_times_s)).median_s
        lines[0] += f", {eager_median_s / median_s:.2f} times as fast as eager"
        lines.append(_describe_losses(_compare_losses(eager, result)))
    return [*lines, _describe_schedule(result)]


def _compare_losses(eager: Run, result: Run) -> Comparison:
    return compare(eager.losses, result.losses, relative_tolerance=_LOSS_TOLERANCE)


def _describe_losses(comparison: Comparison) -> str:
    if comparison.identical:
        return "losses agree with eager: the same in every step, bit for bit"
    difference = f"largest relative difference {comparison.max_relative_difference:.1e}"
    if comparison.agrees:
        return f"losses agree with eager within {_LOSS_TOLERANCE:.0e} ({difference})"
    return f"losses DIFFER from eager's from step {comparison.first_difference} on ({difference})"


def _describe_schedule(result: Run) -> str:
    seen, num_steps = result.settings_seen, len(result.losses)
    distinct = list(dict.fromkeys(seen))
    text = (
        f"the step's Python ran {len(seen)}x in {num_steps} steps and saw {len(distinct)} settings"
    )
    first, last = (f"keep_prob={keep}, block_size={size}" for keep, size in (seen[0], seen[-1]))
    if len(seen) < num_steps:
        return f"{text}: the schedule is FROZEN, the graph has {last} throughout"
    return f"{text}, from {first} to {last}"


def main(argv: list[str]) -> int:
    """Run the modes; return 1 if terra's losses are not eager's."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    tf.get_logger().setLevel("ERROR")
    digits = load(_SEED.value)
    results: dict[str, Run] = {}
    for mode in _MODES.value:
        results[mode] = run(mode, digits)
        print("\n  ".join(describe(mode, results[mode], results.get("eager"))), flush=True)
    if "terra" in results:
        print(f"\n{results['terra'].function.explain()}")
    if not {"eager", "terra"} <= set(results):
        return 0
    return 0 if _compare_losses(results["eager"], results["terra"]).agrees else 1


if __name__ == "__main__":
    app.run(main)
