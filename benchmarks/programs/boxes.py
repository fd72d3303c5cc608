"""Boxes and anchors, in NumPy where Python decides and in TensorFlow where gradients flow.

A box is (y_min, x_min, y_max, x_max) in pixels. An *anchor* is a box that a detector starts from;
what it predicts are *offsets* (dy, dx, dh, dw): the shift of the center in units of the anchor's
height and width, and the logarithms of the factors of height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

_LARGEST_LOG_FACTOR = float(np.log(1000.0 / 16))


def make_anchors(
    side: int, stride: int, scales: Sequence[float], ratios: Sequence[float]
) -> np.ndarray:
    """Return float32[n, 4]: at each point of the feature map, a box for each scale and ratio.

    Args:
      side: of the picture, a multiple of `stride`.
      stride: pixels between two points of the feature map.
      scales: square roots of the boxes' areas, in pixels.
      ratios: heights over widths.
    """
    heights = np.array([scale * ratio**0.5 for scale in scales for ratio in ratios])
    widths = np.array([scale / ratio**0.5 for scale in scales for ratio in ratios])
    half = np.stack([-heights, -widths, heights, widths], axis=1) / 2.0
    centers = (np.arange(side // stride) + 0.5) * stride
    y, x = np.meshgrid(centers, centers, indexing="ij")
    points = np.stack([y, x, y, x], axis=-1).reshape(-1, 1, 4)
    return (points + half).reshape(-1, 4).astype(np.float32)


def iou_matrix(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return float32[n, m]: intersection over union of each box of n with each of m."""
    low = np.maximum(first[:, np.newaxis, :2], second[:, :2])
    high = np.minimum(first[:, np.newaxis, 2:], second[:, 2:])
    intersection = np.prod(np.clip(high - low, 0.0, None), axis=-1)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1) for boxes in (first, second)]
    union = areas[0][:, np.newaxis] + areas[1] - intersection
    return intersection / np.maximum(union, 1e-6)


def encode_offsets(boxes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Return float32[n, 4]: the offsets that turn each anchor into its box."""
    box_sizes, anchor_sizes = boxes[:, 2:] - boxes[:, :2], anchors[:, 2:] - anchors[:, :2]
    shifts = (boxes[:, :2] + boxes[:, 2:] - anchors[:, :2] - anchors[:, 2:]) / 2.0
    factors = np.log(np.maximum(box_sizes, 1.0) / np.maximum(anchor_sizes, 1.0))
    return np.concatenate([shifts / anchor_sizes, factors], axis=1).astype(np.float32)


def decode_offsets(offsets: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
    """Return float32[n, 4]: the boxes that offsets make of anchors."""
    sizes = anchors[:, 2:] - anchors[:, :2]
    centers = anchors[:, :2] + sizes / 2.0 + offsets[:, :2] * sizes
    halves = sizes * tf.exp(tf.minimum(offsets[:, 2:], _LARGEST_LOG_FACTOR)) / 2.0
    return tf.concat([centers - halves, centers + halves], axis=1)


def clip_to_picture(boxes: tf.Tensor, side: int) -> tf.Tensor:
    """Return the parts of the boxes that are within a square picture."""
    return tf.clip_by_value(boxes, 0.0, float(side))


def smooth_l1(difference: tf.Tensor) -> tf.Tensor:
    """Return half the square of small differences and the distance of large ones, element-wise."""
    distance = tf.abs(difference)
    return tf.where(distance < 1.0, 0.5 * distance**2, distance - 0.5)


def iou(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Return the intersection over union of boxes float32[..., 4] that broadcast."""
    intersection, union = _intersection_and_union(first, second)
    return intersection / union


def generalized_iou(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Return IoU less the share of the enclosing box that neither covers; in [-1, 1]."""
    intersection, union = _intersection_and_union(first, second)
    low = tf.minimum(first[..., :2], second[..., :2])
    high = tf.maximum(first[..., 2:], second[..., 2:])
    enclosing = tf.maximum(tf.reduce_prod(high - low, axis=-1), 1e-6)
    return intersection / union - (enclosing - union) / enclosing


def _intersection_and_union(first: tf.Tensor, second: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    low = tf.maximum(first[..., :2], second[..., :2])
    high = tf.minimum(first[..., 2:], second[..., 2:])
    overlap = tf.maximum(high - low, 0.0)
    intersection = overlap[..., 0] * overlap[..., 1]
    union = _area(first) + _area(second) - intersection
    return intersection, tf.maximum(union, 1e-6)


def _area(boxes: tf.Tensor) -> tf.Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
