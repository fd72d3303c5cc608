"""A plan as the cursor has it, read back from the native half as plain data.

`dump_plan` shows it, `check_plan` verifies it. What the numbers mean is said in
`kernels/plan/plan.h`, whose structs these are; -1 is no channel, no node, no level.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from terra_tf.graph.generated_graph import EpochChannels
from terra_tf.trace.joins import Rule

# The ops of the graph that take what Python sends, or send what it awaits.
CASE, LOOP, SELECT = "Terra>CaseSelect", "Terra>LoopCond", "Terra>Select"
FEED, FETCH, COMMIT = "Terra>Feed", "Terra>Fetch", "Terra>AwaitCommit"


class InputKind(enum.IntEnum):
    """What an input of a node is, and what its two numbers are."""

    OUTPUT = 0  # node, output
    VARIABLE = 1  # slot, how it is written
    CONSTANT = 2  # slot
    CAPTURED = 3  # slot
    FEED = 4  # slot
    ANY = 5  # of an op that Python runs
    JOIN = 6  # slot
    RESOURCE = 7  # variable's slot, of an op that Python runs


class NodeKind(enum.IntEnum):
    """Who runs a node."""

    DELEGATED = 0
    FOLDED = 1
    IMPERATIVE = 2


class PlanInput(NamedTuple):
    """An input of a node."""

    kind: InputKind
    a: int = 0
    b: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class PlanOutput:
    """An output of a node."""

    dtype: int
    shape: tuple[int, ...] | None
    fetch_channel: int = -1
    feed_channel: int = -1
    webs: Sequence[int] = ()
    same_as_input: int = -1


@dataclasses.dataclass(frozen=True, slots=True)
class PlanNode:
    """A node."""

    name: str
    level: int
    kind: NodeKind = NodeKind.DELEGATED
    counts: Sequence[int] = ()
    inputs: Sequence[PlanInput] = ()
    outputs: Sequence[PlanOutput] = ()
    folded: Sequence[Any] = ()
    seed_channel: int = -1
    check_channel: int = -1
    exit_channel: int = -1
    has_shape_rule: bool = False
    on_host: bool = False
    may_raise: bool = False
    has_siblings: bool = False
    num_input_specs: int = 0
    branch: int = 0
    is_head: bool = True
    next: int = -1
    successors: Sequence[int] = ()
    is_fork: bool = False

    @property
    def is_real(self) -> bool:
        """Whether its results are there as soon as it has been matched."""
        return self.kind is not NodeKind.DELEGATED or self.on_host


@dataclasses.dataclass(frozen=True, slots=True)
class PlanLevel:
    """A level of the case assignment."""

    channel: int = -1
    skip_index: int = -1
    epoch: int = 0
    turns: Sequence[tuple[int, int]] = ()  # channel, end of the loop
    trip_begin: int = -1
    loop_end: int = -1


@dataclasses.dataclass(frozen=True, slots=True)
class PlanJoin:
    """A joined input."""

    rule: Rule
    dtype: int
    shape: tuple[int, ...] | None
    web: int = -1
    same: int = -1
    alternatives: Sequence[tuple[int, int]] = ()
    allows_external: bool = False
    channel: int = -1


@dataclasses.dataclass(frozen=True, slots=True)
class PlanVariable:
    """A slot of a variable."""

    variable: int
    is_captured: bool
    feed_channel: int = -1
    written: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class PlanFeed:
    """A slot of a tensor from outside."""

    dtype: int
    shape: tuple[int, ...] | None
    channel: int = -1
    allowed: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class PlanTables:
    """A plan, and how its epochs are closed, which Python has."""

    nodes: Sequence[PlanNode]
    levels: Sequence[PlanLevel]
    epochs: Sequence[EpochChannels]
    num_channels: int
    first_nodes: Sequence[int]
    starts_with_fork: bool = False
    joins: Sequence[PlanJoin] = ()
    variables: Sequence[PlanVariable] = ()
    feeds: Sequence[PlanFeed] = ()
    constants: Sequence[Any] = ()
    num_captured: int = 0
    num_launch_inputs: int = 0
    num_webs: int = 0

    def web(self, number: int) -> list[tuple[int, int]]:
        """Returns (node, output) of those that add to a web."""
        return [
            (index, position)
            for index, node in enumerate(self.nodes)
            for position, output in enumerate(node.outputs)
            if number in output.webs
        ]

    def channels(self) -> Iterator[tuple[int, str, str]]:
        """Yields every channel, the op at the graph's end of it, and its use in words."""
        for number, level in enumerate(self.levels):
            if level.channel != -1:
                yield level.channel, CASE, f"the decision of level {number}"
            for channel, end in level.turns:
                if channel != -1:
                    yield channel, LOOP, f"the trip at level {number} of the loop to level {end}"
        for number, join in enumerate(self.joins):
            if join.channel != -1:
                yield join.channel, SELECT, f"join {number}"
        for number, variable in enumerate(self.variables):
            if variable.feed_channel != -1:
                yield variable.feed_channel, FEED, f"variable {number}"
        for number, feed in enumerate(self.feeds):
            if feed.channel != -1:
                yield feed.channel, FEED, f"feed {number}"
        for number, node in enumerate(self.nodes):
            for channel, op, what in _channels_of(node):
                if channel != -1:
                    yield channel, op, f"{what} op {number} {node.name}"
        for number, epoch in enumerate(self.epochs):
            yield epoch.commit, COMMIT, f"the commit of epoch {number}"
            if epoch.done != -1:
                yield epoch.done, FETCH, f"the end of epoch {number}"
            if epoch.resume != -1:
                yield epoch.resume, COMMIT, f"the beginning of epoch {number + 1}"


def _channels_of(node: PlanNode) -> Iterator[tuple[int, str, str]]:
    yield node.seed_channel, FEED, "the seeds of"
    yield node.check_channel, FETCH, "the wait before"
    yield node.exit_channel, FETCH, "the wait behind"
    for position, output in enumerate(node.outputs):
        yield output.fetch_channel, FETCH, f"the fetch of output {position} of"
        yield output.feed_channel, FEED, f"what Python feeds for output {position} of"


_NODE_KINDS, _INPUT_KINDS = tuple(NodeKind), tuple(InputKind)  # by their numbers


def tables_of(plan: Any, epochs: Sequence[EpochChannels]) -> PlanTables:
    """Returns the tables of a native plan."""
    tables = plan.tables()
    return PlanTables(
        **{
            **tables,
            "nodes": [_node(**row) for row in tables["nodes"]],
            "levels": [PlanLevel(**row) for row in tables["levels"]],
            "joins": [PlanJoin(**{**row, "rule": Rule(row["rule"])}) for row in tables["joins"]],
            "variables": [PlanVariable(**row) for row in tables["variables"]],
            "feeds": [PlanFeed(**row) for row in tables["feeds"]],
        },
        epochs=epochs,
    )


def _node(
    kind: int, inputs: list[tuple[int, int, int]], outputs: list[dict], **row: Any
) -> PlanNode:
    return PlanNode(
        kind=_NODE_KINDS[kind],
        inputs=[PlanInput(_INPUT_KINDS[what], a, b) for what, a, b in inputs],
        outputs=[PlanOutput(**output) for output in outputs],
        **row,
    )
