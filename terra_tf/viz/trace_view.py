"""From a TraceGraph to the neutral picture of it (`view`)."""

from __future__ import annotations

import os
from collections.abc import Iterator

from terra_tf._tf_internals import handle_shape_and_type
from terra_tf.errors import ImperativeReason
from terra_tf.trace.case_assignment import Level
from terra_tf.trace.dump import count, external_of, number_by_first_use, type_text, value_text
from terra_tf.trace.joins import Join, Rule
from terra_tf.trace.records import TensorSpec
from terra_tf.trace.structure import structure_of
from terra_tf.trace.trace_graph import (
    START,
    Captured,
    Constant,
    Feed,
    Joined,
    Node,
    NodeInput,
    Output,
    TraceGraph,
    Variable,
)
from terra_tf.viz.scopes import find_scopes
from terra_tf.viz.view import View, ViewEdge, ViewNode

_RULES = {
    Rule.LATEST: "the latest of",
    Rule.SAME: "the same as before",
    Rule.SELECT: "one of, as Python says",
}


def view_of(graph: TraceGraph) -> View:
    """Returns the full picture of a TraceGraph; it is not changed. Its owner's lock holds."""
    builder = _Builder(graph)
    builder.build()
    return View(builder.title(), tuple(builder.nodes.values()), tuple(dict.fromkeys(builder.edges)))


def where_of(node: Node) -> str:
    """Returns the user's line that ran a node, or ""."""
    location = node.record.location
    if location is None:
        return ""
    frame = location.user_frame()
    return f"{os.path.basename(frame.filename)}:{frame.lineno} in {frame.function}"


def why_imperative(node: Node) -> ImperativeReason | None:
    """Returns why Python runs a node itself, or None."""
    return node.record.imperative or node.forced


