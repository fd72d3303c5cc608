"""Faster R-CNN: find objects in two stages.

Ren et al., "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks", 2015.
A network proposes regions; those are filtered, sampled, cut out of the feature map and classified.

What makes it hard: tensors are read in mid-step. NumPy filters the proposals and samples from them,
with a generator of its own; how many are left, and so the shapes of the second stage, depends on
the data. Data: digits of scikit-learn pasted on its photographs at random places; one picture a
step, as in the original.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from benchmarks.programs.boxes import clip_to_picture, decode_offsets, make_anchors, smooth_l1
from benchmarks.programs.images import NUM_CLASSES, draw_scene
from benchmarks.programs.layers import Convolution, Linear, split_variables
from benchmarks.programs.optimizers import Momentum
from benchmarks.programs.program import Program
from benchmarks.programs.region_targets import AnchorSampler, ProposalSampler, Targets

FEATURE = "NumPy filters proposals in mid-step: materialization, data-dependent shapes, NMS"
DATA = "scikit-learn's digits pasted on its photographs"
# The backbone halves the picture after each of its groups but the last; 16 is VGG16's stride.
SIZES = {
    "tiny": dict(side=64, channels=(8, 16, 16), convolutions=1, width=32, num_proposals=16),
    "small": dict(side=128, channels=(16, 32, 64, 64), convolutions=1, width=128, num_proposals=64),
    "paper": dict(
        side=608, channels=(64, 128, 256, 512, 512), convolutions=3, width=4096, num_proposals=2000
    ),
}
_RATIOS = (0.5, 1.0, 2.0)
_RELATIVE_SCALES = (0.2, 0.35, 0.5)
_POOLED_SIDE = 7
_NMS_IOU = 0.7
_SMALLEST_SIDE = 4.0
_CLIP_NORM = 10.0


class Backbone(tf.Module):
    """Groups of 3 x 3 convolutions with pooling between them, as in VGG16."""

    def __init__(self, rng: np.random.Generator, channels: Sequence[int], convolutions: int):
        super().__init__()
        widths = [3, *channels]
        self.groups = [
            [
                Convolution(rng, num_in if i == 0 else num_out, num_out, use_bias=True)
                for i in range(convolutions)
            ]
            for num_in, num_out in zip(widths, channels)
        ]
        self.stride = 2 ** (len(channels) - 1)

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        h = images
        for i, group in enumerate(self.groups):
            if i > 0:
                h = tf.nn.max_pool2d(h, 2, 2, "SAME")
            for convolution in group:
                h = tf.nn.relu(convolution(h))
        return h


class FasterRCNN(tf.Module):
    """Backbone, region proposal network, and the head that looks at regions."""

    def __init__(
        self,
        rng: np.random.Generator,
        side: int,
        channels: Sequence[int],
        convolutions: int,
        width: int,
        num_proposals: int,
    ):
        super().__init__()
        self.side, self.num_proposals = side, num_proposals
        self.backbone = Backbone(rng, channels, convolutions)
        num_anchors = len(_RATIOS) * len(_RELATIVE_SCALES)
        depth = channels[-1]
        self.rpn = Convolution(rng, depth, depth, use_bias=True)
        self.rpn_scores = Convolution(rng, depth, num_anchors, 1, use_bias=True)
        self.rpn_offsets = Convolution(rng, depth, 4 * num_anchors, 1, use_bias=True)
        self.hidden = [
            Linear(rng, _POOLED_SIDE**2 * depth, width),
            Linear(rng, width, width),
        ]
        self.classifier = Linear(rng, width, NUM_CLASSES + 1)
        self.regressor = Linear(rng, width, 4 * NUM_CLASSES)
        scales = [side * scale for scale in _RELATIVE_SCALES]
        self.anchors = make_anchors(side, self.backbone.stride, scales, _RATIOS)
        self.anchor_tensor = tf.constant(self.anchors)

    def propose(self, features: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return a score and offsets for each anchor, float32[n] and float32[n, 4]."""
        h = tf.nn.relu(self.rpn(features))
        scores = tf.reshape(self.rpn_scores(h), [-1])
        return scores, tf.reshape(self.rpn_offsets(h), [-1, 4])

    def select(self, scores: tf.Tensor, offsets: tf.Tensor) -> np.ndarray:
        """Return the proposals float32[m, 4]: not too small, the best ones, without duplicates."""
        boxes = clip_to_picture(decode_offsets(offsets, self.anchor_tensor), self.side).numpy()
        scores = scores.numpy()
        is_large = np.all(boxes[:, 2:] - boxes[:, :2] >= _SMALLEST_SIDE, axis=1)
        kept = np.flatnonzero(is_large)
        kept = kept[np.argsort(-scores[kept], kind="stable")][: 4 * self.num_proposals]
        boxes, scores = boxes[kept], scores[kept]
        chosen = tf.image.non_max_suppression(boxes, scores, self.num_proposals, _NMS_IOU)
        return boxes[chosen.numpy()]

    def look(self, features: tf.Tensor, regions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return logits float32[m, 11] and offsets float32[m, 10, 4] for regions of the picture."""
        pooled = tf.image.crop_and_resize(
            features,
            regions / float(self.side),
            tf.zeros([tf.shape(regions)[0]], tf.int32),
            [_POOLED_SIDE, _POOLED_SIDE],
        )
        h = tf.reshape(pooled, [-1, _POOLED_SIDE**2 * features.shape[-1]])
        for layer in self.hidden:
            h = tf.nn.relu(layer(h))
        return self.classifier(h), tf.reshape(self.regressor(h), [-1, NUM_CLASSES, 4])


def proposal_loss(scores: tf.Tensor, offsets: tf.Tensor, targets: Targets) -> tf.Tensor:
    """Return the first stage's loss: is it an object, and where."""
    sampled = tf.gather(scores, targets.rows)
    labels = tf.constant(targets.labels, tf.float32)
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels, sampled)
    differences = tf.gather(offsets, targets.rows[: targets.num_positives]) - targets.offsets
    box_loss = tf.reduce_sum(smooth_l1(differences)) / len(targets.rows)
    return tf.reduce_mean(losses) + box_loss


