"""What has been replaced in TensorFlow, and how it is put back.

    replacements = Replacements()
    replacements.replace(module, "name", mine)     sets it; returns what was there
    replacements.note(undo)                        something else that `undo()` puts back
    replacements.undo()                            puts everything back, the last first

How a thing is put back is noted before it is replaced, so that nothing is left behind if an
exception comes in between.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


class Replacements:
    """Replaces attributes of modules and classes."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def replace(self, owner: Any, name: str, replacement: Any) -> Any:
        """Sets an attribute; returns what it was."""
        original = owner.__dict__[name] if isinstance(owner, type) else getattr(owner, name)
        self.note(functools.partial(setattr, owner, name, original))
        setattr(owner, name, replacement)
        return original

    def note(self, undo: Callable[[], object]) -> None:
        """Notes how something is put back; to be called before it is replaced, if it can be."""
        self._undo.append(undo)

    def undo(self) -> None:
        """Puts everything back."""
        while self._undo:
            self._undo[-1]()
            self._undo.pop()
