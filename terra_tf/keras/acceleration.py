"""Models under `accelerate`: attributes of the instance stand in front of three Keras methods.

Keras' `fit` asks `make_train_function` for what it calls in each batch, and asks again after each
`compile`. Nothing of the class is changed, and nothing that is saved, cloned or pickled.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from typing import Any

from terra_tf.errors import NoModelError, NothingToShowError, format_message
from terra_tf.function import Function
from terra_tf.keras.batch_functions import (
    BatchFunction,
    IteratorFunction,
    PredictFunction,
    has_default_strategy,
)
from terra_tf.keras.model_explanation import ModelExplanation
from terra_tf.keras.users_layers import layers_with_python
from terra_tf.runtime.stats import Stats

KINDS = ("train", "test", "predict")
_ATTRIBUTE = "_self_terra_acceleration"  # guards of objects leave out what begins with `_self_`


def accelerate(model: Any) -> Any:
    """Makes `fit`, `evaluate` and `predict` of a Keras model co-execute.

    They, and `train_on_batch`, `test_on_batch` and `predict_on_batch`, then have the results of
    `run_eagerly=True`, bit for bit: each Python line of a step, loss, metric, layer or callback
    runs in each batch. It is the same before `compile` and after, and survives it. Under a
    distribution strategy Keras' own functions run, eagerly.

    Args:
      model: A model of Keras 3, with TensorFlow as its backend.

    Returns:
      The model.

    Raises:
      NoModelError: It is something else.
    """
    _check_model(model)
    if not is_accelerated(model):
        Acceleration(model).begin()
    return model


def restore(model: Any) -> Any:
    """Undoes `accelerate`: the model is as it was. Returns it."""
    if is_accelerated(model):
        vars(model)[_ATTRIBUTE].end()
    return model


def is_accelerated(model: Any) -> bool:
    """Says whether `accelerate` is in effect for a model."""
    return _ATTRIBUTE in getattr(model, "__dict__", ())


def stats(model: Any) -> dict[str, Stats]:
    """Returns the counters of an accelerated model's steps: of "train", "test" and "predict".

    A step that has not run since `compile` has none.

    Raises:
      NothingToShowError: The model is not accelerated.
    """
    return {kind: step.stats() for kind, step in _acceleration_of(model).steps.items()}


def explain(model: Any) -> ModelExplanation:
    """Returns a report for a person on an accelerated model: `print(terra.keras.explain(model))`.

    Raises:
      NothingToShowError: The model is not accelerated.
    """
    acceleration = _acceleration_of(model)
    steps = {kind: step.explain() for kind, step in acceleration.steps.items()}
    layers = layers_with_python(model)
    return ModelExplanation(getattr(model, "name", ""), steps, dict(acceleration.eager), layers)


def _acceleration_of(model: Any) -> Acceleration:
    if not is_accelerated(model):
        raise NothingToShowError(
            format_message(
                f"{type(model).__name__} is not accelerated",
                "TERRA-NOTHING-TO-SHOW",
                suggestions=["terra_tf.keras.accelerate(model)"],
            )
        )
    return vars(model)[_ATTRIBUTE]


def _check_model(model: Any) -> None:
    keras = sys.modules.get("keras")
    is_model = keras is not None and isinstance(model, keras.Model)
    if is_model and keras is not None and keras.backend.backend() == "tensorflow":
        return
    library = type(model).__module__.split(".")[0]
    if is_model:
        why, suggestion = "Keras runs on another backend.", 'KERAS_BACKEND="tensorflow"'
    elif any(base.__module__.startswith("tf_keras.") for base in type(model).__mro__):
        why = "It is a model of tf_keras, the old Keras."
        suggestion = "model.train_step = terra_tf.function(model.train_step), and run_eagerly=True"
    else:
        why, suggestion = "It takes models of Keras 3.", "terra_tf.function decorates functions"
    raise NoModelError(
        format_message(
            f"terra_tf.keras.accelerate was given a {type(model).__name__} of {library}",
            "TERRA-NO-MODEL",
            why=why,
            suggestions=[suggestion],
        )
    )


def trainer_class() -> type:
    """Returns the class of Keras' that has `make_train_function`."""
    model_class = sys.modules["keras"].Model
    return next(base for base in model_class.__mro__ if "make_train_function" in vars(base))


