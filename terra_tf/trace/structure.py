"""What a TraceGraph's paths have in common: its switch-cases and its joins, and who fits them."""

from __future__ import annotations

import dataclasses

from terra_tf.trace.case_assignment import CaseAssignment, assign_cases
from terra_tf.trace.joins import Join, Joins, Rule, resolve_joins
from terra_tf.trace.location_tree import Location, turns_user_loop
from terra_tf.trace.loop_places import LoopPlaces
from terra_tf.trace.trace_graph import END, START, Output, Path, TraceGraph


@dataclasses.dataclass(frozen=True, slots=True)
class Structure:
    """A graph's switch-cases and joins, as they were when it was made.

    Attributes:
      graph: The graph, whose later nodes and edges are not in this.
      cases: The ordered list of switch-cases.
      joins: How joined inputs are decided.
    """

    graph: TraceGraph
    cases: CaseAssignment
    joins: Joins

    def why_not(self, path: Path) -> str | None:
        """Returns why a graph of this structure could not follow a path, or None if it could."""
        previous = START
        follower = _Follower(self)
        for index, node in enumerate((*path.nodes, END)):
            if not self.cases.is_legal(previous, node):
                return f"a way from {self._name(previous)} to {self._name(node)}"
            if node != END:
                problem = follower.pass_node(node, path.sources[index])
                if problem is not None:
                    return f"{self._name(node)}: {problem}"
            previous = node
        return None

    def _name(self, node: int) -> str:
        if node < 0:
            return "the start" if node == START else "the end"
        return f"op {node} {self.graph.nodes[node].record.op_type}"


def structure_of(graph: TraceGraph) -> Structure:
    """Returns a graph's structure, made at the first call after the graph has changed."""
    if graph.structure is None:
        cases = assign_cases(len(graph.nodes), graph.edges(), cuts_of(graph))
        graph.structure = Structure(graph, cases, resolve_joins(graph))
    return graph.structure


def cuts_of(graph: TraceGraph) -> set[int]:
    """Returns the nodes at which a block has to begin, though the edges may not say so.

    These are loop turns, and what is at the same place in the code as a node that begins a block
    in another trip of a loop of the user's: where it was left, or skipped an op, in its third trip,
    it may do so in its fifth.
    """
    turns = loop_turns(graph)
    loop_places = LoopPlaces(graph.nodes)
    places = [loop_places.of(number) for number in range(len(graph.nodes))]
    begun = {places[node] for node in _heads(graph)} - {None}
    return turns | {node for node, place in enumerate(places) if place in begun}


def _heads(graph: TraceGraph) -> set[int]:
    """Returns the nodes where ways come together, or part."""
    num_before: dict[int, int] = {}
    heads: set[int] = set()
    for _, successor in graph.edges():
        num_before[successor] = num_before.get(successor, 0) + 1
    for following in graph.successors.values():
        heads.update(n for n in following if len(following) > 1 or num_before[n] > 1)
    return heads - {END}


def loop_turns(graph: TraceGraph) -> set[int]:
    """Returns the nodes at which a loop of the user's code turns, begins or ends.

    Blocks begin there, so that a loop that was seen to end after 3 trips and after 7 may end
    after 5.
    """
    turns = set()
    for node, successor in graph.edges():
        if node >= 0 and successor >= 0:
            here, there = (graph.nodes[n].key.location for n in (node, successor))
            if isinstance(here, Location) and turns_user_loop(here, there):
                turns.add(successor)
    return turns


class _Follower:
    """Decides joined inputs along a path as the cursor does."""

    def __init__(self, structure: Structure) -> None:
        self._nodes = structure.graph.nodes
        self._joins = structure.joins
        self._latest: dict[int, Output] = {}
        self._decided: dict[tuple[int, int], Output | None] = {}
        self._webs_of: dict[Output, list[int]] = {}
        for number, web in enumerate(structure.joins.webs):
            for output in web:
                self._webs_of.setdefault(output, []).append(number)

    def pass_node(self, number: int, sources: tuple[Output | None, ...]) -> str | None:
        node = self._nodes[number]
        if not node.is_imperative:
            for position, (known, source) in enumerate(zip(node.inputs, sources)):
                join = self._joins.of_input.get((number, position))
                if join is not None:
                    self._decided[number, position] = source
                    is_expected = self._fits(join, source)
                elif isinstance(known, Output):
                    is_expected = source == known
                else:
                    is_expected = source is None
                if not is_expected:
                    return f"input {position} comes from elsewhere"
        for output in range(len(node.outputs)):
            for web in self._webs_of.get(Output(number, output), ()):
                self._latest[web] = Output(number, output)
        return None

    def _fits(self, join: Join, source: Output | None) -> bool:
        if join.rule is Rule.SAME:
            return join.same in self._decided and self._decided[join.same] == source
        if source is None:
            return join.external is not None
        if join.rule is Rule.LATEST:
            return self._latest.get(join.web) == source
        return source in join.alternatives
