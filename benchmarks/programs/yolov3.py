"""YOLOv3: find objects in one pass, at three scales.

Redmon, Farhadi, "YOLOv3: An Incremental Improvement", 2018; the box loss is generalized IoU, as in
many later implementations. Darknet-53 is the backbone of size `paper`; the others have fewer blocks
and channels.

What makes it hard: loops in Python over true boxes, scales and anchors assign the targets of every
batch. As in the original, the data pipeline does that, before it calls the training step, so that
it is part of a step's time and is not inside the decorated function. Data: digits of scikit-learn
pasted on its photographs at random places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from benchmarks.programs.boxes import generalized_iou, iou
from benchmarks.programs.images import NUM_CLASSES, Scene, draw_scene
from benchmarks.programs.layers import Convolution, ConvolutionUnit, split_variables
from benchmarks.programs.optimizers import Momentum
from benchmarks.programs.program import Program
from benchmarks.programs.yolo_targets import (
    ANCHORS_PER_SCALE,
    MAX_OBJECTS,
    STRIDES,
    TargetAssigner,
)

FEATURE = "targets assigned by loops in Python, in the data pipeline"
DATA = "scikit-learn's digits pasted on its photographs"
SIZES = {
    "tiny": dict(side=64, width=4, blocks_per_stage=(1, 1, 1, 1, 1), batch=2),
    "small": dict(side=96, width=4, blocks_per_stage=(1, 1, 2, 2, 1), batch=4),
    "paper": dict(side=416, width=32, blocks_per_stage=(1, 2, 8, 8, 4), batch=8),
}
_IGNORED_IOU = 0.5
_CLIP_NORM = 10.0
_NUM_OUTPUTS = ANCHORS_PER_SCALE * (5 + NUM_CLASSES)


def _unit(rng: np.random.Generator, num_in: int, num_out: int, side: int, stride: int = 1):
    return ConvolutionUnit(rng, num_in, num_out, side, stride, activation="leaky_relu")


class DarknetBlock(tf.Module):
    """A 1 x 1 convolution to half the channels and a 3 x 3 one back, around a shortcut."""

    def __init__(self, rng: np.random.Generator, channels: int):
        super().__init__()
        self.narrow = _unit(rng, channels, channels // 2, 1)
        self.widen = _unit(rng, channels // 2, channels, 3)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return x + self.widen(self.narrow(x))


class Darknet(tf.Module):
    """The backbone: stages that halve the picture and double the channels."""

    def __init__(self, rng: np.random.Generator, width: int, blocks_per_stage: Sequence[int]):
        super().__init__()
        self.stem = _unit(rng, 3, width, 3)
        self.stages = []
        for stage, num_blocks in enumerate(blocks_per_stage):
            num_in = width * 2**stage
            shrink = _unit(rng, num_in, 2 * num_in, 3, 2)
            blocks = [DarknetBlock(rng, 2 * num_in) for _ in range(num_blocks)]
            self.stages.append([shrink, *blocks])

    def __call__(self, images: tf.Tensor) -> list[tf.Tensor]:
        """Return the features of the last three stages, the finest first."""
        h, features = self.stem(images), []
        for stage in self.stages:
            for layer in stage:
                h = layer(h)
            features.append(h)
        return features[-len(STRIDES) :]


class Head(tf.Module):
    """What predicts at one scale; `passed_on` goes up to the next finer scale."""

    def __init__(self, rng: np.random.Generator, num_in: int, channels: int):
        super().__init__()
        widths = [(num_in, channels, 1), (channels, 2 * channels, 3), (2 * channels, channels, 1)]
        self.trunk = [_unit(rng, *each) for each in widths]
        self.last = _unit(rng, channels, 2 * channels, 3)
        self.out = Convolution(rng, 2 * channels, _NUM_OUTPUTS, 1, use_bias=True)

    def __call__(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return raw predictions float32[batch, cells, cells, 3, 15], and `passed_on`."""
        for layer in self.trunk:
            x = layer(x)
        raw = self.out(self.last(x))
        batch, cells, _, _ = raw.shape
        return tf.reshape(raw, [batch, cells, cells, ANCHORS_PER_SCALE, 5 + NUM_CLASSES]), x


