"""What the generator hands on: a registered function and the channels of its mailbox."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from terra_tf.trace.case_assignment import CaseAssignment
from terra_tf.trace.joins import Joins
from terra_tf.trace.trace_graph import Feed


@dataclasses.dataclass(slots=True)
class EpochChannels:
    """How Python closes an epoch: commit, then await `done`, then `resume` the next.

    `start` is the level of the case assignment that the epoch begins with.
    """

    start: int
    commit: int
    done: int = -1
    resume: int = -1


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
      function: Keeps the function registered in TensorFlow's context while it lives.
      name: The function's name.
      num_channels: How many channels a step's mailbox needs.
      captured_variables: Slots whose handles are the function's first inputs.
      captured_tensors: Tensors that are its next inputs.
      variable_channels: (slot, place) -> the channel its handle is fed through; a place is None
        for the main line, or (level, index) of the branch that is the first to use it.
      feed_channels: (feed, place) -> channel.
      output_feeds: (node, output) of imperative ops -> channel.
      seed_channels: Seeded node -> channel.
      fetch_channels: (node, output) -> channel.
      check_channels: Imperative node -> channel that says all before it has succeeded.
      case_channels: Level -> the channel of its decision, for those that are switch-cases.
      join_channels: (node, position) of a joined input -> channel.
      shape_rules: Node -> NodeDef, where the cursor has to find shapes out: of results, or of
        what is written.
      folded: Node -> ready outputs.
      on_host: Nodes whose small results follow from shapes: Python computes them as well.
      output_shapes: (node, output) -> static dimensions, or None where they depend on data.
      epochs: In order; the first starts at level 0.
      is_fallible: Whether any delegated op can fail on data.
      written_slots: Variables that some delegated op writes.
      op_ranges: What each node became, for pictures.
    """

    cases: CaseAssignment
    joins: Joins
    function: Any = None
    name: str = ""
    num_channels: int = 0
    captured_variables: list[int] = dataclasses.field(default_factory=list)
    captured_tensors: list[Any] = dataclasses.field(default_factory=list)
    variable_channels: dict[tuple[int, tuple | None], int] = dataclasses.field(default_factory=dict)
    feed_channels: dict[tuple[Feed, tuple | None], int] = dataclasses.field(default_factory=dict)
    output_feeds: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)
    seed_channels: dict[int, int] = dataclasses.field(default_factory=dict)
    fetch_channels: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)
    check_channels: dict[int, int] = dataclasses.field(default_factory=dict)
    case_channels: dict[int, int] = dataclasses.field(default_factory=dict)
    join_channels: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)
    shape_rules: dict[int, bytes] = dataclasses.field(default_factory=dict)
    folded: dict[int, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    on_host: set[int] = dataclasses.field(default_factory=set)
    output_shapes: dict[tuple[int, int], tuple | None] = dataclasses.field(default_factory=dict)
    epochs: list[EpochChannels] = dataclasses.field(default_factory=list)
    is_fallible: bool = False
    written_slots: set[int] = dataclasses.field(default_factory=set)
    op_ranges: list[OpRange] = dataclasses.field(default_factory=list)

    def place_of(self, node: int) -> tuple | None:
        """Returns None for a node of the main line, or (level, index) of its branch."""
        block = self.cases.block_of[node]
        return None if self.cases.levels[block.level].is_inline else (block.level, block.index)

    def new_channel(self) -> int:
        """Returns the number of one channel more."""
        self.num_channels += 1
        return self.num_channels - 1
