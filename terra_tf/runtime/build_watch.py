"""Watches the graph that is being built: ends it where the budget does, and says if it takes long.

One is built at a time, under the co-execution lock. `check` is called at every op of it.
"""

from __future__ import annotations

import logging

from terra_tf.config import config
from terra_tf.errors import TooCostlyError
from terra_tf.runtime import budget

_logger = logging.getLogger("terra_tf")

_LONG_S = 10.0


class _Watch:
    def __init__(self, name: str, num_ops: int, limit_s: float) -> None:
        self._name = name
        self._num_ops = num_ops
        self._limit_s = limit_s
        self._begun_s = budget.program.now()
        self._has_told = False

    def check(self) -> None:
        took_s = budget.program.now() - self._begun_s
        if took_s > _LONG_S and not self._has_told:
            self._has_told = True
            _logger.warning(
                "%s: building a graph of %d ops has taken %.0f s, and goes on",
                self._name,
                self._num_ops,
                took_s,
            )
        if config.weigh_costs and took_s > self._limit_s:
            raise TooCostlyError(
                f"building a graph of {self._num_ops} ops was stopped after {took_s:.1f} s"
            )

    def end(self) -> float:
        """The graph is built, or will not be. Returns how long it took."""
        global _current
        _current = None
        return budget.program.now() - self._begun_s


_current: _Watch | None = None


def begin(name: str, num_ops: int, limit_s: float) -> _Watch:
    """A graph of a function is going to be built, in no more than so much time."""
    global _current
    _current = _Watch(name, num_ops, limit_s)
    return _current


def check() -> None:
    """Goes on, or not.

    Raises:
      TooCostlyError: The budget is used up.
    """
    if _current is not None:
        _current.check()
