"""What a batch of Keras' `fit` costs: stock, eagerly, under `terra.keras.accelerate`.

    python -m benchmarks.keras_fit [--only=dense,cnn] [--turns=20] [--batches=20]

Contestants take turns of one short epoch each, in one process; the first turns, in which graphs are
built, do not count. Their losses are compared with eager's before. Exits with 1 if Terra's differ.
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

_MODELS = ("dense", "dense_softmax", "cnn")
_ONLY = flags.DEFINE_list("only", list(_MODELS), f"Which models: some of {', '.join(_MODELS)}.")
_TURNS = flags.DEFINE_integer("turns", 20, "Timed epochs of each contestant.", lower_bound=1)
_BATCHES = flags.DEFINE_integer("batches", 20, "Batches of an epoch.", lower_bound=1)

flags.register_validator("only", lambda names: set(names) <= set(_MODELS), "no such model")

_BATCH_SIZE = 32
_NUM_WARMUP_TURNS = 3
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


def measure(name: str, num_turns: int, num_batches: int) -> dict[str, Any]:
    """Return milliseconds per batch and whether losses are eager's, by contestant."""
    rng = np.random.default_rng(0)
    models = {contestant: make_model(name, contestant) for contestant in CONTESTANTS}
    shape = models["eager"].input_shape[1:]
    x = rng.standard_normal((num_batches * _BATCH_SIZE, *shape)).astype(np.float32)
    y = rng.integers(0, 10, num_batches * _BATCH_SIZE)

    def epoch_of(model: Any, **options: Any) -> Callable[[int], Any]:
        arguments = {"batch_size": _BATCH_SIZE, "verbose": 0, "shuffle": False, **options}
        return lambda turn: model.fit(x, y, **arguments).history["loss"]

    losses = {contestant: epoch_of(model, epochs=2)(0) for contestant, model in models.items()}
    samplers = {c: per_step(epoch_of(model), num_batches) for c, model in models.items()}
    timings = interleave(samplers, num_turns=num_turns, num_warmup_turns=_NUM_WARMUP_TURNS)
    return {
        contestant: (1e3 * timings[contestant].median_s, losses[contestant] == losses["eager"])
        for contestant in CONTESTANTS
    }


def main(argv: list[str]) -> None:
    """Measure and print."""
    del argv
    is_right = True
    for name in _ONLY.value:
        results = measure(name, _TURNS.value, _BATCHES.value)
        print(f"{name}, batches of {_BATCH_SIZE}: ms per batch, with an epoch's own cost")
        for contestant, (milliseconds, is_equal) in results.items():
            ratio = milliseconds / results["stock"][0]
            equal = "identical" if is_equal else "differs from eager"
            print(f"  {contestant:8s} {milliseconds:8.3f}  {ratio:6.2f}x stock  {equal}")
        is_right = is_right and results["terra"][1]
    sys.exit(0 if is_right else 1)


if __name__ == "__main__":
    app.run(main)
