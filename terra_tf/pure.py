"""Functions that the user declares replayable: `terra_tf.pure`."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from terra_tf import _native
from terra_tf.errors import NotCallableError, format_message
from terra_tf.runtime import interception


def pure(function: Callable[..., Any]) -> Callable[..., Any]:
    """Declares that a function depends on nothing but its arguments and variables.

    In co-execution a call that looks like one before is then done without running its Python: its
    ops are delegated, and tapes record them. Use it for a function of many ops that many steps
    call, as a layer written by hand. Everywhere else it is the function it was.

    The function may take tensors, variables, numbers, strings, and lists of them, and objects of
    Keras; it may use variables of its own, as long as they stay the same objects, and return
    tensors or lists of them. What it prints, counts or stores happens only when its Python runs.
    A call that cannot be replayed runs its Python; `stats().calls_not_replayed` says why.

    With `config.check_pure`, every call runs its Python, and one that does something else than a
    call before that looked like it raises `ImpureError`.

    Args:
      function: A Python function.

    Returns:
      A function that takes the same arguments.

    Raises:
      NotCallableError: If it is no Python function.
    """
    if not isinstance(function, types.FunctionType):
        raise NotCallableError(
            format_message(
                f"terra_tf.pure was given a {type(function).__name__}",
                "TERRA-NOT-CALLABLE",
                why="It takes a function written with `def` or `lambda`.",
            )
        )
    interception.install()
    native = _native.load().module
    call_native = native.pure_function(function.__qualname__, function, True, True)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return call_native(args, kwargs)

    return call
