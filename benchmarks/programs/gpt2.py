"""GPT-2: predict the next token.

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019. Output and input share
their embedding, gradients are clipped by their global norm. The step has no Python of its own
besides the loop over layers. Data: docstrings of Python's standard library, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from benchmarks.programs.layers import Dropout, LayerNorm, draw_weight, split_variables
from benchmarks.programs.optimizers import AdamW
from benchmarks.programs.program import Program
from benchmarks.programs.text import SEP, Vocabulary, load_documents
from benchmarks.programs.transformer import Attention, Block, Dimensions, causal_mask

FEATURE = "none beyond a loop over layers"
DATA = "docstrings of Python's standard library"
SIZES = {
    "tiny": dict(dimensions=Dimensions(32, 2, 2, length=32, vocabulary=400), batch=4),
    "small": dict(dimensions=Dimensions(128, 4, 4, length=64, vocabulary=2000), batch=8),
    "paper": dict(dimensions=Dimensions(768, 12, 12, length=1024, vocabulary=50257), batch=8),
}
_CLIP_NORM = 1.0


class GPT2(tf.Module):
    """A stack of blocks that see only what came before; the embedding is used twice."""

    def __init__(
        self, rng: np.random.Generator, dimensions: Dimensions, seeds: keras.random.SeedGenerator
    ):
        super().__init__()
        width = dimensions.width
        self.tokens = draw_weight(rng, dimensions.vocabulary, width)
        self.positions = draw_weight(rng, dimensions.length, width, deviation=0.01)
        self.dropout = Dropout(dimensions.dropout, seeds)
        self.blocks = [
            Block(rng, Attention(rng, dimensions), seeds, norm_first=True)
            for _ in range(dimensions.num_layers)
        ]
        self.norm = LayerNorm(width)
        self.mask = causal_mask(dimensions.length)

    def __call__(self, tokens: tf.Tensor) -> tf.Tensor:
        """Return logits float32[batch * length, vocabulary] for int32[batch, length] tokens."""
        h = self.dropout(tf.gather(self.tokens, tokens) + self.positions)
        for block in self.blocks:
            h = block(h, self.mask)
        rows = tf.reshape(self.norm(h), [-1, h.shape[-1]])
        return tf.matmul(rows, self.tokens, transpose_b=True)


def make(
    wrap: Callable,
    *,
    dimensions: Dimensions,
    batch: int,
    learning_rate: float = 2.5e-4,
    num_batches: int = 4,
    seed: int = 0,
) -> Program:
    """Build the program on int32[batch, length] tokens and the ones that follow them."""
    rng, seeds = np.random.default_rng(seed), keras.random.SeedGenerator(seed)
    model = GPT2(rng, dimensions, seeds)
    trainable, _ = split_variables([model])
    optimizer = AdamW(trainable, learning_rate)
    batches = _draw_batches(rng, dimensions, batch, num_batches)

    @wrap
    def train_step(tokens, targets):
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                tf.reshape(targets, [-1]), model(tokens)
            )
            loss = tf.reduce_mean(losses)
        gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, trainable), _CLIP_NORM)
        optimizer.apply(gradients)
        return loss

    return Program(
        step=lambda i: train_step(*batches[i % num_batches]),
        variables=[*trainable, *optimizer.state, seeds.state.value],
        function=train_step,
    )


def _draw_batches(
    rng: np.random.Generator, dimensions: Dimensions, batch: int, num_batches: int
) -> list[tuple[tf.Tensor, tf.Tensor]]:
    documents = load_documents()
    vocabulary = Vocabulary(documents, dimensions.vocabulary)
    stream = [token for doc in documents for token in (*vocabulary.encode(doc.words), SEP)]
    tokens = np.array(stream, np.int32)
    batches = []
    for _ in range(num_batches):
        starts = rng.integers(0, len(tokens) - dimensions.length, batch)
        rows = np.stack([tokens[start : start + dimensions.length + 1] for start in starts])
        batches.append((tf.constant(rows[:, :-1]), tf.constant(rows[:, 1:])))
    return batches
