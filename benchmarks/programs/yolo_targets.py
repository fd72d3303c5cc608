"""What YOLOv3 is to learn from pictures: a loop in Python over boxes, scales and anchors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.programs.boxes import iou_matrix
from benchmarks.programs.images import NUM_CLASSES, Scene

STRIDES = (8, 16, 32)
ANCHORS_PER_SCALE = 3
MAX_OBJECTS = 4
_POSITIVE_IOU = 0.3
_LABEL_SMOOTHING = 0.01

# Of COCO, as published, as (height, width) in a picture of 416 x 416; small ones first.
PUBLISHED_ANCHORS = np.array(
    [(13, 10), (30, 16), (23, 33), (61, 30), (45, 62), (119, 59), (90, 116), (198, 156), (326, 373)]
)
PUBLISHED_SIDE = 416


def scale_anchors(side: int) -> np.ndarray:
    """Return float32[3, 3, 2]: height and width in pixels, for each scale its three anchors."""
    scaled = PUBLISHED_ANCHORS * (side / PUBLISHED_SIDE)
    return scaled.reshape(len(STRIDES), ANCHORS_PER_SCALE, 2).astype(np.float32)


class TargetAssigner:
    """Assigns each true box to the cells and anchors that are to predict it.

    Args:
      side: of the pictures, a multiple of 32.
    """

    def __init__(self, side: int):
        self.side = side
        self.anchors = scale_anchors(side)

    def assign(self, scenes: Sequence[Scene]) -> list[np.ndarray]:
        """Return the targets of a batch.

        Returns:
          For each scale float32[batch, cells, cells, 3, 5 + 10]: box, objectness, smoothed classes;
          and last the true boxes float32[batch, 4, 4], filled up with zeros.
        """
        grids = [
            np.zeros(
                (len(scenes), *(self.side // stride,) * 2, ANCHORS_PER_SCALE, 5 + NUM_CLASSES),
                np.float32,
            )
            for stride in STRIDES
        ]
        true_boxes = np.zeros((len(scenes), MAX_OBJECTS, 4), np.float32)
        for i, scene in enumerate(scenes):
            true_boxes[i, : len(scene.boxes)] = scene.boxes
            for box, label in zip(scene.boxes, scene.labels, strict=True):
                self._assign_box([grid[i] for grid in grids], box, int(label))
        return [*grids, true_boxes]

    def _assign_box(self, grids: Sequence[np.ndarray], box: np.ndarray, label: int) -> None:
        """Write a box where an anchor fits it well, and anyway where one fits it best."""
        center = (box[:2] + box[2:]) / 2.0
        entry = np.concatenate([box, [1.0], _smooth_one_hot(label)])
        overlaps = np.stack([self._overlaps(scale, center, box) for scale in range(len(STRIDES))])
        best = divmod(int(overlaps.argmax()), ANCHORS_PER_SCALE)
        for scale, stride in enumerate(STRIDES):
            row, column = (int(position // stride) for position in center)
            for anchor in range(ANCHORS_PER_SCALE):
                if overlaps[scale, anchor] > _POSITIVE_IOU or (scale, anchor) == best:
                    grids[scale][row, column, anchor] = entry

    def _overlaps(self, scale: int, center: np.ndarray, box: np.ndarray) -> np.ndarray:
        """Return float[3]: IoU of a box with the anchors of a scale in the middle of its cell."""
        middle = (np.floor(center / STRIDES[scale]) + 0.5) * STRIDES[scale]
        halves = self.anchors[scale] / 2.0
        candidates = np.concatenate([middle - halves, middle + halves], axis=1)
        return iou_matrix(candidates, box[np.newaxis])[:, 0]


def _smooth_one_hot(label: int) -> np.ndarray:
    row = np.full(NUM_CLASSES, _LABEL_SMOOTHING / NUM_CLASSES)
    row[label] += 1.0 - _LABEL_SMOOTHING
    return row
