"""What a library's objects (optimizers, layers, variables) hold, so that a change is seen.

A call on such an object is replayed only while everything that it can depend on is as it was. The
walk goes through the attributes of Keras' objects, the variables, lists and dictionaries among
them, and refuses what it cannot see into: objects and functions of the user's, and lists of
tensors. A tensor that is an attribute (what `Normalization` subtracts) never changes.

The guard keeps none of them alive. So the walk tells it of a container only after it has told it
of whoever holds that container.
"""

from __future__ import annotations

import enum
import inspect
import sys
import types
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np

from terra_tf import _native
from terra_tf._tf_internals import (
    BaseResourceVariable,
    EagerTensor,
    default_strategy,
    dtypes,
    ops,
    tensor_shape,
)

_LIBRARIES = frozenset({"keras", "tensorflow", "tf_keras"})
# Never changed in place, so that being the same object is enough.
_ATOMS = (
    type(None), bool, int, float, complex, str, bytes, np.generic, enum.Enum, type,
    types.ModuleType, inspect.Signature, dtypes.DType, tensor_shape.TensorShape,
)  # fmt: skip
# How objects are saved, tracked and drawn: no call depends on it.
_BOOKKEEPING = frozenset(
    {"_tracker", "tracker", "_tracked", "_auto_config", "_inbound_nodes", "_outbound_nodes"}
)
# What training leaves in a Keras model, and methods of it: loops call and read them, no layer does.
_OF_TRAINING = frozenset(
    {
        *("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics"),
        *("train_function", "test_function", "predict_function", "history", "stop_training"),
        *("make_train_function", "make_test_function", "make_predict_function"),
        *("stop_evaluating", "stop_predicting", "_eval_epoch_iterator", "_initial_epoch"),
        *("compile", "fit", "evaluate", "predict", "metrics", "reset_metrics"),
        *("train_on_batch", "test_on_batch", "predict_on_batch", "from_config", "get_config"),
        *("_self_terra_acceleration", "_run_eagerly", "run_eagerly", "_compile_config"),
    }
)
# What an optimizer of the user's may have of its own and still update as Keras' own.
_OF_OPTIMIZERS = frozenset({"apply", "apply_gradients", "minimize", "from_config", "get_config"})
_LEARNING_RATE = frozenset({"_learning_rate"})
_RATES = _LEARNING_RATE | {"learning_rate", "_get_current_learning_rate"}
# What a class of the user's may add to a library's and still be called as the library's.
_OF_CLASSES = frozenset(
    {"__init__", "__module__", "__qualname__", "__doc__", "__firstlineno__", "__annotations__"}
    | {"__static_attributes__", "__classcell__", "__abstractmethods__", "_abc_impl"}
)
_CONTAINERS = (list, tuple, dict, set, frozenset)
_KERAS_GLOBALS = "keras.src.backend.common.global_state"
_KERAS_CONFIG = "keras.src.backend.config"
# What of a thread's attributes no guard looks at. The context of nested layers' calls is a part of
# a call's key, and saving (a checkpoint after each epoch) leaves there what only saving uses.
_SAVED_TYPES = ("Cross", "Feature", "Functional", "Layer", "Loss", "Metric", "Operation")
_NOT_OF_THREADS = frozenset(
    {"current_call_ctx", "safe_mode_saving", "use_legacy_config"}
    | {f"saving_attr_skipset_{name}" for name in (*_SAVED_TYPES, "Optimizer", "Sequential")}
    | {f"shared_objects/{name}" for name in ("id_to_config_map", "id_to_obj_map")}
)


class _Hint:
    """Among the objects of a call: says something about the call."""


LEARNING_RATE_IS_GIVEN = _Hint()  # an optimizer's: it does not look for its own


class UnseenStateError(Exception):
    """An object holds something of which changes could not be seen; the message says what."""


