"""A function whose code is swapped for other code, so that it stays the same object to everybody.

    tf.matmul(a, b) -> the swapped code -> target((a, b), {}) -> a copy with the original code
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

_PLACEHOLDER = "terra_tf: the target is put here"


class SwappedCode:
    """Lets a function call `target(args, kwargs)`, from `swap` to `restore`.

    Both may be called again, where they were interrupted. Identity, attributes, defaults,
    signature and pickling stay as they are.

    Args:
      function: Whose code is swapped.
      make_target: Gets a copy of the function that works as before; returns the target.
      file: Where the code says it is; by default where the function's own is.
    """

    def __init__(
        self,
        function: types.FunctionType,
        make_target: Callable[[types.FunctionType], Any],
        file: str | None = None,
    ) -> None:
        self._function = function
        self._code = function.__code__
        self._signature = None if hasattr(function, "__wrapped__") else inspect.signature(function)
        target = make_target(_copy_of(function))
        self._calling_code = _code_that_calls(target, self._code, file or self._code.co_filename)

    def is_of(self, function: types.FunctionType) -> bool:
        """Says whether it was made for this function as it is now."""
        return function is self._function and function.__code__ in (
            self._code,
            self._calling_code,
        )

    def swap(self) -> None:
        """Puts the code that calls the target in place.

        It is the same code object each time: ops are located by the code that runs them.
        """
        if self._signature is not None:  # the swapped code's would be (*args, **kwargs)
            self._function.__signature__ = self._signature  # type: ignore[attr-defined]
        self._function.__code__ = self._calling_code

    def restore(self) -> None:
        """Puts the original code back."""
        self._function.__code__ = self._code
        if self._signature is not None:
            vars(self._function).pop("__signature__", None)


def is_swapped(code: types.CodeType) -> bool:
    """Says whether code was put in the place of other code."""
    return code.co_name == "call" and code.co_varnames == ("args", "kwargs", "target")


def _copy_of(function: types.FunctionType) -> types.FunctionType:
    copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__,
        function.__closure__,
    )  # fmt: skip
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__module__, copy.__qualname__ = function.__module__, function.__qualname__
    return copy


def _code_that_calls(target: Any, original: types.CodeType, file: str) -> types.CodeType:
    """Returns code `(*args, **kwargs)` that calls target(args, kwargs), and looks like another."""
    names = original.co_freevars
    cells = "; ".join(f"{name} = None" for name in names) or "pass"
    uses = f"        if False: {', '.join(names)}\n" if names else ""
    source = (
        f"def make():\n    {cells}\n    def call(*args, **kwargs):\n{uses}"
        f"        target = {_PLACEHOLDER!r}\n        return target(args, kwargs)\n    return call\n"
    )
    namespace: dict[str, Any] = {}
    exec(compile(source, file, "exec"), namespace)
    code: types.CodeType = namespace["make"]().__code__
    constants = tuple(target if value == _PLACEHOLDER else value for value in code.co_consts)
    return code.replace(co_consts=constants, co_firstlineno=original.co_firstlineno)
