"""Real images that scikit-learn carries, and scenes made of them.

The *digits* are 1,797 handwritten digits of 8 x 8 pixels; the *photographs* are two of 427 x 640. A
*scene* is a piece of a photograph with digits pasted on it: its pixels are real, where the digits
are was drawn at random, so that the true boxes are known.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

NUM_CLASSES = 10
_DIGIT_SIDE = 8


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture and what is on it.

    image: float32[side, side, 3] in [0, 1].
    boxes: float32[n, 4], each (y_min, x_min, y_max, x_max) in pixels.
    labels: int64[n], the digit in each box.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


@functools.cache
def load_digit_images(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the digits, float32[1797, side, side, 1] in [-1, 1], and their labels int64[1797]."""
    digits = load_digits()
    resized = np.stack([_resize(image / 16.0, side) for image in digits.images])
    return (2.0 * resized - 1.0)[..., np.newaxis].astype(np.float32), digits.target.astype(np.int64)


@functools.cache
def load_photographs() -> tuple[np.ndarray, ...]:
    """Return the photographs, each float32[427, 640, 3] in [0, 1]."""
    return tuple(image.astype(np.float32) / 255.0 for image in load_sample_images().images)


def cut_photographs(
    rng: np.random.Generator, num_images: int, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return pieces of the photographs and where they are from.

    Returns:
      float32[num_images, side, side, 3] in [-1, 1], and int64[num_images]: five vertical strips
      of each of the two photographs make ten classes.
    """
    photographs = load_photographs()
    height, width, _ = photographs[0].shape
    strip_width = width // (NUM_CLASSES // len(photographs))
    labels = rng.integers(0, NUM_CLASSES, num_images)
    images = np.empty((num_images, side, side, 3), np.float32)
    for i, label in enumerate(labels):
        photograph, strip = divmod(int(label), NUM_CLASSES // len(photographs))
        top = int(rng.integers(0, height - strip_width + 1))
        piece = photographs[photograph][top : top + strip_width]
        piece = piece[:, strip * strip_width : (strip + 1) * strip_width]
        images[i] = 2.0 * _resize_colored(piece, side) - 1.0
    return images, labels


def draw_scene(
    rng: np.random.Generator,
    side: int,
    *,
    max_objects: int = 4,
    object_sides: tuple[float, float] = (0.2, 0.5),
) -> Scene:
    """Draw a scene of one to `max_objects` digits, whose sides are fractions of the picture's."""
    image = cut_photographs(rng, 1, side)[0][0] * 0.25 + 0.375
    boxes, labels = [], []
    for _ in range(int(rng.integers(1, max_objects + 1))):
        height, width = (int(side * rng.uniform(*object_sides)) for _ in range(2))
        top, left = (int(rng.integers(0, side - extent + 1)) for extent in (height, width))
        label = _paste_digit(rng, image[top : top + height, left : left + width])
        boxes.append((top, left, top + height, left + width))
        labels.append(label)
    return Scene(image, np.array(boxes, np.float32), np.array(labels, np.int64))


def _paste_digit(rng: np.random.Generator, window: np.ndarray) -> int:
    """Add a random digit in a random color to a window of a picture; return which digit."""
    digits, targets = load_digit_images(_DIGIT_SIDE)
    chosen = int(rng.integers(len(targets)))
    strokes = _resize((digits[chosen, ..., 0] + 1.0) / 2.0, window.shape[1], window.shape[0])
    color = rng.uniform(0.5, 1.0, 3).astype(np.float32)
    window += strokes[..., np.newaxis] * (color - window)
    return int(targets[chosen])


def _resize(image: np.ndarray, width: int, height: int | None = None) -> np.ndarray:
    """Return a gray float image in another size, bilinearly; square unless `height` is given."""
    picture = Image.fromarray(image.astype(np.float32))
    return np.asarray(picture.resize((width, height or width), Image.Resampling.BILINEAR))


def _resize_colored(image: np.ndarray, side: int) -> np.ndarray:
    return np.stack([_resize(image[..., c], side) for c in range(image.shape[-1])], axis=-1)
