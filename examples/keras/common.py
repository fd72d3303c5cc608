"""What the examples share: handwritten digits, and who runs them.

    python examples/keras/vq_vae.py --mode eager|stock|terra

Each example is written as for stock Keras. Its last lines compile the model, accelerate it in mode
"terra", and print the losses of each epoch: those of eager and terra are the same.
"""

from __future__ import annotations

import argparse
import json
import time

import keras
import numpy as np
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


def ready(model: keras.Model, mode: str, **compile_options: object) -> keras.Model:
    """Compile a model for a mode."""
    model.compile(run_eagerly=mode == "eager", **compile_options)
    return terra.keras.accelerate(model) if mode == "terra" else model


def train(model: keras.Model, arguments: argparse.Namespace, *data: np.ndarray) -> None:
    """Fit, and print the history and how long it took."""
    start_s = time.perf_counter()
    options = {"batch_size": BATCH_SIZE, "epochs": arguments.epochs, "verbose": 0}
    history = model.fit(*data, **options).history
    print(json.dumps(history))
    print(f"{arguments.mode}: {time.perf_counter() - start_s:.1f} s")
