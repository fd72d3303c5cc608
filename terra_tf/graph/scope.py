"""What the generator knows at one place of the function: in its main line, or in a branch.

A branch sees what the main line had before it; what it adds stays in it until the generator
hands it out through the Case.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from terra_tf.graph.lean_graph import apply_op
from terra_tf.graph.loops import TripFeed
from terra_tf.trace.trace_graph import Feed


@dataclasses.dataclass(slots=True)
class HeldWrite:
    """An in-place write of a variable that waits for the commit.

    Attributes:
      slot: The variable.
      op_type: The op.
      tensors: Its inputs but for the handle, by name.
      attrs: Its attributes.
      handle: The name of the input that is the variable's handle.
    """

    slot: int
    op_type: str
    tensors: dict[str, Any]
    attrs: dict[str, Any]
    handle: str = "resource"

    def emit(self, handle: Any, tensors: dict[str, Any]) -> Any:
        """Adds the op to the current graph."""
        return apply_op(self.op_type, **{self.handle: handle}, **tensors, **self.attrs)


@dataclasses.dataclass(slots=True)
class HeldCase:
    """In-place writes that wait for the commit and depend on a branch.

    Attributes:
      index: The branch that was taken, int32.
      branches: For each branch its writes, with inputs of the main line.
      num_branches: How many there are, the last one maybe for skipping.
    """

    index: Any
    branches: list[list[HeldWrite]]
    num_branches: int


class EpochState:
    """What has been built of the epoch under way, in one scope.

    Attributes:
      gate: The op that reads of variables come after, or None.
      values: Slot -> the variable's value as of here.
      changed: Slots that have been assigned.
      reads: Ops that read a variable itself, or branches that do.
      fallible: Ops that can fail on data, or branches with such ops.
      fetches: Ops that deliver values.
      held_back: In-place writes, in order.
    """

    def __init__(self, gate: Any) -> None:
        self.gate = gate
        self.values: dict[int, Any] = {}
        self.changed: set[int] = set()
        self.reads: list = []
        self.fallible: list = []
        self.fetches: list = []
        self.held_back: list[HeldWrite | HeldCase] = []


class Scope:
    """One graph under construction.

    Attributes:
      graph: The FuncGraph.
      parent: The scope around a branch, or None.
      epoch: The state of the open epoch.
      outputs: (node, output) -> tensor.
      webs: Web -> the latest producer's tensor.
      joins: (node, position) -> what a joined input was.
      constants: Constants are made anew in each graph, or shape functions would not see them.
      feeds: Feed -> tensor; made in the branch that uses it, where Python is known to send it.
      handles: Slot -> symbolic handle.
      place: None in the main line, else the branch: (level, index).
      shifts: How many levels are between what is built here and each of the places that it
        stands for: in a rolled loop, one for each trip, else 0 alone.
      step: What communication ops take for their step; None where it is the parent's.
      trip: In the body of a loop, the number of the trip, int32.
      flat_trip: The same counted through all loops around, int32.
      inputs: (node, position) -> the input, where a loop's body sees another.
      loop_inputs: What a loop's body takes from the trip before, and its constants by trip.
      emitted: Node -> its outputs, none if it was folded; in the order in which they were built.
      controls: Ops that must run although nothing uses them.
    """

    def __init__(
        self,
        graph: Any,
        parent: Scope | None,
        epoch: EpochState,
        place: tuple | None = None,
        shifts: tuple[int, ...] = (0,),
    ) -> None:
        self.place = place
        self.shifts = shifts
        self.step: Any = None
        self.trip: Any = None
        self.flat_trip: Any = None
        self.inputs: dict[tuple[int, int], Any] = {}
        self.loop_inputs: dict[Any, Any] = {}
        self.emitted: dict[int, list] = {}
        self.graph = graph
        self.parent = parent
        self.epoch = epoch
        self.outputs: dict[tuple[int, int], Any] = {}
        self.webs: dict[int, Any] = {}
        self.joins: dict[tuple[int, int], Any] = {}
        self.constants: dict[Any, Any] = {}
        self.feeds: dict[Feed | TripFeed, Any] = {}
        self.handles: dict[int, Any] = {}
        self.controls: list = []

    def branch(self, graph: Any, place: tuple) -> Scope:
        """Returns a scope for a branch at this place."""
        epoch = EpochState(None)
        epoch.values = dict(self.epoch.values)
        return Scope(graph, self, epoch, place, self.shifts)

    def body(self, graph: Any, place: tuple, shifts: tuple[int, ...]) -> Scope:
        """Returns a scope for the body of a loop, which stands for a trip at each shift."""
        return Scope(graph, self, EpochState(None), place, shifts)

    @property
    def places(self) -> list[tuple | None]:
        """The places that what is built here stands for."""
        if self.place is None:
            return [None]
        level, index = self.place
        return [(level + shift, index) for shift in self.shifts]

    def nearest(self, attribute: str) -> Any:
        """Returns an attribute of this scope or the innermost around it where it is not None."""
        scope: Scope | None = self
        while scope is not None:
            if getattr(scope, attribute) is not None:
                return getattr(scope, attribute)
            scope = scope.parent
        return None

    def find(self, table: str, key: Any) -> Any:
        """Returns an entry of a table, of this scope or of those around it, or None."""
        scope: Scope | None = self
        while scope is not None:
            found = getattr(scope, table).get(key)
            if found is not None:
                return found
            scope = scope.parent
        return None
