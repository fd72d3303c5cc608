"""What the generator hands on: a registered function and the channels of its mailbox."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from terra_tf.errors import ImperativeReason
from terra_tf.graph.loops import RolledLoop
from terra_tf.trace.case_assignment import BasicBlock, CaseAssignment
from terra_tf.trace.joins import Joins
from terra_tf.trace.trace_graph import Captured, Feed


@dataclasses.dataclass(slots=True)
class EpochChannels:
    """How Python closes an epoch: commit, then await `done`, then `resume` the next.

    `start` is the level of the case assignment that the epoch begins with.
    """

    start: int
    commit: int
    done: int = -1
    resume: int = -1


class EmittedLoop(NamedTuple):
    """A rolled loop of the function.

    Attributes:
      loop: The loop, in the representatives of the loops around it.
      channel: Where Python says whether there is another trip; -1 if every path makes them all.
      shifts: How many levels are between it and where it is in each trip of the loops around it.
      depth: How many loops are around it.
    """

    loop: RolledLoop
    channel: int
    shifts: tuple[int, ...]
    depth: int


def trip_place(begin: int, depth: int) -> tuple[int, int]:
    """Returns the place that a trip of a rolled loop is.

    Args:
      begin: The trip's first level, which may be that of a trip of a loop around, too.
      depth: How many loops are around this one.
    """
    return begin, -1 - depth


class OpRange(NamedTuple):
    """The ops `[first, end)` of a FuncGraph that a node of the TraceGraph became."""

    graph: Any
    first: int
    end: int
    node: int


@dataclasses.dataclass(slots=True)
class GeneratedGraph:
    """A built function and the channels of its mailbox; -1 is no channel.

    Attributes:
      cases: The switch-cases.
      joins: How joined inputs are decided.
      function: The function as it was built, with a `Case` for each switch-case; for pictures.
      lowered: The function that runs, registered in TensorFlow's context while this lives.
      name: Its name.
      called_functions: Copies of TensorFlow's functions that it calls, registered while this lives.
      num_channels: How many channels a step's mailbox needs.
      captured_variables: Slots whose handles are the function's first inputs.
      held_handles: Slot of a captured variable -> what keeps its handle for `Terra>Handle`.
      captured_tensors: What its next inputs are.
      variable_channels: (slot, place) -> the channel its handle is fed through; a place is None
        for the main line, or (level, index) of the branch that is the first to use it.
      feed_channels: (feed, place) -> channel.
      feed_ranges: Feed -> [first, end) of the integers that ops can take without failing; what is
        fed is compared.
      output_feeds: (node, output) of imperative ops -> channel.
      seed_channels: Seeded node -> channel.
      fetch_channels: (node, output) -> channel.
      check_channels: Imperative node -> channel that says all before it has succeeded.
      exit_channels: Node that may be the last in a `try` -> channel that says the same behind it.
      case_channels: Level -> the channel of its decision, for those that are switch-cases.
      skippable: The switch-cases that have a branch for going past. In a rolled loop it is for all
        trips, though it may have been taken in some of them only.
      join_channels: (node, position) of a joined input -> channel.
      shape_rules: Node -> NodeDef, where the cursor has to find shapes out: of results, or of
        what is written.
      folded: Node -> ready outputs.
      on_host: Nodes whose small results follow from shapes and small values that Python has, which
        computes them as well.
      of_shapes: Those of them that follow from shapes and constants alone.
      output_shapes: (node, output) -> static dimensions, or None where they depend on data.
      epochs: In order; the first starts at level 0.
      is_fallible: Whether any delegated op can fail on data.
      written_slots: Variables that some delegated op writes.
      undelegable: Nodes that cannot be in the function after all -> why; none in a finished one.
      op_ranges: What each node became, for pictures; of a rolled loop's, those of one trip.
      num_switch_cases: How many Cases it has; what a rolled loop's body has is counted once.
      loops: The rolled loops, outer ones first.
      unrolled: (loop, why) of those that looked alike in all trips and could not be rolled.
      aligned: Level of a rolled loop -> its blocks in the order of its branches.
      trip_places: Level of a rolled loop -> the places of its trips, outermost loop first.
      kept: Level -> (its trip's first level, the first level behind the loop), where every trip
        of a rolled loop passes it.
    """

    cases: CaseAssignment
    joins: Joins
    function: Any = None
    lowered: Any = None
    name: str = ""
    called_functions: list[Any] = dataclasses.field(default_factory=list)
    num_channels: int = 0
    captured_variables: list[int] = dataclasses.field(default_factory=list)
    held_handles: dict[int, Any] = dataclasses.field(default_factory=dict)
    captured_tensors: list[Captured] = dataclasses.field(default_factory=list)
    variable_channels: dict[tuple[int, tuple | None], int] = dataclasses.field(default_factory=dict)
    feed_channels: dict[tuple[Feed, tuple | None], int] = dataclasses.field(default_factory=dict)
    feed_ranges: dict[Feed, tuple[int, int]] = dataclasses.field(default_factory=dict)
    output_feeds: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)
    seed_channels: dict[int, int] = dataclasses.field(default_factory=dict)
    fetch_channels: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)
    check_channels: dict[int, int] = dataclasses.field(default_factory=dict)
    exit_channels: dict[int, int] = dataclasses.field(default_factory=dict)
    case_channels: dict[int, int] = dataclasses.field(default_factory=dict)
    skippable: set[int] = dataclasses.field(default_factory=set)
    join_channels: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)
    shape_rules: dict[int, bytes] = dataclasses.field(default_factory=dict)
    folded: dict[int, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    on_host: set[int] = dataclasses.field(default_factory=set)
    of_shapes: set[int] = dataclasses.field(default_factory=set)
    output_shapes: dict[tuple[int, int], tuple | None] = dataclasses.field(default_factory=dict)
    epochs: list[EpochChannels] = dataclasses.field(default_factory=list)
    is_fallible: bool = False
    written_slots: set[int] = dataclasses.field(default_factory=set)
    undelegable: dict[int, ImperativeReason] = dataclasses.field(default_factory=dict)
    op_ranges: list[OpRange] = dataclasses.field(default_factory=list)
    num_switch_cases: int = 0
    loops: list[EmittedLoop] = dataclasses.field(default_factory=list)
    unrolled: list[tuple[RolledLoop, str]] = dataclasses.field(default_factory=list)
    aligned: dict[int, tuple[BasicBlock, ...]] = dataclasses.field(default_factory=dict)
    trip_places: dict[int, list[tuple]] = dataclasses.field(default_factory=dict)
    kept: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def places_of(self, node: int) -> list[tuple | None]:
        """Returns where a node is, outermost first.

        The main line is None, a trip of a rolled loop a `trip_place`, the branch of a
        switch-case (level, index).
        """
        level = self.cases.block_of[node].level
        places = [None, *self.trip_places.get(level, ())]
        return [*places, (level, self.branch_of(node))] if level in self.case_channels else places

    def place_of(self, node: int) -> tuple | None:
        """Returns the innermost place where a node is."""
        return self.places_of(node)[-1]

    def branch_of(self, node: int) -> int:
        """Returns the number of a node's block among the branches of its level."""
        block = self.cases.block_of[node]
        aligned = self.aligned.get(block.level)
        return block.index if aligned is None else aligned.index(block)

    def blocks_at(self, level: int) -> tuple[BasicBlock, ...]:
        """Returns a level's blocks in the order of its branches."""
        return self.aligned.get(level) or self.cases.levels[level].blocks

    def shifted(self, node: int, shift: int) -> int:
        """Returns what stands for a node so many levels on, in another trip of its loops."""
        if shift == 0:
            return node
        block, position = self.cases.block_of[node], self.cases.position_of[node]
        return self.blocks_at(block.level + shift)[self.branch_of(node)].nodes[position]

    def is_legal(self, node: int, successor: int) -> bool:
        """Says whether the function can follow a trace that goes from one node to another."""
        if not self.cases.is_legal(node, successor):
            return False
        before, after = self.cases.level_of(node), self.cases.level_of(successor)
        kept = (self.kept[level] for level in range(before + 1, after) if level in self.kept)
        return all(before < trip_begin and loop_end <= after for trip_begin, loop_end in kept)

    def new_channels(self, count: int) -> int:
        """Returns the first of so many new channels, one after the other."""
        self.num_channels += count
        return self.num_channels - count

    def new_channel(self) -> int:
        """Returns the number of one channel more."""
        self.num_channels += 1
        return self.num_channels - 1
