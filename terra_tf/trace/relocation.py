"""Locations as the graph has them.

While a step is recorded, nobody knows yet which nodes its ops are. An op's location counts the
trips of the loops in *this* step, and gradient functions are named by *this* step's ops. The
graph may know better: the third layer that runs today may be the fifth of the model. Placing
the ops in order, each location is found once more, from that of the *node* before:

    relocator = Relocator()
    for record in trace.ops:
        record = relocator.relocate(record)    # where it is, after the nodes before it
        ...                                    # which node is it?
        relocator.arrive(record, location, marker)    # the node's

The cursor does the same: it asks for the location that comes after the node where it is.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from terra_tf.trace.location import Location, LocationChain
from terra_tf.trace.markers import translated
from terra_tf.trace.records import OpRecord
from terra_tf.trace.static_stack import Point, marker_point


class Relocator:
    """Relocates the ops of one trace, in order."""

    def __init__(self) -> None:
        self._chain = LocationChain()
        self._names: dict[Hashable, Hashable] = {}  # the trace's markers -> the graph's

    def relocate(self, record: OpRecord) -> OpRecord:
        """Returns the record as it is after the nodes so far. Its marker is still the trace's."""
        if not isinstance(record.location, Location):
            return record
        stack = [self._translated(location.point) for location in record.location.path]
        location = self._chain.next(stack)
        forward = translated(record.forward, self._names)
        if location is record.location and forward == record.forward:
            return record
        return record._replace(location=location, forward=forward)

    def arrive(self, record: OpRecord, location: Any, marker: Hashable) -> None:
        """Says which node an op is, by the node's location and marker."""
        if record.marker is not None:
            self._names[record.marker] = marker
        if isinstance(location, Location):
            self._chain.arrive(location, record.op_type)

    def _translated(self, point: Point) -> Point:
        if point.marker is None:
            return point
        marker = translated(point.marker, self._names)
        return point if marker == point.marker else marker_point(marker)
