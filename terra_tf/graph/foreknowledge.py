"""What the cursor will know by itself when Python arrives at a node: shapes, and small values.

Where the graph has unknown dimensions, TensorFlow's shape functions give the cursor the shapes
of this step (`kernels/plan/shapes.h`). What they ask for besides shapes (the second
input of `Reshape`) is often computed from shapes again: such ops run *on the host*, at once, as
well as in the graph. So neither Python nor the tape waits for the graph to know a shape, unless
it depends on data:

    Where(x)                      depends on data: a fetch, if somebody asks
    Shape(x), Shape(x)[0] * 2     on the host
    Reshape(x, [Shape(x)[0], 8])  follows, without its value

Judged by the shapes of one trace. Where that was wrong, the cursor diverges, and the next graph
has a fetch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from terra_tf._tf_internals import (
    dtypes,
    handle_shape_and_type,
    op_def_registry,
    unbound_handle,
)
from terra_tf.graph.folding import constant_value, is_constant
from terra_tf.graph.generated_graph import GeneratedGraph
from terra_tf.trace.joins import Join, Rule
from terra_tf.trace.op_classes import ASK_FOR_SHAPES
from terra_tf.trace.trace_graph import (
    Captured,
    Feed,
    Joined,
    Node,
    NodeInput,
    Output,
    TraceGraph,
    Variable,
    outputs_of,
)

# (rule, shapes, values) -> (of each result whether its shape follows, whose values were asked
# for), or None where the shapes do not go together: the native `infer_shapes`.
InferShapes = Callable[[bytes, list, list], "tuple[list[bool], list[int]] | None"]

_MAX_FED_ELEMENTS = 16  # a fed vector may be a shape; a longer one is data
_INTEGERS = frozenset(t.as_datatype_enum for t in (dtypes.int32, dtypes.int64, dtypes.bool))


class Foreknowledge:
    """Told of each node in program order, once it has been emitted."""

    def __init__(self, graph: TraceGraph, out: GeneratedGraph, infer: InferShapes) -> None:
        self._graph = graph
        self._out = out
        self._infer = infer
        self._noted: set[int] = set()
        self._unknown_shapes: set[Output] = set()
        self._values: set[Output] = set()

    def note(
        self, index: int, tensors: list[Any], rule: bytes, may_be_on_host: bool = True
    ) -> None:
        """Notes what is known of a node's results: symbolic tensors, and the op's NodeDef."""
        node = self._graph.nodes[index]
        self._noted.add(index)
        outputs = [Output(index, i) for i in range(len(node.outputs))]
        if node.is_imperative:
            self._values |= {o for o in outputs if node.outputs[o.output].dtype in _INTEGERS}
            return
        if may_be_on_host and self._is_on_host(index, node):
            self._out.on_host.add(index)
            self._values.update(outputs)
            if self._is_of_shapes(index, node):
                self._out.of_shapes.add(index)
            return
        is_static = [tensor.shape.is_fully_defined() for tensor in tensors]
        if not all(is_static) and not self._follows(index, node, rule, is_static):
            self._unknown_shapes.update(o for o in outputs if not is_static[o.output])

    def knows_shape(self, index: int, output: int) -> bool:
        """Says of a result that was noted whether the cursor will know its shape."""
        return Output(index, output) not in self._unknown_shapes

    # -------------------------------------------------------------- values

    def _is_on_host(self, index: int, node: Node) -> bool:
        record = node.record
        definition = op_def_registry.get(record.op_type)
        if not record.folded or definition is None or definition.is_stateful:
            return False
        positions = range(len(node.inputs))
        if record.op_type in ASK_FOR_SHAPES:
            return all(self._has_known_shape(index, position) for position in positions)
        return bool(positions) and all(self._has_value(index, position) for position in positions)

    def _has_value(self, index: int, position: int) -> bool:
        source = self._graph.nodes[index].inputs[position]
        join = self._out.joins.of_input.get((index, position))
        if join is None:
            return self._is_value(source)
        made, external = self._alternatives(join)
        return all(map(self._is_value, made)) and (external is None or _is_small(external))

    def _is_value(self, source: NodeInput) -> bool:
        if is_constant(source, self._out.folded):
            return True
        return source in self._values if isinstance(source, Output) else _is_small(source)

    def _is_of_shapes(self, index: int, node: Node) -> bool:
        """Says of a node on the host whether it takes no value but what follows from shapes."""
        if node.record.op_type in ASK_FOR_SHAPES:
            return True
        for position, source in enumerate(node.inputs):
            join = self._out.joins.of_input.get((index, position))
            if join is None and is_constant(source, self._out.folded):
                continue
            made, external = list(outputs_of(source)), None
            if join is not None:
                made, external = self._alternatives(join)
            if external is not None or not made:
                return False
            if any(output.node not in self._out.of_shapes for output in made):
                return False
        return True

    # -------------------------------------------------------------- shapes

    def _follows(self, index: int, node: Node, rule: bytes, is_static: list[bool]) -> bool:
        """Says whether the other results' shapes follow from what the cursor will know."""
        if not rule:
            return False
        positions = range(len(node.inputs))
        known = [self._has_known_shape(index, position) for position in positions]
        specs = node.record.input_specs or (None,) * len(known)
        shapes = [
            None if spec is None or spec.shape is None or not is_known else list(spec.shape)
            for spec, is_known in zip(specs, known)
        ]
        inferred = self._infer(rule, shapes, [self._constant(source) for source in node.inputs])
        if inferred is None:
            return all(known)
        follows, asked_for = inferred
        if follows and all(map(operator.or_, follows, is_static)):
            return True
        return (
            all(known)
            and bool(asked_for)
            and all(self._has_value(index, position) for position in asked_for)
        )

    def _constant(self, source: NodeInput) -> Any:
        if isinstance(source, Variable):
            variable = self._graph.variables[source.slot]
            if variable.handle is None:
                return unbound_handle(handle_shape_and_type(variable.type))
            return variable.handle  # which knows the variable's shape
        if not is_constant(source, self._out.folded):
            return None
        return constant_value(source, self._out.folded)

    def _has_known_shape(self, index: int, position: int) -> bool:
        join = self._out.joins.of_input.get((index, position))
        source = self._graph.nodes[index].inputs[position]
        made = self._alternatives(join)[0] if join is not None else outputs_of(source)
        return not any(o in self._unknown_shapes for o in made)

    def _alternatives(self, join: Join) -> tuple[list[Output], Feed | None]:
        """What a joined input may be, of the nodes before it."""
        while join.rule is Rule.SAME and join.same is not None:
            join = self._out.joins.of_input[join.same]
        of_rule: Iterable[Output] = join.alternatives
        if join.rule is Rule.LATEST:
            of_rule = self._out.joins.webs[join.web]
        return [o for o in of_rule if o.node in self._noted], join.external


def _is_small(source: NodeInput) -> bool:
    """Says of a tensor from outside whether it may be a shape."""
    if isinstance(source, Joined) or not isinstance(source, (Captured, Feed)):
        return False
    dtype, shape = source.spec
    if dtype not in _INTEGERS or shape is None or len(shape) > 1:
        return False
    return all(0 <= dim <= _MAX_FED_ELEMENTS for dim in shape)