class YOLOv3(tf.Module):
    """Darknet, and heads at three scales; the finer ones also see what the coarser ones saw."""

    def __init__(self, rng: np.random.Generator, width: int, blocks_per_stage: Sequence[int]):
        super().__init__()
        self.darknet = Darknet(rng, width, blocks_per_stage)
        fine, middle, coarse = (width * 2**stage for stage in (3, 4, 5))
        self.heads = [
            Head(rng, fine + fine // 2, fine // 2),
            Head(rng, middle + middle // 2, middle // 2),
            Head(rng, coarse, coarse // 2),
        ]
        self.reductions = [
            _unit(rng, middle // 2, fine // 2, 1),
            _unit(rng, coarse // 2, middle // 2, 1),
        ]

    def __call__(self, images: tf.Tensor) -> list[tf.Tensor]:
        """Return the raw predictions of each scale, the finest first."""
        features = self.darknet(images)
        raw, passed_on = self.heads[-1](features[-1])
        predictions = [raw]
        for i in (1, 0):
            h = self.reductions[i](passed_on)
            cells = features[i].shape[1]
            h = tf.image.resize(h, [cells, cells], method="nearest")
            raw, passed_on = self.heads[i](tf.concat([h, features[i]], axis=-1))
            predictions.insert(0, raw)
        return predictions


class ScaleLoss:
    """The loss at one scale, whose cells are `stride` pixels wide.

    Args:
      anchors: float32[3, 2], heights and widths in pixels.
    """

    def __init__(self, stride: int, anchors: np.ndarray, side: int):
        cells = np.arange(side // stride, dtype=np.float32)
        y, x = np.meshgrid(cells, cells, indexing="ij")
        self.stride, self.side = stride, side
        self.grid = tf.constant(np.stack([y, x], axis=-1)[:, :, np.newaxis])
        self.anchors = tf.constant(anchors)

    def __call__(self, raw: tf.Tensor, target: tf.Tensor, true_boxes: tf.Tensor) -> tf.Tensor:
        """Return the sum of box, objectness and class loss per picture, float32[]."""
        boxes = self._decode(raw)
        is_object, classes = target[..., 4], target[..., 5:]
        box_loss = is_object * self._weigh(target) * (1.0 - generalized_iou(boxes, target[..., :4]))
        best = tf.reduce_max(iou(boxes[..., tf.newaxis, :], _spread(true_boxes)), axis=-1)
        is_background = (1.0 - is_object) * tf.cast(best < _IGNORED_IOU, tf.float32)
        entropy = tf.nn.sigmoid_cross_entropy_with_logits(is_object, raw[..., 4])
        object_loss = (is_object + is_background) * entropy
        class_losses = tf.nn.sigmoid_cross_entropy_with_logits(classes, raw[..., 5:])
        class_loss = is_object * tf.reduce_sum(class_losses, axis=-1)
        return tf.reduce_sum(box_loss + object_loss + class_loss) / raw.shape[0]

    def _decode(self, raw: tf.Tensor) -> tf.Tensor:
        """Return the boxes that raw predictions stand for, float32[batch, cells, cells, 3, 4]."""
        centers = (tf.sigmoid(raw[..., :2]) + self.grid) * self.stride
        halves = tf.exp(tf.minimum(raw[..., 2:4], 4.0)) * self.anchors / 2.0
        return tf.concat([centers - halves, centers + halves], axis=-1)

    def _weigh(self, target: tf.Tensor) -> tf.Tensor:
        """Return weights by which small boxes count more: 2 less their share of the picture."""
        sizes = target[..., 2:4] - target[..., :2]
        return 2.0 - sizes[..., 0] * sizes[..., 1] / self.side**2


def _spread(true_boxes: tf.Tensor) -> tf.Tensor:
    """Return float32[batch, 1, 1, 1, 4, 4], to broadcast over cells and anchors."""
    return true_boxes[:, tf.newaxis, tf.newaxis, tf.newaxis]


class Pipeline:
    """Yields batches: pictures, and their targets assigned anew each time."""

    def __init__(self, scenes: Sequence[Scene], batch: int, assigner: TargetAssigner):
        self.scenes, self.batch, self.assigner = scenes, batch, assigner

    def load(self, step: int) -> list[tf.Tensor]:
        """Return pictures float32[batch, side, side, 3], three target grids, and true boxes."""
        first = step * self.batch
        chosen = [self.scenes[(first + i) % len(self.scenes)] for i in range(self.batch)]
        pictures = np.stack([scene.image for scene in chosen])
        return [tf.constant(array) for array in (pictures, *self.assigner.assign(chosen))]


def make(
    wrap: Callable,
    *,
    side: int,
    width: int,
    blocks_per_stage: Sequence[int],
    batch: int,
    learning_rate: float = 1e-4,
    num_scenes: int = 16,
    seed: int = 0,
) -> Program:
    """Build the program on pictures float32[batch, side, side, 3]."""
    rng = np.random.default_rng(seed)
    model, assigner = YOLOv3(rng, width, blocks_per_stage), TargetAssigner(side)
    scenes = [draw_scene(rng, side, max_objects=MAX_OBJECTS) for _ in range(num_scenes)]
    pipeline = Pipeline(scenes, batch, assigner)
    scale_losses = [
        ScaleLoss(stride, anchors, side)
        for stride, anchors in zip(STRIDES, assigner.anchors, strict=True)
    ]
    trainable, others = split_variables([model])
    optimizer = Momentum(trainable, learning_rate)

    @wrap
    def train_step(pictures, fine, middle, coarse, true_boxes):
        with tf.GradientTape() as tape:
            predictions = model(pictures)
            loss = 0.0
            for scale_loss, raw, target in zip(
                scale_losses, predictions, (fine, middle, coarse), strict=True
            ):
                loss += scale_loss(raw, target, true_boxes)
        gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, trainable), _CLIP_NORM)
        optimizer.apply(gradients)
        return loss

    return Program(
        step=lambda i: train_step(*pipeline.load(i)),
        variables=[*trainable, *others, *optimizer.state],
        function=train_step,
    )
