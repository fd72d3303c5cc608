"""BERT-Q&A: find the answer to a question in a text, as on SQuAD.

The step is straight: two linear scores for the start and the end of the answer. Data: docstrings of
Python's standard library; the question asks what an object does, the answer is the first sentence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from benchmarks.programs.bert import DIMENSIONS, BertEncoder, join_pair
from benchmarks.programs.layers import Linear, split_variables
from benchmarks.programs.optimizers import AdamW
from benchmarks.programs.program import Program
from benchmarks.programs.text import Document, Vocabulary, load_documents, split_words
from benchmarks.programs.transformer import Dimensions

FEATURE = "none beyond a loop over layers"
DATA = "docstrings of Python's standard library; questions made from their names"
SIZES = {
    "tiny": dict(dimensions=DIMENSIONS["tiny"], batch=4),
    "small": dict(dimensions=DIMENSIONS["small"], batch=8),
    "paper": dict(dimensions=DIMENSIONS["paper"], batch=32),
}


class QuestionAnswerer(tf.Module):
    """BERT with a score for each token to be the answer's first, and one to be its last."""

    def __init__(
        self, rng: np.random.Generator, dimensions: Dimensions, seeds: keras.random.SeedGenerator
    ):
        super().__init__()
        self.encoder = BertEncoder(rng, dimensions, seeds)
        self.scorer = Linear(rng, dimensions.width, 2)

    def __call__(self, tokens: tf.Tensor, segments: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the scores float32[batch, length] of the starts and of the ends."""
        scores = self.scorer(self.encoder(tokens, segments))
        starts, ends = tf.unstack(scores, axis=-1)
        return starts, ends


def make(
    wrap: Callable,
    *,
    dimensions: Dimensions,
    batch: int,
    learning_rate: float = 1e-4,
    num_batches: int = 4,
    seed: int = 0,
) -> Program:
    """Build the program on int32[batch, length] tokens."""
    rng, seeds = np.random.default_rng(seed), keras.random.SeedGenerator(seed)
    model = QuestionAnswerer(rng, dimensions, seeds)
    trainable, _ = split_variables([model])
    optimizer = AdamW(trainable, learning_rate)
    batches = _draw_batches(rng, dimensions, batch, num_batches)

    @wrap
    def train_step(tokens, segments, start, end):
        with tf.GradientTape() as tape:
            starts, ends = model(tokens, segments)
            start_losses = tf.nn.sparse_softmax_cross_entropy_with_logits(start, starts)
            end_losses = tf.nn.sparse_softmax_cross_entropy_with_logits(end, ends)
            loss = tf.reduce_mean(start_losses + end_losses) / 2.0
        optimizer.apply(tape.gradient(loss, trainable))
        return loss

    return Program(
        step=lambda i: train_step(*batches[i % num_batches]),
        variables=[*trainable, *optimizer.state, seeds.state.value],
        function=train_step,
    )


@dataclasses.dataclass(frozen=True)
class _Example:
    """One question about a text: the pair's ids, and where the answer starts and ends."""

    tokens: np.ndarray
    segments: np.ndarray
    start: int
    end: int


def _ask(document: Document, vocabulary: Vocabulary, length: int) -> _Example:
    """Ask what a document's object does; the answer is the first sentence."""
    question = ("what", "does", *split_words(f"{document.module}.{document.name}"), "do", "?")
    question = question[: length // 2]
    tokens, segments = join_pair(
        vocabulary.encode(question), vocabulary.encode(document.words), length
    )
    start = len(question) + 2
    end = min(start + len(document.sentences()[0]) - 1, length - 2)
    return _Example(tokens, segments, start, end)


def _draw_batches(
    rng: np.random.Generator, dimensions: Dimensions, batch: int, num_batches: int
) -> list[tuple[tf.Tensor, ...]]:
    documents = [document for document in load_documents() if document.sentences()]
    vocabulary = Vocabulary(documents, dimensions.vocabulary)
    batches = []
    for _ in range(num_batches):
        chosen = [documents[i] for i in rng.integers(0, len(documents), batch)]
        examples = [_ask(document, vocabulary, dimensions.length) for document in chosen]
        columns = zip(*(dataclasses.astuple(example) for example in examples), strict=True)
        batches.append(tuple(tf.constant(np.array(column, np.int32)) for column in columns))
    return batches
