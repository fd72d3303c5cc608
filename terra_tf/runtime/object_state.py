"""What a library's objects (optimizers, layers, variables) hold, so that a change is seen.

A call on such an object is replayed only while everything that it can depend on is as it was. The
walk goes through the attributes of Keras' objects, the variables, lists and dictionaries among
them, and refuses what it cannot see into: objects and functions of the user's, tensors.
"""

from __future__ import annotations

import enum
import inspect
import itertools
import sys
import types
from collections.abc import Iterable
from typing import Any

import numpy as np

from terra_tf import _native
from terra_tf._tf_internals import BaseResourceVariable, EagerTensor, dtypes, ops, tensor_shape

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
# What training a Keras model leaves in it: loops read it, and no layer's call.
_OF_TRAINING = frozenset(
    {
        *("train_function", "test_function", "predict_function", "history", "stop_training"),
        *("make_train_function", "make_test_function", "make_predict_function"),
        *("stop_evaluating", "stop_predicting", "_eval_epoch_iterator", "_initial_epoch"),
        *("_self_terra_acceleration", "_run_eagerly", "_compile_config"),
    }
)
# What a class of the user's may have and still do what its base does. A change of it is seen by
# the guard of its type.
_UNCALLED = frozenset(
    {
        *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__"),
        *("__firstlineno__", "__static_attributes__", "__init__", "get_config", "from_config"),
    }
)
_CONTAINERS = (list, tuple, dict, set, frozenset)
_KERAS_GLOBALS = "keras.src.backend.common.global_state"
_KERAS_CONFIG = "keras.src.backend.config"


class UnseenStateError(Exception):
    """An object holds something of which changes could not be seen; the message says what."""


def guard_of(objects: Iterable[Any]) -> Any:
    """Returns a native `StateGuard` of all that the objects hold now.

    Raises:
      UnseenStateError: If a change of something in them could not be seen.
    """
    walk = _Walk(_native.load().module.StateGuard())
    objects = tuple(objects)
    walk.guard.add(objects)  # so that none of their addresses is used again
    for item in objects:
        walk.visit(item, type(item).__name__)
    walk.add_globals()
    return walk.guard


class _Walk:
    def __init__(self, guard: Any) -> None:
        self.guard = guard
        self._seen: set[int] = set()

    def visit(self, value: Any, path: str) -> None:
        if isinstance(value, _ATOMS) or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, EagerTensor):
            if value.dtype != dtypes.resource:
                raise UnseenStateError(f"{path} is a tensor")
        elif isinstance(value, BaseResourceVariable):
            self.guard.add_type(type(value))
            self.guard.add(vars(value))
        elif isinstance(value, types.MethodType):
            self.visit(value.__func__, path)
            self.visit(value.__self__, f"{path}.__self__")
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
        elif _behaves_as_librarys(type(value)):
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
                self.visit(item, f"what {path} calls")

    def _visit_container(self, value: Any, path: str) -> None:
        if not issubclass(type(value), _CONTAINERS):  # a proxy, as TensorFlow's tracking makes
            self.visit(getattr(value, "__wrapped__", object()), path)
            return
        self.guard.add(value)
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            self.visit(item, f"{path}[{key!r}]")
        for name, item in getattr(value, "__dict__", {}).items():
            if name == "_storage":  # TensorFlow's wrapped lists
                self.visit(item, f"{path}.{name}")

    def _visit_object(self, value: Any, path: str) -> None:
        attributes = getattr(value, "__dict__", None)
        if attributes is None:
            raise UnseenStateError(f"{path} is a {type(value).__name__}")
        self.guard.add_type(type(value))
        unread = _OF_TRAINING if hasattr(type(value), "make_train_function") else frozenset()
        self.guard.add(attributes, unread or None)
        for name, item in list(attributes.items()):
            if not name.startswith("_self_") and name not in _BOOKKEEPING | unread:
                self.visit(item, f"{path}.{name}")

    def add_globals(self) -> None:
        """Keras' settings; scopes that the thread is in: of Keras, and of strategies."""
        keras_globals = sys.modules.get(_KERAS_GLOBALS)
        if keras_globals is not None:
            self.guard.add(vars(keras_globals))  # `clear_session` replaces the trackers
            self.guard.add(vars(sys.modules[_KERAS_CONFIG]))
            # What the context of nested layers' calls holds is part of a call's key.
            self.guard.add(vars(keras_globals.GLOBAL_STATE_TRACKER), "current_call_ctx")
        self.guard.add(ops.get_default_graph()._distribution_strategy_stack)


def _is_container(value: Any) -> bool:
    if not isinstance(value, _CONTAINERS):
        return False
    module = type(value).__module__
    return module in ("builtins", "collections") or _is_librarys(module)


def _behaves_as_librarys(kind: type) -> bool:
    """Says whether a class is a library's, or adds to one nothing that a call could run."""
    if _is_librarys(kind.__module__):
        return True
    bases = itertools.takewhile(lambda base: not _is_librarys(base.__module__), kind.__mro__)
    users = tuple(bases)
    rest = kind.__mro__[len(users) : -1]
    return (
        rest != ()
        and all(_is_librarys(base.__module__) for base in rest)
        and all(type(base) is type and vars(base).keys() <= _UNCALLED for base in users)
    )


def _is_librarys(module: str | None) -> bool:
    return (module or "").split(".")[0] in _LIBRARIES
