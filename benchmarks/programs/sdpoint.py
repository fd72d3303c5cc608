"""SDPoint: a residual network that is down-sampled at another point in every step.

Kuen et al., "Stochastic Downsampling for Cost-Adjustable Inference and Improved Regularization in
Convolutional Networks", 2018.

What makes it hard: in every step Python's `random` chooses behind which block the features shrink,
and by how much (or that they do not). The model's object is told by setting its attributes; all
later layers then have other shapes. Data: scikit-learn's handwritten digits.
"""

from __future__ import annotations

import collections
import random
from collections.abc import Callable, Sequence

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

FEATURE = "a random choice in Python of the way through the model, in every step"
DATA = "scikit-learn's handwritten digits, enlarged"
SIZES = {
    "tiny": dict(side=16, channels=(8, 16), blocks_per_stage=1, batch=8, ratios=(0.5,)),
    "small": dict(side=24, channels=(16, 32, 64), blocks_per_stage=2, batch=16, ratios=(0.5,)),
    "paper": dict(side=224, channels=(64, 128, 256, 512), blocks_per_stage=3, batch=64),
}


class SDPointNetwork(tf.Module):
    """A residual network; behind block number `point` its features are resized by `ratio`."""

    def __init__(self, rng: np.random.Generator, channels: Sequence[int], blocks_per_stage: int):
        super().__init__()
        self.stem = ConvolutionUnit(rng, 1, channels[0])
        self.blocks = []
        for stage, num_out in enumerate(channels):
            num_in = channels[max(stage - 1, 0)]
            first = ResidualBlock(rng, num_in, num_out, stride=1 if stage == 0 else 2)
            rest = [ResidualBlock(rng, num_out, num_out) for _ in range(blocks_per_stage - 1)]
            self.blocks += [first, *rest]
        self.head = Linear(rng, channels[-1], NUM_CLASSES)
        self.point: int | None = None
        self.ratio = 1.0

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Return the logits float32[batch, 10]."""
        h = self.stem(images)
        for i, block in enumerate(self.blocks):
            h = block(h)
            if i == self.point:
                h = _shrink(h, self.ratio)
        return self.head(tf.reduce_mean(h, axis=[1, 2]))


class PointSampler:
    """Chooses the model's next down-sampling point and ratio, and counts what it chose."""

    def __init__(self, model: SDPointNetwork, ratios: Sequence[float], seed: int):
        self.model = model
        self.choices: list[tuple[int | None, float]] = [(None, 1.0)]
        self.choices += [(i, ratio) for i in range(len(model.blocks)) for ratio in ratios]
        self.random = random.Random(seed)
        self.counts: collections.Counter = collections.Counter()

    def sample(self) -> None:
        """Set the model's point and ratio for one step."""
        choice = self.random.choice(self.choices)
        self.model.point, self.model.ratio = choice
        self.counts[choice] += 1


def make(
    wrap: Callable,
    *,
    side: int,
    channels: Sequence[int],
    blocks_per_stage: int,
    batch: int,
    ratios: Sequence[float] = (0.5, 0.75),
    learning_rate: float = 0.02,
    num_batches: int = 8,
    seed: int = 0,
) -> Program:
    """Build the program on float32[batch, side, side, 1] images."""
    rng = np.random.default_rng(seed)
    model = SDPointNetwork(rng, channels, blocks_per_stage)
    sampler = PointSampler(model, ratios, seed)
    trainable, others = split_variables([model])
    optimizer = Momentum(trainable, learning_rate)
    images, labels = load_digit_images(side)
    chosen = [rng.integers(0, len(labels), batch) for _ in range(num_batches)]
    batches = [(tf.constant(images[rows]), tf.constant(labels[rows])) for rows in chosen]

    @wrap
    def train_step(images, labels):
        sampler.sample()
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images))
            loss = tf.reduce_mean(losses)
        optimizer.apply(tape.gradient(loss, trainable))
        return loss

    return Program(
        step=lambda i: train_step(*batches[i % num_batches]),
        variables=[*trainable, *others, *optimizer.state],
        function=train_step,
        python_state=lambda: sorted(map(repr, sampler.counts.items())),
    )


def _shrink(features: tf.Tensor, ratio: float) -> tf.Tensor:
    """Resize float32[batch, side, side, channels] features to the ratio of their side, rounded."""
    side = max(1, round(features.shape[1] * ratio))
    return tf.image.resize(features, [side, side], method="bilinear")
