"""What finding loops needs to know of a graph, by level, node and web."""

from __future__ import annotations

from collections.abc import Collection, Hashable

from terra_tf.trace.case_assignment import BasicBlock, CaseAssignment
from terra_tf.trace.joins import Joins, Rule
from terra_tf.trace.loop_places import LoopPlaces
from terra_tf.trace.op_classes import IN_PLACE_WRITES
from terra_tf.trace.trace_graph import Output, TraceGraph, outputs_of


class LoopTables:
    """Tables of one graph.

    Attributes:
      graph: The TraceGraph.
      cases: Its switch-cases.
      joins: How joined inputs are decided.
      blocks: Level -> its blocks, in an order that is the same in every trip.
      kinds: Level -> a number that levels have in common which look alike.
      webs_of: A result -> the webs it is a producer of.
      users: Node -> the nodes that use its results directly.
      same_users: Node -> the nodes with an input that is what one of its inputs was.
      web_users: Web -> the nodes that take its latest.
    """

    def __init__(
        self,
        graph: TraceGraph,
        cases: CaseAssignment,
        joins: Joins,
        epoch_starts: Collection[int] = (),
    ) -> None:
        self.graph, self.cases, self.joins = graph, cases, joins
        self._places = LoopPlaces(graph.nodes)
        self.webs_of: dict[Output, list[int]] = {}
        for number, web in enumerate(joins.webs):
            for output in web:
                self.webs_of.setdefault(output, []).append(number)
        self.blocks: list[tuple[BasicBlock, ...]] = []
        self.kinds: list[int] = []
        numbers: dict[Hashable, int] = {}
        for number, level in enumerate(cases.levels):
            kinds, blocks = self._in_order(level.blocks)
            self.blocks.append(blocks)
            kind = numbers.setdefault(kinds, len(numbers))
            # An op that begins an epoch is not built as others are.
            self.kinds.append(-1 - number if number in epoch_starts else kind)
        self.users, self.same_users = self._find_users()
        self.web_users: dict[int, set[int]] = {}
        for (number, _), join in joins.of_input.items():
            if join.rule is Rule.LATEST:
                self.web_users.setdefault(join.web, set()).add(number)

    def _in_order(
        self, blocks: tuple[BasicBlock, ...]
    ) -> tuple[tuple[tuple, ...], tuple[BasicBlock, ...]]:
        """What a level's blocks are, and the blocks, whatever the order they were found in."""
        kinds = [(tuple(map(self._kind, block.nodes)), block) for block in blocks]
        kinds.sort(key=lambda pair: (hash(pair[0]), len(pair[0])))
        return tuple(kind for kind, _ in kinds), tuple(block for _, block in kinds)

    def _kind(self, number: int) -> Hashable:
        """What a node has in common with those of other trips."""
        node = self.graph.nodes[number]
        place = self._places.of(number)
        if place is None or node.record.op_type in IN_PLACE_WRITES:
            return number
        record = node.record
        return (
            *(node.key.op_type, node.key.attributes, place, node.is_imperative, node.outputs),
            *(record.device, record.counts, bool(record.folded), record.under_tape),
        )

    def _find_users(self) -> tuple[dict[int, set[int]], dict[int, set[int]]]:
        """Node -> the nodes that use its results directly, or through a SAME."""
        users: dict[int, set[int]] = {}
        same_users: dict[int, set[int]] = {}
        for number, node in enumerate(self.graph.nodes):
            if node.is_imperative:
                continue
            for position, source in enumerate(node.inputs):
                join = self.joins.of_input.get((number, position))
                if join is None:
                    made = outputs_of(source)
                else:
                    made = join.alternatives
                    if join.same is not None:
                        same_users.setdefault(join.same[0], set()).add(number)
                for output in made:
                    users.setdefault(output.node, set()).add(number)
        return users, same_users
