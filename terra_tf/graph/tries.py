"""Where Python leaves a `try` whose handler an error of the graph's has to pass.

An op that can fail, in a `try` that raises again what it catches, fails when the graph comes to it.
Its error has to be raised before Python leaves the `try`. So Python waits behind each op that may
be the last one in there: the graph says that nothing before it has failed.
"""

from __future__ import annotations

from terra_tf.errors import ImperativeReason, UndelegableOpError
from terra_tf.trace.case_assignment import CaseAssignment
from terra_tf.trace.exception_handlers import Try, may_be_caught, tries_around
from terra_tf.trace.trace_graph import TraceGraph


class Tries:
    """Told which nodes can fail, in program order."""

    def __init__(self, graph: TraceGraph, cases: CaseAssignment) -> None:
        self._graph = graph
        self._cases = cases
        self._fallible: set[Try] = set()  # those with an op that can fail

    def note_fallible(self, index: int, images: list[int]) -> None:
        """Notes that a node can fail, and those that it stands for in a rolled loop.

        Raises:
          UndelegableOpError: Its error could end in a `try` around it, so it has to fail there.
        """
        if may_be_caught(self._graph.nodes[index].key.location):
            raise UndelegableOpError(index, ImperativeReason.MAY_BE_CAUGHT)
        for image in images:
            self._fallible |= self._around(image)

    def may_leave_at(self, images: list[int]) -> bool:
        """Says whether a node may be the last in a `try` in which something can fail.

        Args:
          images: The node; in a rolled loop, those that it stands for.
        """
        return bool(self._fallible) and any(map(self._may_leave_at, images))

    def _may_leave_at(self, index: int) -> bool:
        inside = self._around(index) & self._fallible
        if not inside:
            return False
        block = self._cases.block_of[index]
        following = self._graph.successors.get(index, ())
        return block.nodes[-1] == index or any(
            successor < 0 or not inside <= self._around(successor) for successor in following
        )

    def _around(self, index: int) -> frozenset[Try]:
        return tries_around(self._graph.nodes[index].key.location)
