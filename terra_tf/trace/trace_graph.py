"""The TraceGraph: what the traces of one entry signature have in common.

A DAG whose nodes are ops and whose edges say what ran right after what, from START to END. A
node's key is (type, canonical attributes, location), the paper's node equality; nodes of one
key that differ in types, variables or shapes are *siblings*. `merging.merge` adds traces.

Each input of a node is what it was in every trace that passed the node:

    Output(n, o)   output o of node n
    Variable(s)    slot s, `captured` while it was the same variable every time
    Constant       a small host value, equal every time
    Captured       one and the same tensor every time
    Feed(g)        an external tensor; uses with the same g were one tensor in every trace
    Joined         different things by path; `joins` says how a path decides

The graph keeps the *paths* of its latest traces: which nodes, and which output each input was.
Merging only ever generalizes, and node numbers never change, until `compact` starts afresh.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, NamedTuple

from terra_tf._tf_internals import dtypes
from terra_tf.errors import ImperativeReason, NothingToShowError, format_message
from terra_tf.trace.records import OpRecord, TensorSpec
from terra_tf.trace.weakly import HandleType, Weak

START, END = -1, -2

_drawer: Callable[..., Any] | None = None


def set_drawer(draw: Callable[..., Any]) -> None:
    """Says how graphs are drawn: `viz`, which knows this module, is a higher room."""
    global _drawer
    _drawer = draw


class Output(NamedTuple):
    """An output of another node."""

    node: int
    output: int


class Variable(NamedTuple):
    """A variable slot of the graph."""

    slot: int


class Constant(NamedTuple):
    """A host value that was equal in every trace; `tensor` carries it."""

    tensor: Any
    value: bytes
    spec: TensorSpec
    group: int


class Captured(NamedTuple):
    """A tensor that was the same object in every trace. It is not kept alive."""

    weak: Weak
    handle: int
    spec: TensorSpec
    group: int

    @property
    def tensor(self) -> Any:
        """The tensor; None once it is gone."""
        return self.weak.tensor


class Feed(NamedTuple):
    """An external tensor that differs from step to step."""

    spec: TensorSpec
    group: int


class Joined(NamedTuple):
    """One of several outputs, or an external tensor, by path.

    Attributes:
      sources: Every output it was, in order of (node, output).
      external: What it was where it came from outside of the step, or None.
    """

    sources: tuple[Output, ...]
    external: Feed | None


NodeInput = Output | Variable | Constant | Captured | Feed | Joined


def outputs_of(source: NodeInput) -> tuple[Output, ...]:
    """Returns every output that an input was."""
    if isinstance(source, Output):
        return (source,)
    return source.sources if isinstance(source, Joined) else ()


class NodeKey(NamedTuple):
    """The paper's node equality: type, attributes, executed location."""

    op_type: str
    attributes: Hashable
    location: Any


@dataclasses.dataclass(slots=True)
class Node:
    """One op of the graph.

    Attributes:
      key: Its identity.
      variant: What else nodes of one key must share to be shape siblings.
      record: The record of the latest trace (attribute values, types, folded results).
      inputs: What its inputs are.
      outputs: Its results' types; a dimension that differed between traces is -1.
      forced: Why it has to run imperatively although its op could be delegated, or None.
      hits: How many traces passed it.
      trip_slot: The variable that its trip of a loop is about, or None (see `trips`).
      may_raise: Whether it has raised in some step, which went on behind it.
    """

    key: NodeKey
    variant: Hashable
    record: OpRecord
    inputs: tuple[NodeInput, ...]
    outputs: tuple[TensorSpec, ...]
    forced: ImperativeReason | None = None
    hits: int = 1
    trip_slot: int | None = None
    may_raise: bool = False

    @property
    def is_imperative(self) -> bool:
        """Whether Python runs this op itself."""
        return self.record.imperative is not None or self.forced is not None


@dataclasses.dataclass(slots=True)
class VariableSlot:
    """A variable slot. It keeps no variable alive.

    Attributes:
      weak: The handle of the latest trace.
      type: What that says of its variable; for `handle_shape_and_type`.
      captured: Whether it was the same handle every time.
    """

    weak: Weak
    type: HandleType
    captured: bool

    @classmethod
    def of(cls, handle: Any) -> VariableSlot:
        """Returns the slot of a variable that is seen for the first time."""
        return cls(Weak(handle), HandleType(handle), True)

    @property
    def handle(self) -> Any:
        """The handle; None once it is gone."""
        return self.weak.tensor

    def bind(self, handle: Any) -> None:
        """Notes the handle of another trace."""
        self.weak, self.type = Weak(handle), HandleType(handle)


class Path(NamedTuple):
    """The way of one trace through the graph.

    Attributes:
      nodes: In execution order.
      sources: For each node, which output each of its inputs was; None for anything else.
    """

    nodes: tuple[int, ...]
    sources: tuple[tuple[Output | None, ...], ...]


