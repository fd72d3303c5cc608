"""Ops that change nothing but a shape, or nothing at all, where the graph knows the shapes.

Gradient functions are full of them: a sum over no axis, a reshape to the shape that is there. Eager
runs a kernel for each; the graph hands the tensor on. Grappler would, too, but in a pass that also
changes the last bits of other results, and so is off (`runtime.plan.config_proto`).
"""

from __future__ import annotations

from typing import Any

from terra_tf._tf_internals import dtypes
from terra_tf.graph.folding import constant_value, is_constant
from terra_tf.graph.lean_graph import apply_op
from terra_tf.graph.symbols import constant
from terra_tf.trace.trace_graph import Node

_UNCHANGED = frozenset({"Identity", "PreventGradient", "Snapshot", "StopGradient"})
# With a constant as second input that says the shape, or which axes are reduced.
_RESHAPES = frozenset({"BroadcastTo", "ExpandDims", "Reshape", "Sum", "Tile"})


def emit_trivially(node: Node, values: list[Any], folded: dict[int, tuple[Any, ...]]) -> Any:
    """Returns the result of an op that is its first input, as it is or in another shape; or None.

    Args:
      node: The node.
      values: Its inputs, symbolic.
      folded: The results of folded nodes.
    """
    op_type = node.record.op_type
    # Where a shape has to be found out, the op's own shape function is asked.
    if op_type not in _UNCHANGED | _RESHAPES or not values[0].shape.is_fully_defined():
        return None
    if op_type in _UNCHANGED:
        return values[0]
    before, after = values[0].shape, node.outputs[0].shape
    if not is_constant(node.inputs[1], folded) or after is None or -1 in after:
        return None
    if op_type == "Sum" and not _sums_single_items(before, constant_value(node.inputs[1], folded)):
        return None
    if tuple(before.as_list()) == after:
        return values[0]
    if op_type != "Sum":
        return None
    shape = constant(list(after), dtypes.int32)
    return apply_op("Reshape", tensor=values[0], shape=shape).outputs[0]


def _sums_single_items(shape: Any, axes: Any) -> bool:
    """Says whether a sum over these axes adds nothing up; its kernel then hands the input on."""
    return all(shape[int(axis)] == 1 for axis in axes.numpy().reshape(-1))