def guard_of(objects: Iterable[Any]) -> Any:
    """Returns a native `StateGuard` of all that the objects hold now.

    Raises:
      UnseenStateError: If a change of something in them could not be seen.
    """
    objects = list(objects)
    is_rate_given = any(item is LEARNING_RATE_IS_GIVEN for item in objects)
    walk = _Walk(_native.load().module.StateGuard(), is_rate_given)
    for item in objects:
        if item is LEARNING_RATE_IS_GIVEN:
            continue
        walk.add_alive(item, type(item).__name__)
        walk.visit(item, type(item).__name__)
    walk.add_globals()
    walk.guard.finish()
    return walk.guard


class _Walk:
    def __init__(self, guard: Any, is_rate_given: bool) -> None:
        self.guard = guard
        self._is_rate_given = is_rate_given
        self._seen: set[int] = set()

    def visit(self, value: Any, path: str) -> None:
        if isinstance(value, _ATOMS) or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, EagerTensor):
            _check_tensor(value, path)
        elif isinstance(value, BaseResourceVariable):
            self._add_attributes(value, path)
        elif isinstance(value, types.MethodType):
            self.visit(value.__func__, path)
            self._visit_held(value, "__self__", path)
        elif isinstance(value, types.BuiltinFunctionType):
            # A function of a module, or a method of some object: `a_list.append`.
            if not isinstance(value.__self__, (type(None), type, types.ModuleType)):
                raise UnseenStateError(f"{path} is a {type(value.__self__).__name__}'s method")
        elif isinstance(value, types.FunctionType):
            self._visit_function(value, path)
        elif type(value).__name__ == "_DefaultDistributionStrategy":
            return
        elif _is_container(value):
            self._visit_container(value, path)
        elif _is_librarys(type(value).__module__) or _is_called_as_librarys(type(value)):
            self._visit_object(value, path)
        else:
            raise UnseenStateError(f"{path} is a {type(value).__name__}")

    def _visit_function(self, value: types.FunctionType, path: str) -> None:
        # `__module__` does not say whose it is: `functools.wraps` copies it.
        if not _is_librarys(value.__globals__.get("__name__")):
            raise UnseenStateError(f"{path} is a function of the user's")
        for cell in value.__closure__ or ():
            try:
                item = cell.cell_contents
            except ValueError as error:
                raise UnseenStateError(f"{path} has a name without a value yet") from error
            if isinstance(item, (types.FunctionType, types.MethodType)):
                self.add_alive(item, f"what {path} calls")  # the cell may get another one
                self.visit(item, f"what {path} calls")

    def _visit_held(self, owner: Any, name: str, path: str) -> None:
        """Visits an attribute that is not among its owner's attributes."""
        value = getattr(owner, name, object())
        if not _is_real_container(value):
            if not isinstance(value, _ATOMS):
                self.add_alive(value, f"{path}.{name}")
            self.visit(value, f"{path}.{name}")
        elif id(value) not in self._seen:
            self._seen.add(id(value))
            _require(self.guard.add_named(owner, name), path, owner)
            self._visit_items(value, path)

    def _visit_container(self, value: Any, path: str) -> None:
        if not _is_real_container(value):  # a proxy, as TensorFlow's tracking makes
            self._visit_held(value, "__wrapped__", path)
            return
        _require(self.guard.add_item(value), path, value)
        self._visit_items(value, path)
        if "_storage" in getattr(value, "__dict__", ()):  # TensorFlow's wrapped lists
            self._visit_held(value, "_storage", path)

    def _visit_items(self, value: Any, path: str) -> None:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(key, _CONTAINERS):
                self.visit(key, f"a key of {path}")
            # A list of losses, for one: there are others in each step.
            if isinstance(item, EagerTensor) and item.dtype != dtypes.resource:
                raise UnseenStateError(f"{path} holds a tensor")
            self.visit(item, f"{path}[{key!r}]")

    def _visit_object(self, value: Any, path: str) -> None:
        unread = self._unread_of(type(value))
        self._add_attributes(value, path, unread)
        for name, item in list(vars(value).items()):
            if not name.startswith("_self_") and name not in _BOOKKEEPING | unread:
                self.visit(item, f"{path}.{name}")

    def _unread_of(self, cls: type) -> frozenset[str]:
        if _is_model(cls):
            return _OF_TRAINING
        return _LEARNING_RATE if self._is_rate_given and _is_optimizer(cls) else frozenset()

    def add_alive(self, value: Any, path: str) -> None:
        """Notes an object that no container of the guard holds."""
        _require(self.guard.add_alive(value), path, value)

    def _add_attributes(
        self, value: Any, path: str, unread: frozenset[str] = frozenset()
    ) -> None:
        _require(self.guard.add_attributes(value, unread or None), path, value)
        self.guard.add_type(type(value))

    def add_globals(self) -> None:
        """Keras' settings; scopes that the thread is in: of Keras, and of strategies."""
        keras_globals = sys.modules.get(_KERAS_GLOBALS)
        if keras_globals is not None:
            self.guard.add_global(vars(keras_globals))  # `clear_session` replaces the trackers
            self.guard.add_global(vars(sys.modules[_KERAS_CONFIG]))
            tracker = keras_globals.GLOBAL_STATE_TRACKER
            self.guard.add_named(tracker, "__dict__", _NOT_OF_THREADS)
        stack = ops.get_default_graph()._distribution_strategy_stack
        # `fit` calls each step by the default strategy's `run`, which changes nothing.
        if not self.guard.add_strategies(stack, default_strategy()):
            self.guard.add_global(stack)


