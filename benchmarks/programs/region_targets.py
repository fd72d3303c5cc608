"""What Faster R-CNN is to learn from a picture, decided in NumPy with a generator of its own.

Both stages compare boxes with the true ones and sample a few positives and negatives, as many as
there are: how many, and so the shapes of all that follows, depends on the data.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from benchmarks.programs.boxes import encode_offsets, iou_matrix


@dataclasses.dataclass(frozen=True)
class Targets:
    """Sampled boxes and what is to be predicted of them; the positives come first.

    rows: int32[n], which of the boxes were sampled.
    labels: int32[n], 0 for background, else 1 + class (in the first stage: 1).
    offsets: float32[num_positives, 4], from the positive boxes to the true ones.
    """

    rows: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray

    @property
    def num_positives(self) -> int:
        return len(self.offsets)


class AnchorSampler:
    """First stage: which anchors are objects. Positive from 0.6 IoU, and each object's best one."""

    def __init__(self, anchors: np.ndarray, num_samples: int, rng: np.random.Generator):
        self.anchors, self.num_samples, self.rng = anchors, num_samples, rng

    def sample(self, boxes: np.ndarray) -> Targets:
        """Return targets for up to `num_samples` anchors, at most half of them positive."""
        overlaps = iou_matrix(self.anchors, boxes)
        is_positive = overlaps.max(axis=1) >= 0.6
        is_positive[overlaps.argmax(axis=0)] = True
        is_negative = (overlaps.max(axis=1) < 0.3) & ~is_positive
        rows, num_positives = _choose(self.rng, is_positive, is_negative, self.num_samples, 0.5)
        positives = rows[:num_positives]
        matched = boxes[overlaps[positives].argmax(axis=1)]
        labels = (np.arange(len(rows)) < num_positives).astype(np.int32)
        return Targets(rows, labels, encode_offsets(matched, self.anchors[positives]))


class ProposalSampler:
    """Second stage: which proposals show what. Positive from 0.5 IoU; background below."""

    def __init__(self, num_samples: int, rng: np.random.Generator):
        self.num_samples, self.rng = num_samples, rng

    def sample(
        self, proposals: np.ndarray, boxes: np.ndarray, classes: np.ndarray
    ) -> tuple[np.ndarray, Targets]:
        """Return all candidates, float32[m, 4] (the true boxes are among them), and targets."""
        candidates = np.concatenate([boxes, proposals])
        overlaps = iou_matrix(candidates, boxes)
        is_positive = overlaps.max(axis=1) >= 0.5
        rows, num_positives = _choose(self.rng, is_positive, ~is_positive, self.num_samples, 0.25)
        positives = rows[:num_positives]
        matched = overlaps[positives].argmax(axis=1)
        labels = np.zeros(len(rows), np.int32)
        labels[:num_positives] = 1 + classes[matched]
        return candidates, Targets(
            rows, labels, encode_offsets(boxes[matched], candidates[positives])
        )


def _choose(
    rng: np.random.Generator,
    is_positive: np.ndarray,
    is_negative: np.ndarray,
    num_samples: int,
    positive_share: float,
) -> tuple[np.ndarray, int]:
    """Return the rows chosen, int32[n], positives first, and how many of them are positive."""
    positives, negatives = np.flatnonzero(is_positive), np.flatnonzero(is_negative)
    num_positives = min(len(positives), int(num_samples * positive_share))
    num_negatives = min(len(negatives), num_samples - num_positives)
    chosen = [
        rng.permutation(positives)[:num_positives],
        rng.permutation(negatives)[:num_negatives],
    ]
    return np.concatenate(chosen).astype(np.int32), num_positives
