"""Where a step is whose first ops have run: the cursor asks at forks, a recorder goes on there."""

from __future__ import annotations

from collections.abc import Iterable
from types import FrameType
from typing import TYPE_CHECKING

from terra_tf.runtime import gradient_markers
from terra_tf.trace.location import Location, LocationTracker
from terra_tf.trace.records import OpRecord

if TYPE_CHECKING:
    from terra_tf import _terra_native
    from terra_tf.runtime.built_graph import BuiltGraph


def tracker_after(stop_frame: FrameType | None, ops: Iterable[OpRecord]) -> LocationTracker:
    """Returns a tracker as if it had located these ops."""
    tracker = LocationTracker(gradient_wrapper_code=gradient_markers.GRADIENT_WRAPPER_CODE)
    tracker.begin(stop_frame)
    tracker.go_on((op.location, op.op_type) for op in ops)
    return tracker


class ForkLocator:
    """Says where Python is at the forks of one step. The GIL guards it.

    It goes on from fork to fork: a long loop has one in every trip.
    """

    def __init__(
        self, built: BuiltGraph, native: _terra_native.Session, stop_frame: FrameType | None
    ) -> None:
        self._nodes = built.trace_graph.nodes
        self._native = native
        self._tracker = tracker_after(stop_frame, ())
        self._num_ops = 0

    def look(self, frame: FrameType) -> Location:
        """Returns the location of the op that `frame` runs now."""
        path = self._native.path_from(self._num_ops)
        self._num_ops += len(path)
        records = [self._nodes[number].record for number in path]
        self._tracker.go_on((record.location, record.op_type) for record in records)
        *outer, marker = gradient_markers.thread_markers().stack or [None]
        return self._tracker.look(frame, marker, outer)
