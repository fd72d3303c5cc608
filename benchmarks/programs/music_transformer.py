"""Music Transformer: continue a piece of music, given as a sequence of events.

Huang et al., "Music Transformer", 2018: attention scores have a term for the distance of two
events, computed by *skewing* a matrix of products with distance embeddings.

What makes it hard: the step takes no arguments. Its Python draws the batch itself, from pieces of
different lengths with a generator of its own; it sets the learning rate for every step as a plain
number; and it keeps a history in lists. Data: generated pieces (scales with a varying tempo), as
note-on, note-off, time-shift and velocity events, the encoding of the original.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from benchmarks.programs.layers import Dropout, draw_weight, split_variables
from benchmarks.programs.program import Program
from benchmarks.programs.transformer import Attention, Block, Dimensions, causal_mask

FEATURE = "Python state, and a data pipeline in Python inside the step"
DATA = "generated pieces of music"

# 128 note-on, 128 note-off, 100 time-shift and 32 velocity events, and padding.
NUM_NOTES, NUM_SHIFTS, NUM_VELOCITIES = 128, 100, 32
VOCABULARY = 2 * NUM_NOTES + NUM_SHIFTS + NUM_VELOCITIES + 1
SIZES = {
    "tiny": dict(dimensions=Dimensions(32, 2, 2, length=32, vocabulary=VOCABULARY), batch=2),
    "small": dict(dimensions=Dimensions(128, 4, 4, length=96, vocabulary=VOCABULARY), batch=4),
    "paper": dict(dimensions=Dimensions(512, 6, 8, length=2048, vocabulary=VOCABULARY), batch=2),
}
_MAJOR_SCALE = (0, 2, 4, 5, 7, 9, 11)
_LABEL_SMOOTHING = 0.1


class RelativeAttention(Attention):
    """Attention whose scores also depend on how far back a key is."""

    def __init__(self, rng: np.random.Generator, dimensions: Dimensions):
        super().__init__(rng, dimensions)
        self.distances = draw_weight(rng, dimensions.length, dimensions.head_width)

    def score(self, q: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
        by_distance = tf.einsum("bhld,md->bhlm", q, self.distances)
        return super().score(q, k) + self._skew(by_distance)

    def _skew(self, by_distance: tf.Tensor) -> tf.Tensor:
        """Turn [.., query, distance] into [.., query, key]: shift each row by its index."""
        batch, heads, length, _ = by_distance.shape
        padded = tf.pad(by_distance, [[0, 0], [0, 0], [0, 0], [1, 0]])
        return tf.reshape(padded, [batch, heads, length + 1, length])[:, :, 1:]


class MusicTransformer(tf.Module):
    """A decoder with relative attention."""

    def __init__(
        self, rng: np.random.Generator, dimensions: Dimensions, seeds: keras.random.SeedGenerator
    ):
        super().__init__()
        self.width = dimensions.width
        self.events = draw_weight(rng, dimensions.vocabulary, dimensions.width)
        self.head = draw_weight(rng, dimensions.width, dimensions.vocabulary)
        self.dropout = Dropout(dimensions.dropout, seeds)
        self.blocks = [
            Block(rng, RelativeAttention(rng, dimensions), seeds, norm_first=False)
            for _ in range(dimensions.num_layers)
        ]
        self.mask = causal_mask(dimensions.length)

    def __call__(self, events: tf.Tensor) -> tf.Tensor:
        """Return logits float32[batch, length, vocabulary]."""
        h = self.dropout(tf.gather(self.events, events) * self.width**0.5)
        for block in self.blocks:
            h = block(h, self.mask)
        rows = tf.matmul(tf.reshape(h, [-1, self.width]), self.head)
        return tf.reshape(rows, [*events.shape, -1])


class Pieces:
    """The data pipeline: draws windows of pieces, with Python's own generator."""

    def __init__(self, seed: int, num_pieces: int, length: int):
        self.random = random.Random(seed)
        self.length = length
        self.pieces = [self._compose(length) for _ in range(num_pieces)]
        self.num_drawn = 0

    def next_batch(self, batch: int) -> np.ndarray:
        """Return int32[batch, length + 1] events, each row a window of a piece drawn at random."""
        rows = []
        for _ in range(batch):
            piece = self.random.choice(self.pieces)
            start = self.random.randrange(len(piece) - self.length)
            rows.append(piece[start : start + self.length + 1])
        self.num_drawn += batch
        return np.array(rows, np.int32)

    def _compose(self, length: int) -> list[int]:
        """Return the events of a piece: notes of a scale that wander up and down."""
        root, step = self.random.randrange(40, 60), 0
        events: list[int] = []
        shift = self.random.randrange(10, NUM_SHIFTS)
        while len(events) < 3 * length + self.random.randrange(length):
            step = min(max(step + self.random.choice((-2, -1, 1, 2)), 0), 20)
            octave, degree = divmod(step, len(_MAJOR_SCALE))
            note = root + 12 * octave + _MAJOR_SCALE[degree]
            velocity = 2 * NUM_NOTES + NUM_SHIFTS + self.random.randrange(NUM_VELOCITIES)
            events += [velocity, note, 2 * NUM_NOTES + shift, NUM_NOTES + note]
        return events


