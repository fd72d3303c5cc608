"""Trains a Keras model eagerly and accelerated, and compares all that can be seen of it.

A *program* is a function that is given `Contestant`, makes a model and data, and returns a `Setup`.
It is run twice; the model is compiled, and accelerated, by the contestant.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import terra_tf as terra

NUM_BATCHES, BATCH_SIZE, NUM_EPOCHS = 5, 4, 3
NUM_VALIDATION_BATCHES = 2
# Reasons for which the program's own Python has to run; all others are ours.
USERS = (
    "a custom gradient",
    "the layer warns that it drops a mask",
)


@dataclasses.dataclass
class Setup:
    """A model that is ready, and how it is fitted.

    Attributes:
      x, y: The data; y may be None.
      options: Of `fit`.
      effects: A list that the program's Python writes to.
      stats: Returns the counters of the training step, where no model is accelerated.
      num_lost: How many training batches may run outside of the graph.
      reasons: For which calls may run their Python again, besides those in USERS.
      schedules: Whether a callback sets the learning rate.
    """

    model: Any
    x: Any
    y: Any = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    effects: list = dataclasses.field(default_factory=list)
    stats: Callable[[], terra.Stats] | None = None
    num_lost: int = 3
    reasons: tuple[str, ...] = ()
    schedules: bool = True


class Contestant:
    """Who runs a program: eager execution, or this package."""

    def __init__(self, is_terra: bool) -> None:
        self.is_terra = is_terra

    def compile(self, model: Any, optimizer: Any = "sgd", loss: Any = "mse", **options: Any) -> Any:
        """Compile it, and accelerate it or have it run eagerly."""
        model.compile(optimizer, loss, run_eagerly=not self.is_terra, **options)
        return terra.keras.accelerate(model) if self.is_terra else model

    def wrap(self, function: Callable) -> Callable:
        """Decorate, for programs that decorate something themselves."""
        return terra.function(function) if self.is_terra else function


class Observer(keras.callbacks.Callback):
    """A user's callback: notes what it is told, reads weights and writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list = []
        self.before_last: dict | None = None

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append((batch, plain(logs)))
        if batch == 3:
            weight = self.model.trainable_weights[-1]
            self.seen.append(plain(weight.numpy()))
            weight.assign(weight * 0.5)

    def on_test_batch_end(self, batch, logs=None):
        self.seen.append((batch, plain(logs)))

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == NUM_EPOCHS - 1:
            self.before_last = refusals_of(self.model)

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append((epoch, plain(logs)))


def refusals_of(model: Any) -> collections.Counter:
    """Return how often calls of a model's steps ran their Python, and why, so far."""
    counter: collections.Counter = collections.Counter()
    if hasattr(model, "_self_terra_acceleration"):
        for counters in terra.keras.stats(model).values():
            counter.update(counters.calls_not_replayed)
    return counter


def plain(value: Any) -> Any:
    """Return a value in which equal means the same bits and the same types."""
    if isinstance(value, dict):
        return [(key, plain(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, tf.Tensor)):
        array = np.asarray(value)
        return type(value).__name__, str(array.dtype), array.shape, array.tobytes()
    return type(value).__name__, repr(value)


def part(data: Any, begin: int, end: int) -> Any:
    return keras.tree.map_structure(lambda array: array[begin:end], data)


def callbacks_of(setup: Setup, folder: Any) -> list:
    callbacks = keras.callbacks
    made = [
        callbacks.ModelCheckpoint(folder / "best.weights.h5", "loss", save_weights_only=True),
        callbacks.EarlyStopping("val_loss", patience=9, restore_best_weights=True),
    ]
    if setup.schedules:
        made.append(callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9))
    return made


def outcome(program: Callable, contestant: Contestant, folder: Any) -> tuple[dict, Setup, Observer]:
    """Run a program; return what can be seen of it."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(1)
    setup = program(contestant)
    options = {"batch_size": BATCH_SIZE, "verbose": 0, "epochs": NUM_EPOCHS, **setup.options}
    num_validated = NUM_VALIDATION_BATCHES * BATCH_SIZE
    if "validation_data" not in options:
        validated = (setup.x, setup.y) if setup.y is not None else (setup.x,)
        options["validation_data"] = part(validated, 0, num_validated)
    observer = Observer()
    callbacks = [observer, *callbacks_of(setup, folder), *options.pop("callbacks", ())]
    history = setup.model.fit(setup.x, setup.y, callbacks=callbacks, **options).history
    predictions = setup.model.predict(part(setup.x, 0, num_validated), BATCH_SIZE, verbose=0)
    optimizer = setup.model.optimizer
    seen = {
        "callbacks": observer.seen,
        "history": history,
        "predictions": predictions,
        "weights": setup.model.get_weights(),
        "optimizer": [variable.numpy() for variable in optimizer.variables],
        "effects": setup.effects,
    }
    return {name: plain(value) for name, value in seen.items()}, setup, observer


def check_program(program: Callable, folder: Any) -> None:
    """Compare a program with eager execution, and look at its counters."""
    eager, *_ = outcome(program, Contestant(is_terra=False), folder)
    ours, setup, observer = outcome(program, Contestant(is_terra=True), folder)
    for name, value in eager.items():
        assert ours[name] == value, name
    if setup.stats is not None:
        check_counters(setup.stats(), setup)
        return
    stats = terra.keras.stats(setup.model)
    for kind, counters in stats.items():
        assert counters.phase == "co-execution", (kind, counters)
    check_counters(stats["train"], setup)
    assert observer.before_last is not None
    allowed = (*USERS, *setup.reasons)
    again = refusals_of(setup.model) - observer.before_last
    reasons = {call: n for call, n in again.items() if not any(why in call for why in allowed)}
    reasons = {call: n for call, n in reasons.items() if not is_users_object(call)}
    assert not reasons, reasons


def is_users_object(call: str) -> bool:
    """Whether a call was not replayed since something in it is not Keras' own."""
    _, found, what = call.partition("changes would go unseen: ")
    if not found or "tensor" in what:
        return False
    name = what.rpartition(" is a ")[2]
    return name == "function of the user's" or not hasattr(keras.layers, name)


def check_counters(counters: terra.Stats, setup: Setup) -> None:
    assert counters.steps == NUM_BATCHES * NUM_EPOCHS, counters
    assert counters.co_executed_steps >= counters.steps - setup.num_lost, counters
