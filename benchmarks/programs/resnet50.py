"""ResNet50: classify photographs with Keras layers in a custom training loop.

He et al., "Deep Residual Learning for Image Recognition", 2016. The step is straight: batch norm
moves its averages, weights decay, SGD has momentum. Size `small` has all 50 layers, on small images
and with few channels; `tiny` has one block a stage. Data: pieces of scikit-learn's two photographs;
the class of a piece is where it was cut out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.programs.images import NUM_CLASSES, cut_photographs
from benchmarks.programs.program import Program

FEATURE = "none beyond a loop over layers"
DATA = "pieces of scikit-learn's sample photographs"
SIZES = {
    "tiny": dict(side=32, width=4, blocks_per_stage=(1, 1), batch=4),
    "small": dict(side=48, width=8, blocks_per_stage=(3, 4, 6, 3), batch=8),
    "paper": dict(side=224, width=64, blocks_per_stage=(3, 4, 6, 3), batch=64),
}
_EXPANSION = 4
_WEIGHT_DECAY = 1e-4
# The published learning rate is for this many images in a step, and goes with their number.
_LEARNING_RATE, _REFERENCE_BATCH = 0.1, 256


class Bottleneck(keras.layers.Layer):
    """Convolutions of 1 x 1, 3 x 3 and 1 x 1 around a shortcut, projected on request."""

    def __init__(self, width: int, stride: int, is_projected: bool):
        super().__init__()
        layers = keras.layers
        self.convolutions = [
            layers.Conv2D(width, 1, use_bias=False),
            layers.Conv2D(width, 3, stride, "same", use_bias=False),
            layers.Conv2D(_EXPANSION * width, 1, use_bias=False),
        ]
        # The last scale starts at zero, as in Goyal et al., 2017: a block begins as its shortcut.
        self.norms = [layers.BatchNormalization() for _ in self.convolutions[:-1]]
        self.norms.append(layers.BatchNormalization(gamma_initializer="zeros"))
        self.projection: Any = None
        self.projection_norm: Any = None
        if is_projected:
            self.projection = layers.Conv2D(_EXPANSION * width, 1, stride, use_bias=False)
            self.projection_norm = layers.BatchNormalization()

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        h = x
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            h = norm(convolution(h), training=training)
            if i < len(self.convolutions) - 1:
                h = tf.nn.relu(h)
        if self.projection is not None:
            x = self.projection_norm(self.projection(x), training=training)
        return tf.nn.relu(h + x)


class ResNet(keras.Model):
    """A stem, stages of bottlenecks, and a linear classifier."""

    def __init__(self, width: int, blocks_per_stage: Sequence[int]):
        super().__init__()
        layers = keras.layers
        self.stem = layers.Conv2D(width, 7, 2, "same", use_bias=False)
        self.stem_norm = layers.BatchNormalization()
        self.pool = layers.MaxPooling2D(3, 2, "same")
        self.blocks = [
            Bottleneck(
                width=width * 2**stage,
                stride=2 if stage > 0 and i == 0 else 1,
                is_projected=i == 0,
            )
            for stage, num_blocks in enumerate(blocks_per_stage)
            for i in range(num_blocks)
        ]
        self.average = layers.GlobalAveragePooling2D()
        self.classifier = layers.Dense(NUM_CLASSES)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        h = tf.nn.relu(self.stem_norm(self.stem(images), training=training))
        h = self.pool(h)
        for block in self.blocks:
            h = block(h, training=training)
        return self.classifier(self.average(h))


def make(
    wrap: Callable,
    *,
    side: int,
    width: int,
    blocks_per_stage: Sequence[int],
    batch: int,
    num_batches: int = 4,
    seed: int = 0,
) -> Program:
    """Build the program on float32[batch, side, side, 3] images."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    pieces = [cut_photographs(rng, batch, side) for _ in range(num_batches)]
    batches = [(tf.constant(images), tf.constant(labels)) for images, labels in pieces]
    model = ResNet(width, blocks_per_stage)
    model(batches[0][0])
    optimizer = keras.optimizers.SGD(_LEARNING_RATE * batch / _REFERENCE_BATCH, momentum=0.9)
    optimizer.build(model.trainable_variables)
    kernels = [v for v in model.trainable_variables if v.name == "kernel"]
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @wrap
    def train_step(images, labels):
        with tf.GradientTape() as tape:
            loss = cross_entropy(labels, model(images, training=True))
            for kernel in kernels:
                loss += _WEIGHT_DECAY * tf.nn.l2_loss(kernel)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return Program(
        step=lambda i: train_step(*batches[i % num_batches]),
        variables=[variable.value for variable in (*model.variables, *optimizer.variables)],
        function=train_step,
    )