class _Builder:
    def __init__(self, graph: TraceGraph) -> None:
        structure = structure_of(graph.snapshot())  # leaves what the graph keeps alone
        self._graph = graph
        self._cases = structure.cases
        self._joins = structure.joins
        self._scopes = find_scopes(graph, structure.cases)
        self._order = [n for level in self._cases.levels for b in level.blocks for n in b.nodes]
        inputs = (source for n in self._order for source in graph.nodes[n].inputs)
        self._numbers = number_by_first_use(inputs)
        self._join_names: dict[tuple, str] = {}
        self._case_names: dict[int, str] = {}
        self.nodes: dict[str, ViewNode] = {}
        self.edges: list[ViewEdge] = []

    def title(self) -> str:
        graph = self._graph
        return (
            f"{count(len(graph.nodes), 'op')}, "
            f"{count(self._cases.num_switch_cases, 'switch-case')}, "
            f"{count(graph.num_traces, 'trace')}"
        )

    def build(self) -> None:
        for number, level in enumerate(self._cases.levels):
            if not level.is_inline:
                self._add_case(number, level)
            for block in level.blocks:
                for node in block.nodes:
                    self._add_op(node)
        for number, level in enumerate(self._cases.levels):
            if not level.is_inline:
                self._add_ways(number, level)
        for node, output in sorted(self._graph.fetches):
            self._add_fetch(node, output)

    # ------------------------------------------------------------ switch-cases

    def _add_case(self, number: int, level: Level) -> None:
        scopes = self._scopes.of_case[number]
        details = () if level.is_mandatory else ("or none",)
        name = self._case_names[number] = f"case{len(self._case_names)}"
        self._add(ViewNode(name, "switch_case", scopes[-1].label, details, scopes))

    def _add_ways(self, number: int, level: Level) -> None:
        case = self._case_names[number]
        for block in level.blocks:
            for source, _ in block.control_edges:
                name = "start" if source == START else f"op{source}"
                if source == START:
                    self._add(ViewNode("start", "start", "start"))
                self.edges.append(ViewEdge(name, case, "control"))
            hits = self._graph.nodes[block.nodes[0]].hits
            label = f"branch {block.index}: {hits} of {self._graph.num_traces} traces"
            self.edges.append(ViewEdge(case, f"op{block.nodes[0]}", "branch", label))

    # --------------------------------------------------------------------- ops

    def _add(self, node: ViewNode) -> None:
        self.nodes.setdefault(node.name, node)

    def _add_op(self, number: int) -> None:
        node = self._graph.nodes[number]
        reason = why_imperative(node)
        details = [", ".join(map(type_text, node.outputs)) or "no result"]
        if reason is not None:
            details.append(f"run by Python: {reason}")
        where = where_of(node)
        self._add(
            ViewNode(
                f"op{number}",
                "op" if reason is None else "imperative",
                node.record.op_type,
                (*details, where) if where else tuple(details),
                self._scopes.of_node[number],
                node.hits,
            )
        )
        for position, source in enumerate(node.inputs):
            for name, label in self._sources(number, position, source):
                self.edges.append(ViewEdge(name, f"op{number}", "data", label))

    def _sources(
        self, number: int, position: int, source: NodeInput
    ) -> Iterator[tuple[str, str]]:
        """Yields the name of what an input comes from, and the edge's label."""
        join = self._joins.of_input.get((number, position))
        if join is not None:
            yield self._join(number, join), ""
        elif isinstance(source, Joined):
            for output in source.sources:
                yield self._output(output)
            if source.external is not None:
                yield self._external(number, position, source.external), ""
        elif isinstance(source, Output):
            yield self._output(source)
        else:
            yield self._external(number, position, source), ""

    def _output(self, output: Output) -> tuple[str, str]:
        specs = self._graph.nodes[output.node].outputs
        label = type_text(specs[output.output])
        return f"op{output.node}", label if len(specs) == 1 else f"{output.output}: {label}"

    def _join_sources(self, join: Join) -> tuple[Output, ...]:
        """What a join chooses from, of what can have run before its consumer."""
        if join.rule is not Rule.LATEST:
            return join.alternatives
        return tuple(o for o in self._joins.webs[join.web] if self._is_before(o.node, join.node))

    def _is_before(self, node: int, consumer: int) -> bool:
        cases = self._cases
        if cases.block_of[node] is cases.block_of[consumer]:
            return cases.position_of[node] < cases.position_of[consumer]
        return cases.level_of(node) < cases.level_of(consumer)

    def _join(self, number: int, join: Join) -> str:
        """Returns what a joined input comes from; joins of equal meaning are one node."""
        while join.rule is Rule.SAME and join.same is not None:
            number = join.same[0]
            join = self._joins.of_input[join.same]
        known = self._graph.nodes[join.node].inputs[join.position]
        outside = external_of(known) or join.external
        outputs = self._join_sources(join)
        if len(outputs) == 1 and outside is None:
            return self._output(outputs[0])[0]
        # Each that Python says is decided by a message of its own.
        own = join.number if join.rule is Rule.SELECT else -1
        key = (join.rule, outputs, outside, own)
        name = self._join_names.get(key)
        if name is not None:
            return name
        name = self._join_names[key] = f"join{len(self._join_names)}"
        self._add(ViewNode(name, "join", _RULES[join.rule], (), self._scopes.of_node[number]))
        for output in outputs:
            source, label = self._output(output)
            self.edges.append(ViewEdge(source, name, "data", label))
        if outside is not None:
            external = self._external(number, join.position, outside)
            self.edges.append(ViewEdge(external, name, "data"))
        return name

    def _external(
        self, number: int, position: int, source: Variable | Constant | Captured | Feed
    ) -> str:
        """Adds an outside tensor. Constants are drawn at each use, the others once."""
        if isinstance(source, Variable):
            variable = self._graph.variables[source.slot]
            spec = handle_shape_and_type(variable.type)
            type_ = "of unknown type" if spec is None else type_text(TensorSpec(*spec))
            details = (type_,) if variable.captured else (type_, "another one by step")
            node = ViewNode(
                f"var{source.slot}", "variable", f"variable {source.slot}", details
            )
        elif isinstance(source, Constant):
            scopes = self._scopes.of_node[number]
            name = f"const{number}_{position}"
            node = ViewNode(name, "constant", value_text(source.tensor), (), scopes)
        else:
            index = self._numbers[type(source), source.group]
            kind = "feed" if isinstance(source, Feed) else "captured"
            title = f"{'feed' if kind == 'feed' else 'captured tensor'} {index}"
            node = ViewNode(f"{kind}{index}", kind, title, (type_text(source.spec),))  # type: ignore[arg-type]
        self._add(node)
        return node.name

    def _add_fetch(self, node: int, output: int) -> None:
        name = f"fetch{node}_{output}"
        source, label = self._output(Output(node, output))
        self._add(ViewNode(name, "fetch", "Python reads or keeps", (label,)))
        self.edges.append(ViewEdge(source, name, "data"))
