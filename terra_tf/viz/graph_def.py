"""The generated function as one GraphDef, with the user's program in its names.

TensorFlow keeps a function and its branches in a library, which TensorBoard shows without
structure. Here they are written out into one graph of one level:

    layer/MatMul                      an op, in the user's function that ran it
    switch_case_0/select              which branch: Python says it
    switch_case_0/branch_1/Tanh       an op of one branch
    switch_case_0/value               a value that comes out: a `Merge` of the branches
    loop_0/goes_on                    whether a rolled loop makes another trip: Python says it
    feed, fetch                       what Python gives and gets, next to the op that needs it
    PrintV2                           an op that Python runs itself (`runs` says why)
    commit_0/commit                   from here on writes may happen; the writes are beside it

A branch that makes nothing but dummies (the way past all branches) leaves no nodes.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf

from terra_tf.trace.trace_graph import Output, TraceGraph
from terra_tf.viz.flat_names import FlatNames, join_scopes, leaf_of
from terra_tf.viz.scopes import Scopes
from terra_tf.viz.trace_view import where_of, why_imperative

_MAX_ATTRIBUTE_BYTES = 1024  # what TensorBoard shows
_SELECT, _COMMIT = "Terra>CaseSelect", "Terra>AwaitCommit"


class ExecutedOp(NamedTuple):
    """An op as the executor names it.

    Attributes:
      case: The `Case` whose branch it is in, or "".
      branch: Which branch, or -1.
      name: Its name in the function of the branch, or in the main one.
    """

    case: str
    branch: int
    name: str


@dataclasses.dataclass(frozen=True)
class FlatGraph:
    """A GraphDef and where its nodes come from.

    Attributes:
      graph_def: For TensorBoard.
      name_of: Executed op -> its node's name.
      shapes_of: Node's name -> (dtype, TensorShapeProto) of each output, as far as known.
      nodes_of: Node of the TraceGraph -> the names of what it became.
    """

    graph_def: Any
    name_of: dict[ExecutedOp, str]
    shapes_of: dict[str, list[tuple[int, Any]]]
    nodes_of: dict[int, list[str]]


def flatten(graph: TraceGraph, generated: Any, scopes: Scopes) -> FlatGraph:
    """Returns the GraphDef of a generated function; nothing is run.

    Args:
      graph: The TraceGraph as it was when the function was built.
      generated: The `GeneratedGraph`.
      scopes: Of the graph and the generated function's switch-cases.
    """
    return _Flattener(graph, generated, scopes).run()


@dataclasses.dataclass
class _Place:
    """A FuncGraph under way: the main one, or a branch.

    Attributes:
      graph: The FuncGraph.
      case: The `Case` op's name, or "".
      branch: The branch's number, or -1.
      scope: Where ops go that no node of the TraceGraph owns.
      select: The name of what decides the branch, or "".
      keeps_all: Whether ops without owner are shown.
      sources: (op name, output) -> input string of the flat graph, or None for a dummy.
      control: Op name -> flat name to depend on.
    """

    graph: Any
    case: str = ""
    branch: int = -1
    scope: str = ""
    select: str = ""
    keeps_all: bool = True
    sources: dict[tuple[str, int], str | None] = dataclasses.field(default_factory=dict)
    control: dict[str, str] = dataclasses.field(default_factory=dict)


class _Flattener:
    def __init__(self, graph: TraceGraph, generated: Any, scopes: Scopes) -> None:
        self._nodes = graph.nodes
        self._generated = generated
        self._scopes = scopes
        paths = [*scopes.of_node.values(), *scopes.of_case.values()]
        self._names = FlatNames(["inputs", *map(join_scopes, paths)])
        self._owned = _find_owned(generated.op_ranges, graph)
        self._fetched = {channel: key for key, channel in generated.fetch_channels.items()}
        self._level_of = {channel: level for level, channel in generated.case_channels.items()}
        self._is_emitted: set[int] = set()
        self._num_commits = self._num_loops = 0
        self._python_ops: dict[int, str] = {}
        self._fetched_sources: dict[Output, str] = {}
        self._flat = FlatGraph(tf.compat.v1.GraphDef(), {}, {}, {})

    def run(self) -> FlatGraph:
        self._flat.graph_def.versions.producer = tf.version.GRAPH_DEF_VERSION
        place = _Place(self._generated.function.graph)
        step, *given = place.graph.inputs  # every communication op takes the step's id
        slots = iter(self._generated.captured_variables)
        for tensor in given:
            slot = next(slots, None)
            self._add_input(place, tensor.op, slot)
        self._add_ops(place, {tensor.op.name for tensor in (step, *given)})
        return self._flat

    def _add_input(self, place: _Place, op: Any, slot: int | None) -> None:
        """A variable, or a tensor that is the same in every step."""
        name = self._add(place, op, "inputs", None)
        node = self._flat.graph_def.node[-1]
        node.attr["what"].s = (
            b"a tensor that is the same in every step" if slot is None
            else f"variable {slot}".encode()
        )
        assert node.name == name

    def _add_ops(self, place: _Place, inputs: set[str]) -> None:
        owned = self._owned.get(id(place.graph), _Owned())
        for position, op in enumerate(place.graph.get_operations()):
            for owner in owned.python_ops.get(position, ()):
                self._add_python_op(owner)
            if op.type == "Case":
                self._add_case(place, op)
            elif op.type == "While":
                self._add_while(place, op)
            elif op.name not in inputs:
                self._add_op(place, op, owned.owner.get(position))
        for owner in owned.python_ops.get(place.graph.num_operations(), ()):
            self._add_python_op(owner)

    # -------------------------------------------------------------------- ops

    def _add_op(self, place: _Place, op: Any, owner: int | None) -> None:
        if owner is None and not place.keeps_all:
            self._pass_through(place, op)
            return
        if owner is not None:
            scope = join_scopes(self._scopes.of_node[owner])
        elif (select := _select_of(op)) is not None:
            scope = join_scopes(self._scopes.of_case[self._level_decided_by(select)])
        else:
            scope = self._scope_of_commit(place, op)
        self._add(place, op, scope, owner)

    def _scope_of_commit(self, place: _Place, op: Any) -> str:
        """Commits, and the writes after them, are a scope of their own."""
        commits = {epoch.commit for epoch in self._generated.epochs}
        if op.type == _COMMIT and op.get_attr("channel") in commits:
            place.scope = f"commit_{self._num_commits}"
            self._num_commits += 1
        return place.scope

    def _pass_through(self, place: _Place, op: Any) -> None:
        """A branch hands out values as identities, and dummies where it made none."""
        place.sources[op.name, 0] = self._source(place, op.inputs[0]) if op.inputs else None

    def _add(self, place: _Place, op: Any, scope: str, owner: int | None) -> str:
        name = self._names.new(scope, leaf_of(op.type))
        node = self._flat.graph_def.node.add(name=name, op=op.type, device=op.device)
        for tensor in op.inputs:
            source = self._source(place, tensor)
            if source is not None:
                node.input.append(source)
        if place.select and not any(self._is_inside(place, t) for t in op.inputs):
            node.input.append(f"^{place.select}")
        before = [place.control.get(control.name) for control in op.control_inputs]
        if op.type == "Terra>Feed" and owner is not None:
            before.append(self._python_ops.get(owner))
        node.input.extend(f"^{c}" for c in dict.fromkeys(before) if c)
        if op.type == "Terra>Fetch" and op.get_attr("channel") in self._fetched:
            value = self._source(place, op.inputs[1])
            if value is not None:
                self._fetched_sources[Output(*self._fetched[op.get_attr("channel")])] = value
        for output in range(len(op.outputs)):
            place.sources[op.name, output] = f"{name}:{output}" if output else name
        place.control[op.name] = name
        self._copy_attributes(op, node)
        self._flat.name_of[ExecutedOp(place.case, place.branch, op.name)] = name
        self._flat.shapes_of[name] = [
            (tensor.dtype.as_datatype_enum, tensor.shape.as_proto()) for tensor in op.outputs
        ]
        if owner is not None:
            self._describe_owner(node, owner)
        return name

    def _source(self, place: _Place, tensor: Any) -> str | None:
        return place.sources.get((tensor.op.name, tensor.value_index))

    def _is_inside(self, place: _Place, tensor: Any) -> bool:
        return tensor.op.name in place.control

    def _copy_attributes(self, op: Any, node: Any) -> None:
        for key, value in op.node_def.attr.items():
            if value.ByteSize() <= _MAX_ATTRIBUTE_BYTES and not key.startswith("_"):
                node.attr[key].CopyFrom(value)
        shapes = node.attr["_output_shapes"].list.shape
        shapes.extend(tensor.shape.as_proto() for tensor in op.outputs)

    def _describe_owner(self, node: Any, owner: int) -> None:
        of_trace = self._nodes[owner]
        self._flat.nodes_of.setdefault(owner, []).append(node.name)
        node.attr["source"].s = where_of(of_trace).encode()
        node.attr["traces"].i = of_trace.hits
        node.attr["user_op"].s = of_trace.record.op_type.encode()
        call = of_trace.record.library_call
        if call is not None:
            node.attr["library_call"].s = call.qualname.encode()

    def _add_python_op(self, owner: int) -> None:
        """An op that Python runs is no op of the graph, but a part of the program."""
        of_trace = self._nodes[owner]
        scope = join_scopes(self._scopes.of_node[owner])
        name = self._python_ops[owner] = self._names.new(scope, of_trace.record.op_type)
        node = self._flat.graph_def.node.add(name=name, op=of_trace.record.op_type)
        for source in of_trace.inputs:
            flat = self._fetched_sources.get(source) if isinstance(source, Output) else None
            if flat is not None:
                node.input.append(flat)
        node.attr["runs"].s = f"in Python: {why_imperative(of_trace)}".encode()
        self._describe_owner(node, owner)

    # ----------------------------------------------------------- switch-cases

    def _level_decided_by(self, select: Any) -> int:
        """The level whose branch an op says; in a loop one of them, by trip."""
        channel = select.get_attr("channel")
        while self._level_of[channel] not in self._scopes.of_case:
            channel += 1  # the first trip may have no choice where others have one
        return self._level_of[channel]

    def _add_case(self, place: _Place, op: Any) -> None:
        decision = op.inputs[0].op
        level = self._level_decided_by(_select_of(decision))
        path = self._scopes.of_case[level]
        is_apply = level in self._is_emitted  # the writes of branches, after the commit
        self._is_emitted.add(level)
        scope = f"{place.scope}/{path[-1].name}" if is_apply else join_scopes(path)
        select = place.control[decision.name]
        branches = [
            self._add_branch(place, op, index, function, scope, select, is_apply)
            for index, function in enumerate(op.get_attr("branches"))
        ]
        for output in range(len(op.outputs)):
            self._add_value(place, op, output, branches, scope)
        place.control[op.name] = select

    def _add_branch(
        self, outer: _Place, case: Any, index: int, function: Any, scope: str, select: str,
        is_apply: bool,
    ) -> _Place:  # fmt: skip
        graph = outer.graph._get_function(function.name).graph
        place = _Place(graph, case.name, index, f"{scope}/branch_{index}", select, is_apply)
        inputs = {tensor.op.name for tensor in graph.inputs}
        for inner, given in zip(graph.inputs, case.inputs[1:]):
            place.sources[inner.op.name, 0] = self._source(outer, given)
        self._add_ops(place, inputs)
        return place

    def _add_value(
        self, place: _Place, case: Any, output: int, branches: list[_Place], scope: str
    ) -> None:
        """A value that comes out of a Case: what the branches made of it."""
        made = (self._source(inner, inner.graph.outputs[output]) for inner in branches)
        sources = list(dict.fromkeys(source for source in made if source is not None))
        if len(sources) < 2:
            place.sources[case.name, output] = sources[0] if sources else None
            return
        name = self._names.new(scope, "value")
        node = self._flat.graph_def.node.add(name=name, op="Merge", input=sources)
        tensor = case.outputs[output]
        node.attr["T"].type = tensor.dtype.as_datatype_enum
        node.attr["_output_shapes"].list.shape.add().CopyFrom(tensor.shape.as_proto())
        place.sources[case.name, output] = name


    # ------------------------------------------------------------------ loops

    def _add_while(self, outer: _Place, op: Any) -> None:
        """A rolled loop: its condition and one trip; what a trip hands on is not drawn."""
        scope = f"loop_{self._num_loops}"
        self._num_loops += 1
        for what in ("cond", "body"):
            graph = outer.graph._get_function(op.get_attr(what).name).graph
            place = _Place(graph, op.name, 0, scope)
            for inner, given in zip(graph.inputs, op.inputs):
                place.sources[inner.op.name, 0] = self._source(outer, given)
            self._add_ops(place, {tensor.op.name for tensor in graph.inputs})
        for number, result in enumerate(place.graph.outputs):
            outer.sources[op.name, number] = self._source(place, result)
        if place.control:
            outer.control[op.name] = next(reversed(place.control.values()))


@dataclasses.dataclass
class _Owned:
    """Which ops of a FuncGraph are for which node of the TraceGraph.

    Attributes:
      owner: An op's position -> the node.
      python_ops: Position -> nodes that Python runs itself there.
    """

    owner: dict[int, int] = dataclasses.field(default_factory=dict)
    python_ops: dict[int, list[int]] = dataclasses.field(default_factory=dict)


def _find_owned(op_ranges: list, graph: TraceGraph) -> dict[int, _Owned]:
    """Returns what is owned, by the FuncGraph's id."""
    found: dict[int, _Owned] = {}
    for func_graph, first, end, node in op_ranges:
        owned = found.setdefault(id(func_graph), _Owned())
        owned.owner.update(dict.fromkeys(range(first, end), node))
        if why_imperative(graph.nodes[node]) is not None:
            owned.python_ops.setdefault(first, []).append(node)
    return found


def _select_of(op: Any) -> Any:
    """Returns the op that brings a decision, if an op is it or hands it on; or None."""
    if op.type == "EnsureShape":
        op = op.inputs[0].op
    return op if op.type == _SELECT else None