def region_loss(logits: tf.Tensor, offsets: tf.Tensor, targets: Targets) -> tf.Tensor:
    """Return the second stage's loss: what is it, and where."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets.labels, logits)
    count = targets.num_positives
    positions = np.stack([np.arange(count), targets.labels[:count] - 1], axis=1).astype(np.int32)
    differences = tf.gather_nd(offsets, positions) - targets.offsets
    return tf.reduce_mean(losses) + tf.reduce_sum(smooth_l1(differences)) / len(targets.rows)


def make(
    wrap: Callable,
    *,
    side: int,
    channels: Sequence[int],
    convolutions: int,
    width: int,
    num_proposals: int,
    learning_rate: float = 1e-3,
    num_pictures: int = 8,
    seed: int = 0,
) -> Program:
    """Build the program on pictures float32[1, side, side, 3]."""
    rng = np.random.default_rng(seed)
    model = FasterRCNN(rng, side, channels, convolutions, width, num_proposals)
    anchor_sampler = AnchorSampler(model.anchors, min(256, 4 * num_proposals), rng)
    proposal_sampler = ProposalSampler(min(128, 2 * num_proposals), rng)
    trainable, _ = split_variables([model])
    optimizer = Momentum(trainable, learning_rate)
    scenes = [draw_scene(np.random.default_rng(seed + i), side) for i in range(num_pictures)]
    pictures = [tf.constant(2.0 * scene.image[np.newaxis] - 1.0) for scene in scenes]
    num_regions_seen: list[int] = []

    @wrap
    def train_step(picture, boxes, classes):
        with tf.GradientTape() as tape:
            features = model.backbone(picture)
            scores, offsets = model.propose(features)
            loss = proposal_loss(scores, offsets, anchor_sampler.sample(boxes))
            proposals = model.select(scores, offsets)
            candidates, targets = proposal_sampler.sample(proposals, boxes, classes)
            regions = tf.constant(candidates[targets.rows])
            loss += region_loss(*model.look(features, regions), targets)
        gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, trainable), _CLIP_NORM)
        optimizer.apply(gradients)
        num_regions_seen.append(len(targets.rows))
        return loss

    def step(i):
        scene = scenes[i % num_pictures]
        return train_step(pictures[i % num_pictures], scene.boxes, scene.labels)

    return Program(
        step=step,
        variables=[*trainable, *optimizer.state],
        function=train_step,
        python_state=lambda: list(num_regions_seen),
    )