class Acceleration:
    """What `accelerate` keeps of a model, in an attribute of it.

    Attributes:
      steps: "train", "test" or "predict" -> the `Function` of that step, since it was made.
      eager: The same -> why Keras' own function runs.
    """

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)
        self.steps: dict[str, Function] = {}
        self._overridden: dict[str, str] = {}
        self._before = {name: vars(model).get(name) for name in _function_names()}
        self._makers = {n: vars(model)[n] for n in _maker_names() if n in vars(model)}
        self._compiled_before = vars(model).get("_compile_config")
        self._made_eager: Any = None  # the configuration under which we have set `run_eagerly`
        self._is_eager_by_us = False

    def begin(self) -> None:
        """Puts the attributes in place."""
        attributes = vars(self._model())
        attributes[_ATTRIBUTE] = self
        for kind in KINDS:
            attributes[f"make_{kind}_function"] = functools.partial(self._make, kind)
            attributes[f"{kind}_function"] = None

    def end(self) -> None:
        """Takes everything back."""
        attributes = vars(self._model())
        for name in (*_maker_names(), _ATTRIBUTE):
            attributes.pop(name, None)
        attributes.update(self._makers)
        # What had been made is of use as long as the model was not compiled again.
        is_same = attributes.get("_compile_config") is self._compiled_before
        attributes.update(self._before if is_same else dict.fromkeys(_function_names()))
        if self._is_eager_by_us and attributes.get("_compile_config") is self._made_eager:
            attributes["_run_eagerly"] = False

    @property
    def eager(self) -> dict[str, str]:
        """Why functions of Keras' own run, by kind."""
        model: Any = self._model()
        if has_default_strategy(model):
            return self._overridden
        strategy = type(model.distribute_strategy).__name__
        return dict.fromkeys(self.steps, f"there is a distribution strategy, {strategy}")

    def _make(self, kind: str, force: bool = False) -> Any:
        """Stands for `make_train_function` and its like."""
        model: Any = self._model()
        self._set_run_eagerly(model)
        name = f"{kind}_function"
        if vars(model)[name] is not None and not force:
            return vars(model)[name]
        self.steps.pop(kind, None)
        self._overridden.pop(kind, None)
        vars(model)[name] = self._function_for(model, kind)
        return None

    def _set_run_eagerly(self, model: Any) -> None:
        if not model.run_eagerly:
            vars(model)["_run_eagerly"] = True
            self._made_eager, self._is_eager_by_us = vars(model).get("_compile_config"), True

    def _function_for(self, model: Any, kind: str) -> Callable:
        if self._is_users(model, kind):
            self._overridden[kind] = f"make_{kind}_function is the program's own"
            return self._stock(kind)
        self.steps[kind] = step = Function(getattr(model, f"{kind}_step"), {})
        made: type[BatchFunction] = PredictFunction if kind == "predict" else IteratorFunction
        return made(model, kind, step, functools.partial(self._stock, kind))

    def _is_users(self, model: Any, kind: str) -> bool:
        names = (f"make_{kind}_function", "_make_function")
        trainer = trainer_class()
        return any(
            name in self._makers or getattr(type(model), name, None) is not getattr(trainer, name)
            for name in names
        )

    def _stock(self, kind: str) -> Callable:
        """Returns what Keras, or the program, makes; `run_eagerly` is set."""
        model: Any = self._model()
        maker, name = f"make_{kind}_function", f"{kind}_function"
        ours, vars(model)[name] = vars(model)[name], None
        try:
            if maker in self._makers:
                self._makers[maker](force=True)
            else:
                getattr(type(model), maker)(model, force=True)
            return vars(model)[name]
        finally:
            vars(model)[name] = ours


def _function_names() -> tuple[str, ...]:
    return tuple(f"{kind}_function" for kind in KINDS)


def _maker_names() -> tuple[str, ...]:
    return tuple(f"make_{kind}_function" for kind in KINDS)
