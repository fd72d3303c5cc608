"""The transformer that BERT, GPT-2 and Music Transformer share.

A `Block` is attention and a feed-forward layer, each behind a residual connection; the norm comes
before them (GPT-2) or after (BERT, Music Transformer). How attention scores are made is a method,
which Music Transformer's relative attention overrides.
"""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from benchmarks.programs.layers import Dropout, LayerNorm, Linear

MASKED = -1e9


@dataclasses.dataclass(frozen=True)
class Dimensions:
    """The measures of a transformer.

    width: of the hidden state; num_heads divides it.
    length: tokens in a sequence.
    vocabulary: rows of the embedding.
    dropout: rate after the embedding, the attention and the feed-forward layer.
    """

    width: int
    num_layers: int
    num_heads: int
    length: int
    vocabulary: int
    dropout: float = 0.1

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads


class Attention(tf.Module):
    """Multi-head self-attention."""

    def __init__(self, rng: np.random.Generator, dimensions: Dimensions):
        super().__init__()
        self.dimensions = dimensions
        width = dimensions.width
        self.query, self.key, self.value, self.out = (Linear(rng, width, width) for _ in range(4))

    def __call__(self, h: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        """Attend in float32[batch, length, width]; `mask` is added to the scores."""
        q, k, v = (self._split_heads(layer(h)) for layer in (self.query, self.key, self.value))
        scores = self.score(q, k) / np.sqrt(self.dimensions.head_width).astype(np.float32)
        weights = tf.nn.softmax(scores if mask is None else scores + mask)
        mixed = tf.transpose(tf.matmul(weights, v), [0, 2, 1, 3])
        return self.out(tf.reshape(mixed, h.shape))

    def score(self, q: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
        """Return how much each query attends to each key, float32[batch, heads, length, length]."""
        return tf.matmul(q, k, transpose_b=True)

    def _split_heads(self, x: tf.Tensor) -> tf.Tensor:
        batch, length, _ = x.shape
        shape = [batch, length, self.dimensions.num_heads, self.dimensions.head_width]
        return tf.transpose(tf.reshape(x, shape), [0, 2, 1, 3])


class FeedForward(tf.Module):
    """Two linear layers with GELU between; the inner one is four times as wide."""

    def __init__(self, rng: np.random.Generator, width: int):
        super().__init__()
        self.expand, self.contract = Linear(rng, width, 4 * width), Linear(rng, 4 * width, width)

    def __call__(self, h: tf.Tensor) -> tf.Tensor:
        return self.contract(tf.nn.gelu(self.expand(h), approximate=True))


class Block(tf.Module):
    """One layer of a transformer.

    Args:
      attention: the layer's attention.
      norm_first: normalize the input of each part (GPT-2), rather than each sum (BERT).
    """

    def __init__(
        self,
        rng: np.random.Generator,
        attention: Attention,
        seeds: keras.random.SeedGenerator,
        *,
        norm_first: bool,
    ):
        super().__init__()
        dimensions = attention.dimensions
        self.attention, self.feed_forward = attention, FeedForward(rng, dimensions.width)
        self.norms = [LayerNorm(dimensions.width) for _ in range(2)]
        self.dropout = Dropout(dimensions.dropout, seeds)
        self.norm_first = norm_first

    def __call__(self, h: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        first_norm, second_norm = self.norms
        if self.norm_first:
            h = h + self.dropout(self.attention(first_norm(h), mask))
            return h + self.dropout(self.feed_forward(second_norm(h)))
        h = first_norm(h + self.dropout(self.attention(h, mask)))
        return second_norm(h + self.dropout(self.feed_forward(h)))


def causal_mask(length: int) -> tf.Tensor:
    """Return float32[length, length] that hides what comes later."""
    return tf.constant(np.triu(np.full((length, length), MASKED, np.float32), k=1))