def _check_tensor(tensor: Any, path: str) -> None:
    """A tensor never changes, but what Keras sets of its attributes may."""
    if vars(tensor):
        raise UnseenStateError(f"{path} is a tensor with attributes")


def _require(is_seen: bool, path: str, value: Any) -> None:
    if not is_seen:
        raise UnseenStateError(f"{path} is a {type(value).__name__}")


def _is_model(cls: type) -> bool:
    return hasattr(cls, "make_train_function")


def _is_optimizer(cls: type) -> bool:
    return hasattr(cls, "update_step") and hasattr(cls, "apply_gradients")


def _is_called_as_librarys(cls: type) -> bool:
    """Says whether what a class of the user's adds to a library's is not called by a call of it."""
    own = [base for base in cls.__mro__ if not _is_librarys(base.__module__)]
    names = {name for base in own if base is not object for name in vars(base)} - _OF_CLASSES
    if _is_model(cls):
        return names <= _OF_TRAINING
    return _is_optimizer(cls) and names <= _OF_OPTIMIZERS


_takes_given_rate: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()


def takes_given_rate(optimizer: type) -> bool:
    """Says whether an optimizer's update looks for no other learning rate than it is given."""
    known = _takes_given_rate.get(optimizer)
    if known is None:
        known = _takes_given_rate[optimizer] = not _names_of(optimizer) & _RATES
    return known


def _names_of(optimizer: type) -> set[str]:
    functions = [
        function
        for base in optimizer.__mro__
        if base.__name__ not in ("BaseOptimizer", "TFOptimizer")
        for name, function in vars(base).items()
        if isinstance(function, types.FunctionType) and name not in ("__init__", "get_config")
    ]
    return {name for function in functions for name in function.__code__.co_names}


def _is_real_container(value: Any) -> bool:
    return issubclass(type(value), _CONTAINERS)


def _is_container(value: Any) -> bool:
    if not isinstance(value, _CONTAINERS):
        return False
    module = type(value).__module__
    return module in ("builtins", "collections") or _is_librarys(module)


def is_librarys_function(function: Any) -> bool:
    """Says whether a function is TensorFlow's or Keras', and so is what it wraps."""
    seen: set[int] = set()
    pending = [function]
    while pending:
        each = pending.pop()
        if isinstance(each, types.MethodType):
            each = each.__func__
        # `__module__` does not say whose it is: `functools.wraps` copies it.
        is_function = isinstance(each, types.FunctionType)
        if not is_function or not _is_librarys(each.__globals__.get("__name__")):
            return False
        seen.add(id(each))
        for cell in each.__closure__ or ():
            held = _held_by(cell)
            is_called = isinstance(held, (types.FunctionType, types.MethodType))
            if is_called and id(getattr(held, "__func__", held)) not in seen:
                pending.append(held)
    return True


def _held_by(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing yet
        return None


def _is_librarys(module: str | None) -> bool:
    return (module or "").split(".")[0] in _LIBRARIES
