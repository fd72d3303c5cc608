"""BERT-CLS: decide whether two sentences belong together, as on MRPC.

What makes it hard: the step itself calls a third-party library. scikit-learn's F1 score of every
batch is computed from NumPy arrays while the step runs, and a best score is kept in plain Python.
Data: pairs of sentences from docstrings of Python's standard library.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from sklearn.metrics import f1_score

from benchmarks.programs.bert import DIMENSIONS, BertEncoder, join_pair
from benchmarks.programs.layers import Dropout, Linear, split_variables
from benchmarks.programs.optimizers import AdamW
from benchmarks.programs.program import Program
from benchmarks.programs.text import Vocabulary, load_documents
from benchmarks.programs.transformer import Dimensions

FEATURE = "a third-party library's metric (scikit-learn) inside the step"
DATA = "docstrings of Python's standard library; pairs of sentences"
SIZES = {
    "tiny": dict(dimensions=DIMENSIONS["tiny"], batch=4),
    "small": dict(dimensions=DIMENSIONS["small"], batch=8),
    "paper": dict(dimensions=DIMENSIONS["paper"], batch=32),
}


class PairClassifier(tf.Module):
    """BERT, and a classifier of its first token's encoding."""

    def __init__(
        self, rng: np.random.Generator, dimensions: Dimensions, seeds: keras.random.SeedGenerator
    ):
        super().__init__()
        self.encoder = BertEncoder(rng, dimensions, seeds)
        self.pooler = Linear(rng, dimensions.width, dimensions.width)
        self.dropout = Dropout(dimensions.dropout, seeds)
        self.classifier = Linear(rng, dimensions.width, 2)

    def __call__(self, tokens: tf.Tensor, segments: tf.Tensor) -> tf.Tensor:
        """Return the logits float32[batch, 2]: not a pair, a pair."""
        pooled = tf.tanh(self.pooler(self.encoder(tokens, segments)[:, 0]))
        return self.classifier(self.dropout(pooled))


class F1History:
    """The F1 score of every batch, by scikit-learn, and the best so far."""

    def __init__(self):
        self.scores: list[float] = []
        self.best = 0.0

    def add(self, labels: np.ndarray, predictions: np.ndarray) -> None:
        """Note the score of a batch, int[batch] against int[batch]."""
        score = float(f1_score(labels, predictions, average="micro", labels=[0, 1]))
        self.scores.append(score)
        if score > self.best:
            self.best = score


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
    model, history = PairClassifier(rng, dimensions, seeds), F1History()
    trainable, _ = split_variables([model])
    optimizer = AdamW(trainable, learning_rate)
    batches = _draw_batches(rng, dimensions, batch, num_batches)

    @wrap
    def train_step(tokens, segments, labels):
        with tf.GradientTape() as tape:
            logits = model(tokens, segments)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        optimizer.apply(tape.gradient(loss, trainable))
        history.add(labels.numpy(), tf.argmax(logits, axis=-1).numpy())
        return loss

    return Program(
        step=lambda i: train_step(*batches[i % num_batches]),
        variables=[*trainable, *optimizer.state, seeds.state.value],
        function=train_step,
        python_state=lambda: {"scores": list(history.scores), "best": history.best},
    )


def _draw_pair(
    rng: np.random.Generator, documents: list[list[tuple[str, ...]]]
) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Return two sentences and 1 if the second follows the first, else 0."""
    first = documents[rng.integers(len(documents))]
    position = int(rng.integers(len(first) - 1))
    if rng.random() < 0.5:
        return first[position], first[position + 1], 1
    second = documents[rng.integers(len(documents))]
    return first[position], second[int(rng.integers(len(second)))], 0


def _draw_batches(
    rng: np.random.Generator, dimensions: Dimensions, batch: int, num_batches: int
) -> list[tuple[tf.Tensor, ...]]:
    vocabulary = Vocabulary(load_documents(), dimensions.vocabulary)
    cut = [document.sentences() for document in load_documents()]
    documents = [sentences for sentences in cut if len(sentences) > 1]
    batches = []
    for _ in range(num_batches):
        tokens, segments, labels = [], [], []
        for _ in range(batch):
            first, second, label = _draw_pair(rng, documents)
            first_ids = vocabulary.encode(first[: dimensions.length // 2])
            pair = join_pair(first_ids, vocabulary.encode(second), dimensions.length)
            tokens.append(pair[0])
            segments.append(pair[1])
            labels.append(label)
        columns = (tokens, segments, labels)
        batches.append(tuple(tf.constant(np.array(column, np.int32)) for column in columns))
    return batches
