"""Keeps TensorFlow's oneDNN pass from merging two ops into one that rounds in another order.

Where oneDNN is on (on x86 by default, if the processor has AVX512_VNNI or better), the last pass
before a function runs gives each op the kernel that eager gives it, which changes nothing. But it
also merges `Conv2D` with a `BiasAdd` behind it, `Conv2DBackpropFilter` with the `BiasAddGrad` of
the same gradient, and `Pad` with a `Conv2D` behind it; and it lets `MaxPoolGrad` and `LRNGrad`
take what their forward op has kept. Eager does none of that
(`tensorflow/core/common_runtime/mkl_layout_pass.cc`). No option turns it off, and it looks at
direct neighbours. So a barrier stands between them. (Not an `Identity`: Grappler's pruner takes
those out.)
"""

from __future__ import annotations

from typing import Any

from terra_tf.graph.lean_graph import apply_op

_GUARDED = {
    "BiasAdd": "value",
    "BiasAddGrad": "out_backprop",
    "Conv2D": "input",
    "LRNGrad": "output_image",
    "MaxPool3DGrad": "orig_output",
    "MaxPoolGrad": "orig_output",
}
_RANKS = frozenset({None, 4, 5})  # what these ops take; a BiasAdd behind a MatMul is not merged


def guard_inputs(op_type: str, arguments: dict[str, Any]) -> None:
    """Puts a barrier before an op whose kernel the pass would choose by what makes its input.

    Args:
      op_type: The op.
      arguments: Its inputs and attributes by name; changed in place.
    """
    name = _GUARDED.get(op_type)
    if name is not None and arguments[name].shape.rank in _RANKS:
        arguments[name] = _barrier(arguments[name])


def _barrier(tensor: Any) -> Any:
    return apply_op("EnsureShape", input=tensor, shape=tensor.shape).outputs[0]
