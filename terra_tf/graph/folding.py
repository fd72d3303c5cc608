"""Which nodes need not run at all, because their results are constants of the graph.

`Shape`, `Size` and `Rank` of static shapes, and any stateless op on small integers that are
all constant: library code is full of them. A folded node gives ready tensors; where it is an
input, it counts as a constant and is compared by value.

The generator asks, node by node in program order, since what is static is known only from the
symbolic inputs that it has built.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from terra_tf._tf_internals import op_def_registry
from terra_tf.trace.op_classes import DEPENDS_ON_SHAPE_ONLY
from terra_tf.trace.trace_graph import Constant, Node, NodeInput, Output


def can_fold(
    node: Node,
    folded: Container[int],
    has_static_shape: Callable[[int], bool],
) -> bool:
    """Says whether the traced results of `node` hold in every step of the graph.

    Args:
      node: The node.
      folded: The indices of the nodes before it that are folded.
      has_static_shape: Says of an input's position whether its shape is fixed by the graph.
    """
    record = node.record
    if not record.folded or record.imperative is not None or node.forced is not None:
        return False
    if record.op_type in DEPENDS_ON_SHAPE_ONLY:
        return all(map(has_static_shape, range(len(node.inputs))))
    definition = op_def_registry.get(record.op_type)
    if definition is None or definition.is_stateful:
        return False
    return all(is_constant(source, folded) for source in node.inputs)


def is_constant(source: NodeInput, folded: Container[int]) -> bool:
    """Says whether an input has the same value in every step of the graph."""
    return isinstance(source, Constant) or (isinstance(source, Output) and source.node in folded)


def constant_value(source: NodeInput, folded: dict[int, tuple[Any, ...]]) -> Any:
    """Returns the tensor of a constant input."""
    if isinstance(source, Constant):
        return source.tensor
    assert isinstance(source, Output)
    return folded[source.node][source.output]
