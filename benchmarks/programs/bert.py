"""The BERT encoder, for `bert_qa` and `bert_cls`.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", 2019. Weights are random:
what a step costs does not depend on them.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from benchmarks.programs.layers import Dropout, LayerNorm, draw_weight
from benchmarks.programs.text import CLS, PAD, SEP, pad
from benchmarks.programs.transformer import MASKED, Attention, Block, Dimensions

# By size; bert-base-uncased's dimensions are the published ones.
DIMENSIONS = {
    "tiny": Dimensions(width=32, num_layers=2, num_heads=2, length=32, vocabulary=400),
    "small": Dimensions(width=128, num_layers=4, num_heads=4, length=64, vocabulary=3000),
    "paper": Dimensions(width=768, num_layers=12, num_heads=12, length=384, vocabulary=30522),
}


class BertEncoder(tf.Module):
    """Embeddings of tokens, positions and segments, and a stack of blocks."""

    def __init__(
        self, rng: np.random.Generator, dimensions: Dimensions, seeds: keras.random.SeedGenerator
    ):
        super().__init__()
        width = dimensions.width
        self.tokens = draw_weight(rng, dimensions.vocabulary, width)
        self.positions = draw_weight(rng, dimensions.length, width)
        self.segments = draw_weight(rng, 2, width)
        self.norm, self.dropout = LayerNorm(width), Dropout(dimensions.dropout, seeds)
        self.blocks = [
            Block(rng, Attention(rng, dimensions), seeds, norm_first=False)
            for _ in range(dimensions.num_layers)
        ]

    def __call__(self, tokens: tf.Tensor, segments: tf.Tensor) -> tf.Tensor:
        """Encode int32[batch, length] as float32[batch, length, width]; padding is hidden."""
        is_padding = tf.cast(tf.equal(tokens, PAD), tf.float32)
        mask = MASKED * is_padding[:, tf.newaxis, tf.newaxis, :]
        h = tf.gather(self.tokens, tokens) + tf.gather(self.segments, segments) + self.positions
        h = self.dropout(self.norm(h))
        for block in self.blocks:
            h = block(h, mask)
        return h


def join_pair(first: list[int], second: list[int], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `[CLS] first [SEP] second [SEP]` and its segment ids, each int32[length].

    Where it is too long, the end of `second` is cut off.
    """
    second = second[: length - len(first) - 3]
    ids = [CLS, *first, SEP, *second, SEP]
    segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    return pad(ids, length), pad(segments, length)
