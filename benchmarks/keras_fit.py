"""What a batch costs in Keras: stock, eagerly, under `terra.keras.accelerate`.

    python -m benchmarks.keras_fit [--only=dense,lstm] [--calls=fit,train_on_batch]

Contestants take turns of one short epoch each, in one process; the first turns, in which graphs are
built, do not count. What they return is compared with eager's before. Exits with 1 if Terra's
differs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from absl import app, flags

import terra_tf as terra
from benchmarks.timing import interleave, per_step

_MODELS = ("dense", "dense_softmax", "cnn", "lstm")
CALLS = ("fit", "evaluate", "predict", "train_on_batch", "test_on_batch", "predict_on_batch")
_ONLY = flags.DEFINE_list("only", list(_MODELS), f"Which models: some of {', '.join(_MODELS)}.")
_CALLS = flags.DEFINE_list("calls", ["fit"], f"Which calls: some of {', '.join(CALLS)}.")
_TURNS = flags.DEFINE_integer("turns", 20, "Timed epochs of each contestant.", lower_bound=1)
_BATCHES = flags.DEFINE_integer("batches", 20, "Batches of an epoch.", lower_bound=1)

flags.register_validator("only", lambda names: set(names) <= set(_MODELS), "no such model")
flags.register_validator("calls", lambda names: set(names) <= set(CALLS), "no such call")

_BATCH_SIZE = 32
_NUM_WARMUP_TURNS = 3
_NUM_WORDS, _NUM_TOKENS = 100, 20
CONTESTANTS = ("stock", "eager", "terra")


def _layers(name: str) -> list[Any]:
    layers = keras.layers
    if name == "cnn":
        return [
            keras.Input((16, 16, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(10),
        ]
    if name == "lstm":  # of texts that are padded
        return [
            keras.Input((_NUM_TOKENS,), dtype="int32"),
            layers.Embedding(_NUM_WORDS, 16, mask_zero=True),
            layers.LSTM(16),
            layers.Dense(10),
        ]
    activation = "softmax" if name == "dense_softmax" else None
    return [
        keras.Input((20,)),
        layers.Dense(64, activation="relu"),
        layers.Dense(64, activation="relu"),
        layers.Dense(10, activation=activation),
    ]


def make_model(name: str, contestant: str) -> Any:
    """Return a compiled model, the same for each contestant."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(_layers(name))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=name != "dense_softmax")
    model.compile("adam", loss, metrics=["accuracy"], run_eagerly=contestant == "eager")
    return terra.keras.accelerate(model) if contestant == "terra" else model


def make_data(name: str, num_batches: int) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and labels."""
    rng = np.random.default_rng(0)
    num = num_batches * _BATCH_SIZE
    y = rng.integers(0, 10, num)
    if name == "lstm":
        tokens = rng.integers(1, _NUM_WORDS, (num, _NUM_TOKENS))
        lengths = rng.integers(1, _NUM_TOKENS + 1, num)
        return np.where(np.arange(_NUM_TOKENS) < lengths[:, None], tokens, 0).astype(np.int32), y
    shape = (16, 16, 1) if name == "cnn" else (20,)
    return rng.standard_normal((num, *shape)).astype(np.float32), y


def turn_of(call: str, model: Any, x: np.ndarray, y: np.ndarray) -> Callable[[int], Any]:
    """Return a function that makes one epoch of calls, and returns plain values."""
    options: dict[str, Any] = {"batch_size": _BATCH_SIZE, "verbose": 0}
    parts = [slice(i, i + _BATCH_SIZE) for i in range(0, len(x), _BATCH_SIZE)]
    turns: dict[str, Callable[[], Any]] = {
        "fit": lambda: model.fit(x, y, shuffle=False, **options).history["loss"],
        "evaluate": lambda: model.evaluate(x, y, **options),
        "predict": lambda: model.predict(x, **options).tobytes(),
        "train_on_batch": lambda: [model.train_on_batch(x[part], y[part]) for part in parts],
        "test_on_batch": lambda: [model.test_on_batch(x[part], y[part]) for part in parts],
        "predict_on_batch": lambda: [model.predict_on_batch(x[part]).tobytes() for part in parts],
    }
    return lambda turn: turns[call]()


def measure(name: str, call: str, num_turns: int, num_batches: int) -> dict[str, Any]:
    """Return milliseconds per batch and whether results are eager's, by contestant."""
    x, y = make_data(name, num_batches)
    turns = {c: turn_of(call, make_model(name, c), x, y) for c in CONTESTANTS}
    results = {contestant: [turn(0), turn(1)] for contestant, turn in turns.items()}
    samplers = {contestant: per_step(turn, num_batches) for contestant, turn in turns.items()}
    timings = interleave(samplers, num_turns=num_turns, num_warmup_turns=_NUM_WARMUP_TURNS)
    return {
        contestant: (1e3 * timings[contestant].median_s, results[contestant] == results["eager"])
        for contestant in CONTESTANTS
    }


def main(argv: list[str]) -> None:
    """Measure and print."""
    del argv
    is_right = True
    for name, call in ((name, call) for name in _ONLY.value for call in _CALLS.value):
        results = measure(name, call, _TURNS.value, _BATCHES.value)
        print(f"{name}, {call}, batches of {_BATCH_SIZE}: ms per batch, with an epoch's own cost")
        for contestant, (milliseconds, is_equal) in results.items():
            ratio = milliseconds / results["stock"][0]
            equal = "identical" if is_equal else "differs from eager"
            print(f"  {contestant:8s} {milliseconds:8.3f}  {ratio:6.2f}x stock  {equal}")
        is_right = is_right and results["terra"][1]
    sys.exit(0 if is_right else 1)


if __name__ == "__main__":
    app.run(main)
