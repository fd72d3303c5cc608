"""Shapes that kernels give results of which TensorFlow's shape functions know nothing.

`FusedBatchNormV3` has a sixth result in which a GPU's kernel keeps something for the gradient. On a
CPU nothing is kept: it is empty, or a scalar. Its shape function says nothing about it, and the
tape asks each result for its shape; so Python waited for the graph in every batch norm.
"""

from __future__ import annotations

from typing import Any

from terra_tf.trace.trace_graph import Node

_OF_THE_KERNEL = {"FusedBatchNormV3": 5}
_NOTHING_KEPT = ((), (0,))  # whatever the inputs' shapes are


def note_kernel_shape(node: Node, operation: Any) -> None:
    """Gives a result the shape that the kernel gave it in the traces, where it keeps nothing in it.

    Args:
      node: What was traced.
      operation: The graph's op for it.
    """
    position = _OF_THE_KERNEL.get(operation.type)
    if position is None:
        return
    tensor, traced = operation.outputs[position], node.outputs[position].shape
    if traced in _NOTHING_KEPT and not tensor.shape.is_fully_defined():
        tensor.set_shape(traced)
