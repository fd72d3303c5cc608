"""DropBlock: a residual network whose feature maps lose square blocks while it trains.

Ghiasi, Lin, Le, "DropBlock: A regularization method for convolutional networks", 2018.

What makes it hard: the object is mutated. Keep probability and block size are plain Python
attributes of the DropBlock layers; a scheduler changes the former in every step and the latter
every few steps, inside the training step. Data: scikit-learn's handwritten digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from benchmarks.programs.images import NUM_CLASSES, load_digit_images
from benchmarks.programs.layers import (
    ConvolutionUnit,
    Linear,
    ResidualBlock,
    split_variables,
)
from benchmarks.programs.optimizers import Momentum
from benchmarks.programs.program import Program

FEATURE = "object mutation: a schedule on Python attributes, inside the step"
DATA = "scikit-learn's handwritten digits, enlarged"
SIZES = {
    "tiny": dict(side=16, channels=(8, 16), blocks_per_stage=1, batch=8),
    "small": dict(side=24, channels=(16, 32, 64), blocks_per_stage=2, batch=16),
    "paper": dict(side=224, channels=(64, 128, 256, 512), blocks_per_stage=3, batch=64),
}


class DropBlock:
    """Zero square blocks of a feature map; `keep_prob` and `block_size` may change at any time."""

    def __init__(self, seeds: keras.random.SeedGenerator):
        self.keep_prob, self.block_size = 1.0, 1
        self.seeds = seeds

    def __call__(self, features: tf.Tensor) -> tf.Tensor:
        """Return float32[batch, side, side, channels] features with blocks dropped."""
        if self.keep_prob >= 1.0:
            return features
        batch, side, _, channels = features.shape
        size = min(self.block_size, side)
        num_centers = side - size + 1
        gamma = (1.0 - self.keep_prob) / size**2 * side**2 / num_centers**2
        noise = keras.random.uniform([batch, num_centers, num_centers, channels], seed=self.seeds)
        margin = [size - 1, size - 1]
        centers = tf.pad(tf.cast(noise < gamma, tf.float32), [[0, 0], margin, margin, [0, 0]])
        mask = 1.0 - tf.nn.max_pool2d(centers, size, strides=1, padding="VALID")
        num_kept = tf.maximum(tf.reduce_sum(mask), 1.0)
        return features * mask * (tf.cast(tf.size(mask), tf.float32) / num_kept)


class Scheduler:
    """Lowers the keep probability in every step, and lets blocks grow every few steps."""

    def __init__(
        self, layers: Sequence[DropBlock], lowest: float, num_steps: int, largest_block: int
    ):
        self.layers, self.lowest, self.num_steps = layers, lowest, num_steps
        self.largest_block = largest_block
        self.steps_per_size = 4
        self.step = 0
        self.history: list[tuple[float, int]] = []

    def advance(self) -> None:
        """Set what the next step is to use, and note it down."""
        progress = min(self.step / self.num_steps, 1.0)
        keep_prob = 1.0 - progress * (1.0 - self.lowest)
        block_size = min(self.largest_block, 1 + self.step // self.steps_per_size)
        for layer in self.layers:
            layer.keep_prob, layer.block_size = keep_prob, block_size
        self.history.append((keep_prob, block_size))
        self.step += 1


class Classifier(tf.Module):
    """A residual network with DropBlock behind each block of its last two stages."""

    def __init__(
        self,
        rng: np.random.Generator,
        channels: Sequence[int],
        blocks_per_stage: int,
        seeds: keras.random.SeedGenerator,
    ):
        super().__init__()
        self.stem = ConvolutionUnit(rng, 1, channels[0])
        self.stages = []
        for stage, num_out in enumerate(channels):
            num_in = channels[max(stage - 1, 0)]
            first = ResidualBlock(rng, num_in, num_out, stride=1 if stage == 0 else 2)
            rest = [ResidualBlock(rng, num_out, num_out) for _ in range(blocks_per_stage - 1)]
            self.stages.append([first, *rest])
        self.head = Linear(rng, channels[-1], NUM_CLASSES)
        self.drop_blocks = [DropBlock(seeds) for stage in self.stages[-2:] for _ in stage]

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Return the logits float32[batch, 10]."""
        h = self.stem(images)
        drop_blocks = iter(self.drop_blocks)
        for i, stage in enumerate(self.stages):
            for block in stage:
                h = block(h)
                if i >= len(self.stages) - 2:
                    h = next(drop_blocks)(h)
        return self.head(tf.reduce_mean(h, axis=[1, 2]))


def make(
    wrap: Callable,
    *,
    side: int,
    channels: Sequence[int],
    blocks_per_stage: int,
    batch: int,
    lowest_keep_prob: float = 0.8,
    schedule_steps: int = 200,
    learning_rate: float = 0.02,
    num_batches: int = 8,
    seed: int = 0,
) -> Program:
    """Build the program on float32[batch, side, side, 1] images."""
    rng, seeds = np.random.default_rng(seed), keras.random.SeedGenerator(seed)
    model = Classifier(rng, channels, blocks_per_stage, seeds)
    scheduler = Scheduler(model.drop_blocks, lowest_keep_prob, schedule_steps, largest_block=3)
    trainable, others = split_variables([model])
    optimizer = Momentum(trainable, learning_rate)
    images, labels = load_digit_images(side)
    chosen = [rng.integers(0, len(labels), batch) for _ in range(num_batches)]
    batches = [(tf.constant(images[rows]), tf.constant(labels[rows])) for rows in chosen]

    @wrap
    def train_step(images, labels):
        scheduler.advance()
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images))
            loss = tf.reduce_mean(losses)
        optimizer.apply(tape.gradient(loss, trainable))
        return loss

    return Program(
        step=lambda i: train_step(*batches[i % num_batches]),
        variables=[*trainable, *others, *optimizer.state, seeds.state.value],
        function=train_step,
        python_state=lambda: list(scheduler.history),
    )