class MergeKind(enum.Enum):
    """What a trace brought."""

    COVERED = "covered"  # nothing that a graph built before could not follow
    GENERALIZED = "generalized"  # known nodes, but a constant, feed, variable or fetch changed
    NEW_PATH = "new path"


@dataclasses.dataclass(frozen=True, slots=True)
class MergeResult:
    """The kind, and for a person what changed first."""

    kind: MergeKind
    detail: str = ""


class TraceGraph:
    """The merged traces of one entry signature. Not thread-safe; its owner's lock holds.

    Args:
      handle_id: Maps a tensor to the identity of its handle.

    Attributes:
      nodes: By number, in order of discovery.
      successors: Node or START -> what ran right after it -> in how many traces.
      num_forks: After how many nodes, START included, more than one may follow.
      variables: By slot.
      fetches: (node, output) whose values Python needs, wherever epochs begin.
      kept_until: (node, output) that Python held for a while -> on each way, the last node that
        it still held it at the entry of.
      shape_reads: (node, output) whose shapes Python asks for.
      raised_locations: Where an op has raised.
      varying: (place, input) whose floating-point constants are fed, since one has varied.
      out_of_range: Group of a feed -> in how many steps it has held indices out of range.
      paths: The distinct ways of the latest traces -> when each was last taken.
      has_unknown_dimensions: Whether dimensions of the arguments vary (a relaxed entry's graph).
    """

    MAX_PATHS = 64
    MAX_OUT_OF_RANGE = 3

    def __init__(
        self, handle_id: Callable[[Any], int], has_unknown_dimensions: bool = False
    ) -> None:
        self.handle_id = handle_id
        self.has_unknown_dimensions = has_unknown_dimensions
        self._next_group = 0
        self.nodes: list[Node] = []
        self.successors: dict[int, dict[int, int]] = {START: {}}
        self.num_forks = 0
        self.variables: list[VariableSlot] = []
        self.fetches: set[tuple[int, int]] = set()
        self.kept_until: dict[tuple[int, int], set[int]] = {}
        self.shape_reads: set[tuple[int, int]] = set()
        self.raised_locations: set[Any] = set()
        self.varying: set[Any] = set()
        self.out_of_range: dict[int, int] = {}
        self.paths: dict[Path, int] = {}
        self.last_path = Path((), ())
        self.num_traces = 0
        self.generation = 0  # how often nodes were numbered anew
        self.structure: Any = None  # of `structure.structure_of`, while it holds

    # ------------------------------------------------------------- looking

    def edges(self) -> Iterator[tuple[int, int]]:
        """Yields (node or START, node or END)."""
        for node, following in self.successors.items():
            for successor in following:
                yield node, successor

    def topological_order(self) -> list[int] | None:
        """Returns the nodes so that edges lead forward, or None if there is a cycle."""
        num_before = [0] * len(self.nodes)
        for _, successor in self.edges():
            if successor >= 0:
                num_before[successor] += 1
        ready, order = [START], []
        while ready:
            node = ready.pop()
            order.append(node)
            for successor in self.successors.get(node, ()):
                if successor >= 0:
                    num_before[successor] -= 1
                    if num_before[successor] == 0:
                        ready.append(successor)
        return order[1:] if len(order) == len(self.nodes) + 1 else None

    @property
    def num_fetched_bytes(self) -> int:
        """The size of all fetched values together, as traced."""
        total = 0
        for node, output in self.fetches:
            spec = self.nodes[node].record.outputs[output]
            total += math.prod(spec.shape or ()) * dtypes.as_dtype(spec.dtype).size
        return total

    def to_graphviz(self, **options: Any) -> Any:
        """Draws this graph: a `graphviz.Digraph`; `viz.dot.to_graphviz` has the options.

        Raises:
          ConfigError: An option's value makes no sense.
          NothingToShowError: Nothing has been traced yet.
        """
        if not self.nodes:
            raise NothingToShowError(
                format_message(
                    "there is nothing to draw: no step with any op has been traced",
                    "TERRA-NOTHING-TO-SHOW",
                    why="a TraceGraph is what the steps of a function have in common.",
                    suggestions=["call the function first; before that its TraceGraph is empty"],
                )
            )
        assert _drawer is not None, "the package has not been imported whole"
        return _drawer(self, **options)

    # ------------------------------------------------------------ changing

    def new_group(self) -> int:
        """Returns a number for a group of uses of one external tensor."""
        self._next_group += 1
        return self._next_group

    def add_path(self, path: Path) -> list[tuple[int, int]]:
        """Adds the edges of a path and remembers it; returns the edges that are new."""
        new = []
        for edge in zip((START, *path.nodes), (*path.nodes, END)):
            following = self.successors.setdefault(edge[0], {})
            if edge[1] not in following:
                following[edge[1]] = 0
                self.num_forks += len(following) == 2
                new.append(edge)
            following[edge[1]] += 1
        self.paths[path] = self.num_traces
        self.last_path = path
        if len(self.paths) > self.MAX_PATHS:
            del self.paths[min(self.paths, key=self.paths.__getitem__)]
        return new

    def add_fetches(self, outputs: Iterable[tuple[int, int]]) -> None:
        """Adds outputs that Python turned out to need."""
        self.fetches |= set(outputs)

    def has_range(self, feed: Feed) -> bool:
        """Says whether indices that are fed are worth comparing with their range."""
        return self.out_of_range.get(feed.group, 0) < self.MAX_OUT_OF_RANGE

    def note_raised(self, location: Any) -> None:
        """Makes what runs at `location` imperative from now on: it has failed once."""
        self.raised_locations.add(location)
        for number, node in enumerate(self.nodes):
            is_there = location in (node.key.location, node.record.location)
            if is_there and node.forced is not ImperativeReason.RAISED_BEFORE:
                self.force(number, ImperativeReason.RAISED_BEFORE)

    def force(self, node: int, reason: ImperativeReason) -> None:
        """Makes a node imperative."""
        self.nodes[node].forced = reason
        self.structure = None

    def is_same(self, known: Any, tensor: Any) -> bool:
        """Says whether a tensor that was known, or None, has the handle of another."""
        return known is not None and self.handle_id(known) == self.handle_id(tensor)

    def hold(self) -> list[Any]:
        """Returns the captured variables and tensors, so that they live on.

        Those that are gone are captured no more: the next step has others in their places.
        """
        held = []
        for variable in self.variables:
            if variable.captured:
                held.append(variable.handle)
                variable.captured = held[-1] is not None
        for node in self.nodes:
            inputs = list(node.inputs)
            for i, source in enumerate(inputs):
                if isinstance(source, Captured):
                    held.append(source.tensor)
                    if held[-1] is None:
                        inputs[i] = Feed(source.spec, source.group)
            node.inputs = tuple(inputs)
        if any(tensor is None for tensor in held):  # not `in`: tensors compare their items
            self.structure = None
        return held

    def snapshot(self) -> TraceGraph:
        """Returns a copy that further merging does not change."""
        copy = TraceGraph(self.handle_id, self.has_unknown_dimensions)
        copy._next_group = self._next_group
        copy.nodes = [dataclasses.replace(node) for node in self.nodes]
        copy.successors = {node: dict(after) for node, after in self.successors.items()}
        copy.num_forks = self.num_forks
        copy.variables = [dataclasses.replace(variable) for variable in self.variables]
        copy.fetches = set(self.fetches)
        copy.kept_until = {output: set(nodes) for output, nodes in self.kept_until.items()}
        copy.shape_reads = set(self.shape_reads)
        copy.raised_locations = set(self.raised_locations)
        copy.varying = set(self.varying)
        copy.out_of_range = dict(self.out_of_range)
        copy.paths = dict(self.paths)
        copy.num_traces = self.num_traces
        copy.generation = self.generation
        return copy

    def compact(self, num_paths: int) -> int:
        """Forgets nodes that are not on one of the `num_paths` latest paths; returns how many."""
        latest = sorted(self.paths, key=self.paths.__getitem__)[-num_paths:]
        kept = sorted({node for path in latest for node in path.nodes})
        number = {old: new for new, old in enumerate(kept)}
        last_taken = {path: self.paths[path] for path in latest}
        num_forgotten = len(self.nodes) - len(kept)
        for old in kept:
            inputs = self.nodes[old].inputs
            self.nodes[old].inputs = tuple(self._renumber_input(i, number) for i in inputs)
        self.nodes = [self.nodes[old] for old in kept]
        self.fetches = {(number[n], o) for n, o in self.fetches if n in number}
        self.kept_until = {
            (number[n], o): {number[until] for until in nodes if until in number}
            for (n, o), nodes in self.kept_until.items()
            if n in number
        }
        self.shape_reads = {(number[n], o) for n, o in self.shape_reads if n in number}
        self.successors, self.num_forks = {START: {}}, 0
        self.paths, self.structure = {}, None
        self.generation += 1
        for path in latest:
            renumbered = _renumber_path(path, number)
            self.add_path(renumbered)
            self.paths[renumbered] = last_taken[path]
        return num_forgotten

    def _renumber_input(self, source: NodeInput, number: dict[int, int]) -> NodeInput:
        if not isinstance(source, (Output, Joined)):
            return source
        sources = source.sources if isinstance(source, Joined) else (source,)
        external = source.external if isinstance(source, Joined) else None
        kept = [Output(number[s.node], s.output) for s in sources if s.node in number]
        if kept:
            is_single = external is None and len(kept) == 1
            return kept[0] if is_single else Joined(tuple(sorted(kept)), external)
        if external is not None:
            return external
        # Of an op that Python runs itself, and whose latest inputs were of another kind.
        node, output = sources[0]
        return Feed(self.nodes[node].outputs[output], self.new_group())


def _renumber_path(path: Path, number: dict[int, int]) -> Path:
    sources = tuple(
        tuple(None if s is None else Output(number[s.node], s.output) for s in of_node)
        for of_node in path.sources
    )
    return Path(tuple(number[node] for node in path.nodes), sources)