class Trainer:
    """The training loop's state: data, learning rate and history, all plain Python."""

    def __init__(self, dimensions: Dimensions, batch: int, warmup_steps: int, seed: int):
        rng, self.seeds = np.random.default_rng(seed), keras.random.SeedGenerator(seed)
        self.model = MusicTransformer(rng, dimensions, self.seeds)
        self.pieces = Pieces(seed, num_pieces=16, length=dimensions.length)
        self.trainable, _ = split_variables([self.model])
        self.optimizer = keras.optimizers.Adam(0.0, beta_2=0.98, epsilon=1e-9)
        self.optimizer.build(self.trainable)
        self.batch, self.warmup_steps = batch, warmup_steps
        self.num_steps = 0
        self.learning_rates: list[float] = []
        self.num_events_seen: list[int] = []

    def schedule(self) -> float:
        """Return the learning rate of this step: up, then down with the root of the step."""
        step = self.num_steps
        return self.model.width**-0.5 * min(step**-0.5, step * self.warmup_steps**-1.5)

    def train_step(self) -> tf.Tensor:
        """Draw a batch, learn from it, and return the smoothed loss."""
        self.num_steps += 1
        self.optimizer.learning_rate = self.schedule()
        events = self.pieces.next_batch(self.batch)
        inputs, targets = tf.constant(events[:, :-1]), tf.constant(events[:, 1:])
        with tf.GradientTape() as tape:
            logits = self.model(inputs)
            loss = _smoothed_loss(targets, logits)
        gradients = tape.gradient(loss, self.trainable)
        self.optimizer.apply_gradients(zip(gradients, self.trainable, strict=True))
        self.learning_rates.append(self.schedule())
        self.num_events_seen.append(int(events.size))
        return loss


def make(
    wrap: Callable,
    *,
    dimensions: Dimensions,
    batch: int,
    warmup_steps: int = 400,
    seed: int = 0,
) -> Program:
    """Build the program; its batches are int32[batch, length + 1] events."""
    trainer = Trainer(dimensions, batch, warmup_steps, seed)
    train_step = wrap(trainer.train_step)
    state = [variable.value for variable in trainer.optimizer.variables]
    return Program(
        step=lambda i: train_step(),
        variables=[*trainer.trainable, *state, trainer.seeds.state.value],
        function=train_step,
        python_state=lambda: {
            "num_steps": trainer.num_steps,
            "num_drawn": trainer.pieces.num_drawn,
            "learning_rates": list(trainer.learning_rates),
            "num_events_seen": list(trainer.num_events_seen),
        },
    )


def _smoothed_loss(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return the cross entropy with a tenth of each target spread over the vocabulary."""
    vocabulary = logits.shape[-1]
    rest = _LABEL_SMOOTHING / vocabulary
    smoothed = tf.one_hot(targets, vocabulary, 1.0 - _LABEL_SMOOTHING + rest, rest)
    return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(smoothed, logits))
