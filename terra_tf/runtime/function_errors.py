"""Errors of TensorFlow's functions as a call of them raises them: with the lines of their bodies.

A call in Python adds to an op's error which line of the function made the op ("Graph execution
error: Detected at node ..."). A function that runs again by its name, in a replay, has no such
call around it.
"""

from __future__ import annotations

from typing import Any

from terra_tf._tf_internals import atomic_function, context
from terra_tf.trace.function_facts import definition_of, functions_of


class _ByName(atomic_function.AtomicFunction):
    """What TensorFlow asks of a function to describe its error; it counts as no use of it."""

    __slots__ = ("_known_as",)

    def __init__(self, name: str) -> None:
        self._known_as = name

    def __del__(self) -> None:
        """Unlike TensorFlow's, lets go of nothing."""

    @property
    def name(self) -> bytes:
        return self._known_as.encode()

    @property
    def children(self) -> list[Any]:
        definition = definition_of(self._known_as)
        names = set() if definition is None else set(functions_of(definition))
        return [_ByName(name) for name in sorted(names)]

    @property
    def graph_debug_info(self) -> Any:
        return context.context().get_graph_debug_info(self.name)


def raised_by_function(name: str, error: BaseException) -> BaseException:
    """Returns an op's error with what a call of the function adds to it."""
    atomic_function.InterpolateRuntimeError(_ByName(name)).__exit__(type(error), error, None)
    return error
