"""What nodes of a TraceGraph have in common that are the same code in other trips of a loop.

A location without its trips is a place in the code. In a gradient function the location names the
forward op, which is another one in each trip: there the forward op's own place stands for it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from terra_tf.trace.location_tree import Location
from terra_tf.trace.markers import SUM, ZEROS
from terra_tf.trace.static_stack import Point
from terra_tf.trace.trace_graph import Node


class LoopPlaces:
    """The places of nodes in loops of the user's code.

    Args:
      nodes: Of the graph.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._number_of = {node.record.marker: number for number, node in enumerate(nodes)}
        self._places: dict[int, int | None] = {}
        self._numbers: dict[tuple, int] = {}  # place -> what stands for it

    def of(self, number: int) -> int | None:
        """Returns a number for a node's place, or None if it is in no loop of the user's."""
        if number not in self._places:
            self._places[number] = self._find(self._nodes[number].key.location)
        return self._places[number]

    def _find(self, location: object) -> int | None:
        if not isinstance(location, Location) or not any(
            level.counters and level.point.is_user for level in location.levels
        ):
            return None
        place = tuple(self._of_point(level.point) for level in location.path)
        return self._numbers.setdefault(place, len(self._numbers))

    def _of_point(self, point: Point) -> Hashable:
        return point if point.marker is None else self._of_marker(point.marker)

    def _of_marker(self, marker: Hashable) -> Hashable:
        number = self._number_of.get(marker)
        place = None if number is None else self.of(number)
        if place is not None:
            return ("forward", place)
        if isinstance(marker, tuple) and marker and marker[0] in (SUM, ZEROS):
            kind, what, *rest = marker
            return (kind, self._of_marker(what), *rest)
        return marker
