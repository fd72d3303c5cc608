"""Who watches a program from outside: a profile, `python -m terra_tf inspect`. Usually nobody.

    observation.observer = an Observer     sees every step from the next one on
    observation.created = []               collects the terra functions that are made from now on

Costs one look at a module's attribute for each step.
"""

from __future__ import annotations

import contextlib
from typing import Any, Protocol


class Observer(Protocol):
    """What can watch."""

    def watch(self, function: Any, number: int) -> contextlib.AbstractContextManager[Any]:
        """Returns a context that is entered around a step of a `Function`."""


observer: Observer | None = None
created: list[Any] | None = None


def note_created(function: Any) -> None:
    """A `Function` has been made."""
    if created is not None:
        created.append(function)
