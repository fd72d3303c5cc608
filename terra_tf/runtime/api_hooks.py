"""Hooks in TensorFlow's Python functions, so that calls of them can be replayed.

A function keeps its identity, attributes and signature: only its code is swapped, for one that
hands the call to native code. So whoever holds a reference is hooked, too.

    tf.matmul(a, b) -> the swapped code -> native `pure_function` -> a copy with the original code

A function that the program dispatches to its own for types of its own runs: arguments of such
types have no place in a call's key.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf

from terra_tf._tf_internals import ResourceVariable
from terra_tf.runtime.swapped_code import SwappedCode

_PUBLIC_MODULES = (
    tf, tf.math, tf.nn, tf.linalg, tf.image, tf.signal, tf.bitwise, tf.random, tf.strings,
    tf.quantization,
)  # fmt: skip
# Where TensorFlow defines functions that run ops and have no state. The others among the public
# ones build graphs, call functions that they are given, or look around.
_OP_MODULES = frozenset(
    f"tensorflow.python.ops.{name}"
    for name in (
        "array_ops", "array_ops_stack", "bincount_ops", "bitwise_ops", "clip_ops",
        "confusion_matrix",
        "embedding_ops", "histogram_ops", "image_ops_impl", "linalg_ops", "math_ops", "nn_impl",
        "nn_ops", "rnn", "shape_util", "sort_ops", "special_math_ops", "stateless_random_ops",
        "string_ops", "weak_tensor_math_ops", "weak_tensor_nn_ops", "weak_tensor_array_ops",
        "weak_tensor_image_ops", "weak_tensor_linalg_ops", "weak_tensor_special_math_ops",
        "linalg.linalg_impl", "linalg.linear_operator_util", "signal.fft_ops", "signal.dct_ops",
        "signal.mfcc_ops", "signal.shape_ops", "signal.spectral_ops", "signal.window_ops",
    )
)  # fmt: skip
_OPERATORS = tuple(
    f"__{name}__"
    for name in (
        "abs", "add", "radd", "and", "rand", "div", "rdiv", "eq", "floordiv", "rfloordiv", "ge",
        "getitem", "gt", "invert", "le", "lt", "matmul", "rmatmul", "mod", "rmod", "mul", "rmul",
        "ne", "neg", "or", "ror", "pow", "rpow", "sub", "rsub", "truediv", "rtruediv", "xor",
        "rxor",
    )
)  # fmt: skip
_VARIABLE_METHODS = ("assign", "assign_add", "assign_sub", "read_value", "value")


class ApiHooks:
    """Swaps the code of functions, and swaps it back.

    Args:
      functions: Yields what is hooked: a name for people, the function, and whether it depends
        on objects among its arguments.
    """

    def __init__(
        self, functions: Callable[[], Iterable[tuple[str, types.FunctionType, bool]]]
    ) -> None:
        self._functions = functions
        self._known: dict[int, SwappedCode] = {}
        self._swapped: dict[int, SwappedCode] = {}
        self._is_complete = False  # else it was interrupted, or has not begun

    def sync(self, native: Any, wanted: bool) -> None:
        """Puts the hooks in place, or takes them away. Called at each step."""
        if wanted and not self._is_complete:
            for name, function, takes_objects in self._functions():
                if id(function) not in self._swapped:
                    swapped = self._code_for(native, name, function, takes_objects)
                    self._swapped[id(function)] = swapped  # first: `remove` has to know it
                    swapped.swap()
            self._is_complete = True
        elif not wanted and self._swapped:
            self.remove()

    def _code_for(
        self, native: Any, name: str, function: types.FunctionType, takes_objects: bool
    ) -> SwappedCode:
        """Returns what swaps a function's code, for the same as the last time."""
        known = self._known.get(id(function))
        if known is not None and known.is_of(function):
            return known
        make_target = functools.partial(_pure_function, native, name, takes_objects)
        swapped = self._known[id(function)] = SwappedCode(function, make_target)
        return swapped

    def remove(self) -> None:
        """Puts all code back."""
        self._is_complete = False
        for swapped in self._swapped.values():
            swapped.restore()
        self._swapped.clear()


def functions_of_tensorflow() -> Iterator[tuple[str, types.FunctionType, bool]]:
    """Yields TensorFlow's functions, operators and methods that run ops and have no state."""
    for name, value in _candidates():
        if isinstance(value, types.FunctionType):
            yield name, value, False


def _candidates() -> Iterator[tuple[str, Any]]:
    for module in _PUBLIC_MODULES:
        prefix = "tf" if module is tf else f"tf.{module.__name__.split('.')[-1]}"
        for name, value in vars(module).items():
            if _is_op_function(value):
                yield f"{prefix}.{name}", value
    for name in _OPERATORS:
        yield f"Tensor.{name}", vars(tf.Tensor).get(name)
    for owner in ResourceVariable.__mro__[:-1]:  # without `object`
        for name in (*_OPERATORS, *_VARIABLE_METHODS):
            yield f"Variable.{name}", vars(owner).get(name)


def _is_op_function(value: Any) -> bool:
    module = getattr(value, "__module__", None) or ""
    return module in _OP_MODULES or module.startswith("tensorflow.python.ops.gen_")


def _pure_function(
    native: Any, name: str, takes_objects: bool, original: types.FunctionType
) -> Any:
    return native.pure_function(name, original, takes_objects, False)
