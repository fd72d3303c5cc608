"""NodeDefs by whose shape functions the cursor can tell the shapes of results."""

from __future__ import annotations

from typing import Any

from terra_tf._tf_internals import node_def_pb2
from terra_tf.trace.op_classes import STATELESS_RANDOM
from terra_tf.trace.trace_graph import Node


def shape_rule(node: Node, outputs: list[Any]) -> bytes:
    """Returns a node's serialized NodeDef; empty where there is no rule.

    Args:
      node: The node, which Python calls as it was traced.
      outputs: Its symbolic results. The op that made them may be another one: the graph draws
        random numbers with a key and a counter, reads variables by their current values, and
        has kernels of this package for some ops (`eager_kernels`).
    """
    operation, op_type = outputs[0].op, node.record.op_type
    if operation.type == op_type:
        return operation.node_def.SerializeToString()
    types = (
        _random_types(node, operation)
        or _gather_types(node, operation)
        or _pooling_types(node, operation)
    )
    if not types:
        return b""
    rule = node_def_pb2.NodeDef(name="rule", op=op_type)
    for name, dtype in types.items():
        rule.attr[name].type = dtype
    if op_type == "ResourceGather":
        rule.attr["batch_dims"].i = operation.get_attr("batch_dims")
    if op_type == "MaxPoolGrad":
        for name in ("ksize", "strides", "padding"):
            rule.attr[name].CopyFrom(operation.node_def.attr[name])
    return rule.SerializeToString()


def _pooling_types(node: Node, operation: Any) -> dict[str, int]:
    if operation.type != "Terra>MaxPoolGrad" or node.record.op_type != "MaxPoolGrad":
        return {}
    return {"T": node.outputs[0].dtype}


def _random_types(node: Node, operation: Any) -> dict[str, int]:
    if node.record.op_type not in STATELESS_RANDOM:
        return {}
    result = "Tout" if node.record.op_type == "RandomUniformInt" else "dtype"
    return {"T": operation.inputs[0].dtype.as_datatype_enum, result: node.outputs[0].dtype}


def _gather_types(node: Node, operation: Any) -> dict[str, int]:
    if operation.type not in ("GatherV2", "GatherNd"):
        return {}
    if node.record.op_type not in ("ResourceGather", "ResourceGatherNd"):
        return {}
    indices = operation.inputs[1].dtype.as_datatype_enum
    return {"Tindices": indices, "dtype": node.outputs[0].dtype}
