"""Who watches steps from outside: a profile, while one is being made. Usually nobody.

    observation.observer = an Observer     from the next step on
    observation.observer = None

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
