"""What a library's objects (optimizers, layers, variables) hold, so that a change is seen.

A call on such an object is replayed only while everything that it can depend on is as it was. The
walk goes through the attributes of Keras' objects, the variables, lists and dictionaries among
them, and refuses what it cannot see into: objects and functions of the user's, tensors.

The guard keeps none of them alive. So the walk tells it of a container only after it has told it
of whoever holds that container.
"""

from __future__ import annotations

import enum
import inspect
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
    for item in objects:
        walk.add_alive(item, type(item).__name__)
        walk.visit(item, type(item).__name__)
    walk.add_globals()
    walk.guard.finish()
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
        elif _is_librarys(type(value).__module__):
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
            self.visit(item, f"{path}[{key!r}]")

    def _visit_object(self, value: Any, path: str) -> None:
        self._add_attributes(value, path)
        for name, item in list(vars(value).items()):
            if not name.startswith("_self_") and name not in _BOOKKEEPING:
                self.visit(item, f"{path}.{name}")

    def add_alive(self, value: Any, path: str) -> None:
        """Notes an object that no container of the guard holds."""
        _require(self.guard.add_alive(value), path, value)

    def _add_attributes(self, value: Any, path: str) -> None:
        _require(self.guard.add_attributes(value), path, value)
        self.guard.add_type(type(value))

    def add_globals(self) -> None:
        """Keras' settings; scopes that the thread is in: of Keras, and of strategies."""
        keras_globals = sys.modules.get(_KERAS_GLOBALS)
        if keras_globals is not None:
            self.guard.add_global(vars(keras_globals))  # `clear_session` replaces the trackers
            self.guard.add_global(vars(sys.modules[_KERAS_CONFIG]))
            # What the context of nested layers' calls holds is part of a call's key.
            tracker = keras_globals.GLOBAL_STATE_TRACKER
            self.guard.add_named(tracker, "__dict__", "current_call_ctx")
        self.guard.add_global(ops.get_default_graph()._distribution_strategy_stack)


def _require(is_seen: bool, path: str, value: Any) -> None:
    if not is_seen:
        raise UnseenStateError(f"{path} is a {type(value).__name__}")


def _is_real_container(value: Any) -> bool:
    return issubclass(type(value), _CONTAINERS)


def _is_container(value: Any) -> bool:
    if not isinstance(value, _CONTAINERS):
        return False
    module = type(value).__module__
    return module in ("builtins", "collections") or _is_librarys(module)


def _is_librarys(module: str | None) -> bool:
    return (module or "").split(".")[0] in _LIBRARIES
