"""Watches the graph that is being built: ends it where the budget does, and says if it takes long.

    watch = BuildWatch("step", num_ops=800, limit_s=1.5)
    build_graph(graph, watch.check)     calls `check` at each op, in a thread of its own
    took_s = watch.end()
"""

from __future__ import annotations

import logging

from terra_tf.config import config
from terra_tf.errors import TooCostlyError
from terra_tf.runtime import budget

_logger = logging.getLogger("terra_tf")

_LONG_S = 10.0


class BuildWatch:
    """Watches one build; begins when it is made.

    Args:
      name: The function's.
      num_ops: Of the graph.
      limit_s: How long it may take, in seconds, where costs are weighed.
    """

    def __init__(self, name: str, num_ops: int, limit_s: float) -> None:
        self._name = name
        self._num_ops = num_ops
        self._limit_s = limit_s
        self._program = budget.program
        self._begun_s = self._program.now()
        self._has_told = self._is_over = False

    def check(self) -> None:
        """Goes on, or not.

        Raises:
          TooCostlyError: The budget is used up, or nobody waits for the graph any more.
        """
        if self._is_over:
            raise TooCostlyError("nobody waits for the graph any more")
        took_s = self._program.now() - self._begun_s
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
        """The graph is built, or will not be. Returns how long it took, in seconds."""
        self._is_over = True
        return self._program.now() - self._begun_s
