"""Between which integers an op's results are, whatever data it gets.

    top_k(x: float32[8, 80]).indices      in [0, 80)
    argmax(x: float32[8, 10], axis=1)     in [0, 10)
    i % 4                                 in [0, 4)
    clip_by_value(i, 0, 9)                in [0, 10)

So a gather by such indices cannot fail.
"""

from __future__ import annotations

import math
from typing import Any

from terra_tf.graph.folding import constant_value, is_constant
from terra_tf.graph.generated_graph import GeneratedGraph
from terra_tf.trace.trace_graph import Captured, Constant, Feed, Node, NodeInput, Output, TraceGraph

Interval = tuple[float, float]  # [first, end)

ANY: Interval = (-math.inf, math.inf)
_SAME = frozenset({"Identity", "Reshape", "ExpandDims", "Squeeze", "Transpose", "StopGradient"})


class Intervals:
    """Answers for a graph under construction, of nodes that have been emitted."""

    def __init__(self, graph: TraceGraph, out: GeneratedGraph) -> None:
        self._graph = graph
        self._out = out

    def of(self, index: int, position: int) -> Interval:
        """Returns the interval of a node's input."""
        if (index, position) in self._out.joins.of_input:
            return ANY
        source = self._graph.nodes[index].inputs[position]
        if is_constant(source, self._out.folded):
            values = constant_value(source, self._out.folded).numpy()
            is_integer = values.size > 0 and values.dtype.kind in "iu"
            return (int(values.min()), int(values.max()) + 1) if is_integer else ANY
        if not isinstance(source, Output):
            return ANY
        node = self._graph.nodes[source.node]
        return ANY if node.is_imperative else self._of_result(source.node, node, source.output)

    def _of_result(self, index: int, node: Node, output: int) -> Interval:
        op_type = node.record.op_type
        if self._out.trip_places.get(self._out.cases.block_of[index].level):
            return ANY  # in a rolled loop a constant may be another in each trip
        if op_type in _SAME:
            return self.of(index, 0)
        if op_type == "TopKV2" and output == 1:
            return self._places(index, -1)
        if op_type in ("ArgMax", "ArgMin"):
            axis = self.of(index, 1)
            return self._places(index, int(axis[0])) if axis[0] + 1 == axis[1] else ANY
        if op_type == "FloorMod":
            low, end = self.of(index, 1)
            return (0, end - 1) if low > 0 and end < math.inf else ANY
        if op_type in ("Minimum", "Maximum"):
            pick = min if op_type == "Minimum" else max
            pairs = zip(self.of(index, 0), self.of(index, 1), strict=True)
            low, end = (pick(pair) for pair in pairs)
            return low, end
        if op_type == "ClipByValue":
            lowest, highest = self.of(index, 1), self.of(index, 2)
            return min(lowest[0], highest[0]), max(lowest[1], highest[1])
        return ANY

    def _places(self, index: int, axis: int) -> Interval:
        """The places along an axis of a node's first input."""
        shape = self._shape(index, self._graph.nodes[index].inputs[0])
        if shape is None or not -len(shape) <= axis < len(shape) or shape[axis] < 1:
            return ANY
        return 0, shape[axis]

    def _shape(self, index: int, source: NodeInput) -> Any:
        """Returns the dimensions that an input has in every step, or None."""
        if (index, 0) in self._out.joins.of_input:
            return None
        if isinstance(source, Output):
            return self._out.output_shapes.get((source.node, source.output))
        return source.spec.shape if isinstance(source, (Constant, Captured, Feed)) else None
