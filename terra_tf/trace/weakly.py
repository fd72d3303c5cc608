"""Tensors that a TraceGraph knows and does not keep alive.

A variable, or a tensor that was the same in every step, is the program's: when the program lets
go of it, its memory is free. What is known of it besides is kept: the type of a variable.
"""

from __future__ import annotations

import weakref
from typing import Any


class Weak:
    """Somebody's tensor.

    Args:
      tensor: What knows no weak references (there is such a thing in tests) is kept.
    """

    __slots__ = ("_find",)

    def __init__(self, tensor: Any) -> None:
        try:
            self._find: Any = weakref.ref(tensor)
        except TypeError:
            self._find = lambda: tensor

    @property
    def tensor(self) -> Any:
        """The tensor; None once it is gone."""
        return self._find()


class HandleType:
    """What a variable's handle says of the variable, as `handle_shape_and_type` reads it.

    Attributes:
      device: Where the variable is.
    """

    __slots__ = ("_handle_data", "device")

    def __init__(self, handle: Any) -> None:
        self._handle_data = getattr(handle, "_handle_data", None)
        self.device = getattr(handle, "device", None)
