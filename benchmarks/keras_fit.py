"""What a batch costs in Keras: stock, eagerly, under `terra.keras.accelerate`.

    python -m benchmarks.keras_fit [--only=dense,lstm] [--calls=fit,train_on_batch] [--warmups=0]

Contestants take turns of one short epoch each, in one process; the first turns, in which graphs are
built, do not count. What they return is compared with eager's before. What building graphs costs is
measured apart: a first `fit` of some hundred batches, in processes of its own (`--warmups`).

Prints a table and writes the same, with versions and machine, to `benchmarks/results/`. Exits with
1 if something of Terra's differs from eager's.
"""

from __future__ import annotations

import datetime
import functools
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags

import terra_tf as terra
from benchmarks import keras_models, keras_warmup, report
from benchmarks.keras_models import BATCH_SIZE, CONTESTANTS
from benchmarks.timing import Timing, compare, interleave, per_step, speedups

CALLS = ("fit", "evaluate", "predict", "train_on_batch", "test_on_batch", "predict_on_batch")
_RESULTS = pathlib.Path(__file__).parent / "results"
_NUM_WARMUP_TURNS = 3

_MODELS = keras_models.MODELS
_ONLY = flags.DEFINE_list("only", list(_MODELS), f"Which models: some of {', '.join(_MODELS)}.")
_CALLS = flags.DEFINE_list(
    "calls", ["fit", "evaluate", "predict"], f"Which calls: some of {', '.join(CALLS)}."
)
_TURNS = flags.DEFINE_integer("turns", 20, "Timed epochs of each contestant.", lower_bound=1)
_BATCHES = flags.DEFINE_integer("batches", 20, "Batches of an epoch.", lower_bound=1)
_WARMUPS = flags.DEFINE_integer("warmups", 3, "Processes for each first fit.", lower_bound=0)
_JSON = flags.DEFINE_string(
    "json", None, "Where to write the report; by default benchmarks/results/keras-<date>.json."
)

flags.register_validator("only", lambda names: set(names) <= set(_MODELS), "no such model")
flags.register_validator("calls", lambda names: set(names) <= set(CALLS), "no such call")


def turn_of(call: str, model: Any, x: np.ndarray, y: np.ndarray | None) -> Callable[[int], Any]:
    """Return a function that makes one epoch of calls, and returns what they return."""
    options: dict[str, Any] = {"batch_size": BATCH_SIZE, "verbose": 0}
    parts = [slice(i, i + BATCH_SIZE) for i in range(0, len(x), BATCH_SIZE)]
    batches = [(x[part],) if y is None else (x[part], y[part]) for part in parts]
    turns: dict[str, Callable[[], Any]] = {
        "fit": lambda: model.fit(x, y, shuffle=False, **options).history["loss"],
        "evaluate": lambda: model.evaluate(x, y, **options),
        "predict": lambda: model.predict(x, **options),
        "train_on_batch": lambda: [model.train_on_batch(*batch) for batch in batches],
        "test_on_batch": lambda: [model.test_on_batch(*batch) for batch in batches],
        "predict_on_batch": lambda: [model.predict_on_batch(batch[0]) for batch in batches],
    }
    return lambda turn: turns[call]()


def _numbers(results: list[Any]) -> list[float]:
    return [float(number) for result in results for number in np.ravel(result)]


def measure(name: str, call: str, num_turns: int, num_batches: int) -> report.Section:
    """Return seconds per batch, and how results compare with eager's."""
    x, *labels = keras_models.make_data(name, num_batches)
    y = labels[0] if labels else None
    models = {c: keras_models.make_model(name, c) for c in CONTESTANTS}
    turns = {c: turn_of(call, models[c], x, y) for c in CONTESTANTS}
    numbers = {c: _numbers([turn(0), turn(1)]) for c, turn in turns.items()}
    comparisons = {c: compare(numbers["eager"], numbers[c]) for c in CONTESTANTS}
    samplers = {contestant: per_step(turn, num_batches) for contestant, turn in turns.items()}
    timings = interleave(samplers, num_turns=num_turns, num_warmup_turns=_NUM_WARMUP_TURNS)
    kind = {"fit": "train", "evaluate": "test"}.get(call, call.partition("_")[0])
    stats = terra.keras.stats(models["terra"])[kind]
    return report.Section(
        name=f"{name}_{call}",
        what=f"a batch of {BATCH_SIZE} of {call}, with its share of what an epoch costs",
        baseline="stock",
        timings=timings,
        comparisons=comparisons,
        findings=ratios(timings),
        details={"phase": stats.phase, "calls_not_replayed": dict(stats.calls_not_replayed)},
        failure=None if comparisons["terra"].identical else "it differs from eager",
    )


def ratios(timings: dict[str, Timing]) -> dict[str, float]:
    """Return how many times as long as the others Terra takes: the median over the rounds."""
    return {
        f"times_{other}": 1 / speedups(timings, baseline=other)["terra"]
        for other in ("stock", "eager")
    }


def _sections() -> list[Callable[[], report.Section]]:
    calls = [
        functools.partial(measure, name, call, _TURNS.value, _BATCHES.value)
        for name in _ONLY.value
        for call in _CALLS.value
        if keras_models.can_call(name, call)
    ]
    warmups = _ONLY.value if _WARMUPS.value else ()
    return [
        *calls,
        *(functools.partial(keras_warmup.measure, name, _WARMUPS.value) for name in warmups),
    ]


def main(argv: list[str]) -> None:
    """Measure, print and write."""
    del argv
    load_before = os.getloadavg()[0]
    sections = []
    for run_section in _sections():
        sections.append(run_section())
        print(report.to_table(sections[-1:]), end="\n\n", flush=True)
    now = datetime.datetime.now()
    path = pathlib.Path(_JSON.value or _RESULTS / f"keras-{now:%Y-%m-%d}.json")
    report.write(path, report.to_json(sections, now))
    print(f"Written to {path}; the load was {load_before:.1f} before")
    sys.exit(any(section.failure is not None for section in sections))


if __name__ == "__main__":
    app.run(main)
