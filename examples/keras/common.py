"""What the examples share: handwritten digits, who runs them, and what is printed.

    python examples/keras/vq_vae.py --mode eager|stock|terra

Each example is written as for stock Keras. Those that `fit` compile their model in the last lines,
and accelerate it in mode "terra"; those with loops of their own decorate their steps. All print the
losses of each epoch: those of eager and terra are the same.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import terra_tf as terra

BATCH_SIZE = 32


def digits(arguments: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Return float32[num, 8, 8, 1] between 0 and 1, and int64[num]."""
    data, num = load_digits(), arguments.batches * BATCH_SIZE
    return (data.images[:num, ..., None] / 16.0).astype(np.float32), data.target[:num]


def parse_mode() -> argparse.Namespace:
    """Return `mode`, `epochs` and `batches` of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=("eager", "stock", "terra"), default="terra")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batches", type=int, default=20, help="of an epoch")
    return parser.parse_args()


# ------------------------------------------------------------------- with `fit`


def ready(model: keras.Model, mode: str, **compile_options: object) -> keras.Model:
    """Compile a model for a mode."""
    model.compile(run_eagerly=mode == "eager", **compile_options)
    return terra.keras.accelerate(model) if mode == "terra" else model


class _Clock(keras.callbacks.Callback):
    """Counts batches, and reads the clock when an epoch begins and its last batch ends."""

    def __init__(self) -> None:
        super().__init__()
        self.num_batches, self.ms_per_batch = 0, []

    def on_epoch_begin(self, epoch, logs=None):
        self.num_batches, self._start_s = 0, time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.num_batches = batch + 1
        self._end_s = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.ms_per_batch.append(1e3 * (self._end_s - self._start_s) / self.num_batches)


def train(model: keras.Model, arguments: argparse.Namespace, *data: Any, **options: Any) -> None:
    """Fit, and print the history and how long it took."""
    start_s, clock = time.perf_counter(), _Clock()
    is_dataset = isinstance(data[0], tf.data.Dataset)  # it has batches, in an order of its own
    options.update({"shuffle": False} if is_dataset else {"batch_size": BATCH_SIZE})
    options["callbacks"] = [clock, *options.get("callbacks", ())]
    options = {"epochs": arguments.epochs, "verbose": 0, **options}
    history = model.fit(*data, **options).history
    report(arguments.mode, history, time.perf_counter() - start_s, clock.ms_per_batch)


# ---------------------------------------------------------- with loops of one's own


def decorator(mode: str) -> Callable:
    """Return what a mode decorates a step with."""
    return {"eager": lambda step: step, "stock": tf.function, "terra": terra.function}[mode]


@contextlib.contextmanager
def as_written(mode: str) -> Iterator[None]:
    """Say, if it is so, that stock TensorFlow cannot make a graph of a step as it is written."""
    try:
        yield
    except Exception as error:
        if mode != "stock":
            raise
        line = str(error).strip().splitlines()[-1].strip()
        print(f"stock: cannot run the step as written ({line})")


# ------------------------------------------------------------------------- output


def report(mode: str, history: dict, total_s: float, ms_per_batch: list[float]) -> None:
    """Print the losses, and how long it took.

    Args:
      mode: Who ran.
      history: Name -> a number for each epoch.
      total_s: The time of all epochs.
      ms_per_batch: Of each epoch; the second half of them counts as what goes on from there.
    """
    print(json.dumps(history))
    later = statistics.median(ms_per_batch[len(ms_per_batch) // 2 :])
    print(f"{mode}: {total_s:.1f} s, later {later:.2f} ms per batch", flush=True)
