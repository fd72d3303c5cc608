"""Which ops of the graph cannot fail, whatever data they get.

A step with an op that can fail waits for its graph before it returns, so steps do not overlap.
Beside what `op_classes` knows of types and constants:

- An integer is divided by a constant that is not zero.
- **Indices that the cursor has looked at.** A gather fails for an index out of range, a loss for
  such a label. But ids and labels mostly come from outside of the step, as integers that Python
  has at hand:

      tokens (a Feed) -> Reshape -> GatherV2(params: float32[1000, 64])    tokens in [0, 1000)

  So the range is noted of the *feed*, the cursor compares each tensor that is fed there, and the
  op cannot fail. What is out of range is a divergence: the step goes on eagerly, where the op
  fails or not. Where that keeps happening, the feed is not looked at any more, and the op counts
  as one that can fail (`TraceGraph.has_range`). Values that the step computes, or that differ by
  path, have no range.
- **Indices in range whatever the data** (`intervals`): those of `top_k`, `argmax`, `i % n`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from terra_tf._tf_internals import dtypes, handle_shape_and_type
from terra_tf.graph.folding import constant_value, is_constant
from terra_tf.graph.generated_graph import GeneratedGraph
from terra_tf.graph.intervals import Intervals
from terra_tf.trace.op_classes import INDEXED_WRITES, INTEGER_DIVISIONS, is_fallible
from terra_tf.trace.trace_graph import Feed, Node, NodeInput, Output, TraceGraph, Variable

Range = tuple[int, int]  # [first, end)

_SCATTERS = frozenset(op for op in INDEXED_WRITES if "Nd" not in op)
_LOWEST = -(2**63)
# Their results hold nothing but values of this input.
_VIEWS = {
    "BroadcastTo": 0, "Cast": 0, "EnsureShape": 0, "ExpandDims": 0, "GatherV2": 0, "Identity": 0,
    "PreventGradient": 0, "Reshape": 0, "ReverseV2": 0, "Roll": 0, "Slice": 0, "Snapshot": 0,
    "Split": 1, "SplitV": 0, "Squeeze": 0, "StopGradient": 0, "StridedSlice": 0, "Tile": 0,
    "Transpose": 0, "Unpack": 0,
}  # fmt: skip
_COMPARABLE = frozenset(
    dtype.as_datatype_enum
    for dtype in (
        dtypes.int8, dtypes.int16, dtypes.int32, dtypes.int64, dtypes.uint8, dtypes.uint16,
    )
)  # fmt: skip
# What integers below this number are cast to without a change. (Keras takes labels for numbers in
# floating point at first.)
_EXACT_BELOW = {
    dtypes.int32.as_datatype_enum: 2**31,
    dtypes.int64.as_datatype_enum: 2**63,
    dtypes.float32.as_datatype_enum: 2**24,
    dtypes.float64.as_datatype_enum: 2**53,
}
# The reserves of a batch norm are as its forward op has made them.
_SHAPES_NEVER_LOOKED_AT = {"FusedBatchNormGradV3": (5,)}


class Fallibility:
    """Says what can fail, and notes the ranges of feeds.

    Args:
      graph: The TraceGraph.
      out: Whose `feed_ranges` are filled.
      looks_at_indices: Whether the cursor can compare integers that are fed.
    """

    def __init__(self, graph: TraceGraph, out: GeneratedGraph, looks_at_indices: bool) -> None:
        self._graph = graph
        self._out = out
        self._looks_at_indices = looks_at_indices
        self._intervals = Intervals(graph, out)

    def can_fail(self, index: int, node: Node, inputs: list[Any], is_in_loop: bool) -> bool:
        """Says whether an op can fail on data.

        Args:
          index: The node.
          node: The same; in a loop's body, with the inputs that the body sees.
          inputs: The symbolic tensors that the op takes.
          is_in_loop: Whether it is in the body of a rolled loop.
        """
        op_type = node.record.op_type
        input_dtypes = tuple(tensor.dtype.as_datatype_enum for tensor in inputs)
        sources = enumerate(node.inputs)
        constants = frozenset(i for i, s in sources if is_constant(s, self._out.folded))
        unused = _SHAPES_NEVER_LOOKED_AT.get(op_type, ())
        shapes = [tensor.shape for i, tensor in enumerate(inputs) if i not in unused]
        if any(not shape.is_fully_defined() for shape in shapes):
            return True
        if not is_fallible(op_type, input_dtypes, constants):
            return False
        if op_type in INTEGER_DIVISIONS and 1 in constants:
            return not constant_value(node.inputs[1], self._out.folded).numpy().all()
        return not self.has_range(index, node, inputs, is_in_loop)

    def has_range(self, index: int, node: Node, inputs: list[Any], is_in_loop: bool) -> bool:
        """Says whether an op of indices cannot fail, and has the cursor look at what it takes.

        Args and what they mean are those of `can_fail`.
        """
        if is_in_loop or not self._looks_at_indices:
            return False
        if any(not tensor.shape.is_fully_defined() for tensor in inputs):
            return False
        found = self._indices_of(node, [tensor.shape for tensor in inputs])
        if found is None:
            return False
        position, allowed = found
        feeds: set[Feed] = set()
        if not self._collect(index, position, allowed, feeds):
            return False
        for feed in feeds:
            low, end = self._out.feed_ranges.get(feed, allowed)
            self._out.feed_ranges[feed] = (max(low, allowed[0]), min(end, allowed[1]))
        return True

    def _indices_of(self, node: Node, shapes: list[Any]) -> tuple[int, Range] | None:
        """Which input holds indices, and the range that they have to be in."""
        op_type = node.record.op_type
        if op_type == "SparseSoftmaxCrossEntropyWithLogits":
            return _range_of(1, shapes[0], 1)
        if op_type == "GatherV2":
            axis = self._number(node.inputs[2])
            return None if axis is None else _range_of(1, shapes[0], axis)
        if op_type == "UnsortedSegmentSum":  # negative ones are left out
            end = self._number(node.inputs[2])
            return None if end is None else (1, (_LOWEST, end))
        if op_type == "ResourceGather":
            batch_dims = int(node.record.attribute("batch_dims") or 0)
            return _range_of(1, self._variable_shape(node), batch_dims)
        if op_type in _SCATTERS:
            return _range_of(1, self._variable_shape(node), 0)
        return None

    def _variable_shape(self, node: Node) -> Any:
        variable = node.inputs[0]
        assert isinstance(variable, Variable)
        spec = handle_shape_and_type(self._graph.variables[variable.slot].type)
        return None if spec is None else spec[1]

    def _number(self, source: NodeInput) -> int | None:
        if not is_constant(source, self._out.folded):
            return None
        return int(constant_value(source, self._out.folded))

    # -------------------------------------------------- where indices come from

    def _collect(self, index: int, position: int, allowed: Range, feeds: set[Feed]) -> bool:
        """Adds the feeds that an input holds values of; False if there are others."""
        if (index, position) in self._out.joins.of_input:
            return False
        low, end = self._intervals.of(index, position)
        if allowed[0] <= low and end <= allowed[1]:
            return True
        source = self._graph.nodes[index].inputs[position]
        if is_constant(source, self._out.folded):
            return _is_within(constant_value(source, self._out.folded), allowed)
        if isinstance(source, Feed):
            feeds.add(source)
            return source.spec.dtype in _COMPARABLE and self._graph.has_range(source)
        if not isinstance(source, Output) or self._is_in_loop(source.node):
            return False
        maker = self._graph.nodes[source.node]
        positions = _positions_of_values(maker, allowed)
        return bool(positions) and all(
            self._collect(source.node, each, allowed, feeds) for each in positions
        )

    def _is_in_loop(self, index: int) -> bool:
        return bool(self._out.trip_places.get(self._out.cases.block_of[index].level))


def _range_of(position: int, shape: Any, axis: int) -> tuple[int, Range] | None:
    dims = None if shape is None else list(shape)
    if dims is None or not -len(dims) <= axis < len(dims):
        return None
    end = dims[axis]
    return (position, (0, end)) if isinstance(end, int) and end >= 0 else None


def _positions_of_values(node: Node, allowed: Range) -> Iterable[int]:
    """Of which inputs an op's result holds values, and nothing but values; none: of others."""
    op_type = node.record.op_type
    if node.is_imperative:
        return ()
    if op_type == "Cast":
        return (0,) if allowed[1] <= _EXACT_BELOW.get(node.outputs[0].dtype, 0) else ()
    if op_type == "Pack":
        return range(len(node.inputs))
    if op_type == "ConcatV2":
        return range(len(node.inputs) - 1)
    return (_VIEWS[op_type],) if op_type in _VIEWS else ()


def _is_within(tensor: Any, allowed: Range) -> bool:
    values = tensor.numpy()
    return values.size == 0 or bool(allowed[0] <= values.min() and values.max() < allowed[1])
