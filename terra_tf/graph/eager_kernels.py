"""Adds ops whose kernels give eager's bits, whatever TensorFlow would make of them in a graph.

Most are the same op, some behind a barrier (`fusion_barriers`).

A sum, `AddN`, is begun in an input's buffer where that is free, and then with that input. In a
graph this depends on who runs first. An eager op's inputs are held by who called it, so that sums
have the order of their inputs; here the kernel is told not to reuse a buffer
(`OpKernelContext::Params::kNeverForward`). What is left is to keep Grappler's memory optimizer from
taking sums of large tensors apart (`runtime.plan.config_proto`).

Two are done another way, which is faster and has the same bits:

- Eager's `MaxPoolGrad` looks for the largest item of each window anew, an item at a time; in a
  `tf.function` with oneDNN it takes what the forward op has kept, which eager does not. A kernel of
  this package looks at sixteen channels at a time.
- The gradient of a mean is broadcast, and each item then divided by the same number: here it is
  divided once, and then broadcast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from terra_tf._tf_internals import attr_value_pb2, dtypes, ops
from terra_tf.graph.fusion_barriers import guard_inputs
from terra_tf.graph.lean_graph import apply_op

# Pairs of an input and the output that has its buffer; -2: a buffer of its own.
_OWN_BUFFER = attr_value_pb2.AttrValue(list=attr_value_pb2.AttrValue.ListValue(i=[-2, 0]))


def apply_like_eager(
    op_type: str, arguments: dict[str, Any], apply: Callable[[str, dict[str, Any]], Any]
) -> Any:
    """Adds an op to the current graph; returns the graph's `Operation`.

    Args:
      op_type: What eager runs.
      arguments: Its inputs and attributes by name.
      apply: Adds the op as it is.
    """
    if op_type == "MaxPoolGrad" and _is_plain_pooling(arguments):
        kept = ("orig_input", "grad", "ksize", "strides", "padding")
        return apply_op("Terra>MaxPoolGrad", **{name: arguments[name] for name in kept})
    if op_type == "RealDiv" and _is_broadcast(arguments["x"]) and arguments["y"].shape.rank == 0:
        whole = arguments["x"]
        quotient = apply_op("RealDiv", x=whole.op.inputs[0], y=arguments["y"]).outputs[0]
        operation = apply_op("BroadcastTo", input=quotient, shape=whole.op.inputs[1])
        operation.outputs[0].set_shape(whole.shape)
        return operation
    guard_inputs(op_type, arguments)
    operation = apply(op_type, arguments)
    if op_type == "AddN":
        operation._set_attr("_forward_input", _OWN_BUFFER)
    return operation


def _is_broadcast(tensor: Any) -> bool:
    """Says whether it has just been broadcast, to a shape that nobody has to find out."""
    is_here = tensor.graph is ops.get_default_graph()
    return is_here and tensor.op.type == "BroadcastTo" and tensor.shape.is_fully_defined()


def _is_plain_pooling(arguments: Mapping[str, Any]) -> bool:
    """Says whether it is a float32 pooling of rows and columns on the CPU."""
    ksize, strides = list(arguments["ksize"]), list(arguments["strides"])
    return (
        arguments["orig_input"].dtype == dtypes.float32
        and arguments["orig_input"].shape.rank == 4
        and arguments["grad"].shape.rank == 4
        and _text(arguments.get("padding")) in ("SAME", "VALID")
        and _text(arguments.get("data_format") or "NHWC") == "NHWC"
        and ksize[0] == ksize[3] == strides[0] == strides[3] == 1
        and not tf.config.list_logical_devices("GPU")
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
