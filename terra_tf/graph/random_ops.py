"""Random ops: the stateless ones that draw eager's bits from a key and a counter.

See docs/design/0005.
"""

from __future__ import annotations

from typing import Any

from terra_tf.graph.lean_graph import apply_op
from terra_tf.trace.op_classes import STATELESS_RANDOM
from terra_tf.trace.trace_graph import Node


def draw(node: Node, arguments: dict[str, Any], state: Any) -> Any:
    """Adds the stateless op that a seeded one becomes; returns the operation.

    Args:
      node: The node of the seeded op.
      arguments: Its inputs and attributes by name.
      state: uint64[3]: the key, and the counter in two halves.
    """
    for name in ("seed", "seed2"):
        arguments.pop(name)
    if node.record.op_type == "RandomUniformInt":
        arguments.pop("dtype", None)
    else:
        arguments["dtype"] = node.outputs[0].dtype
    return apply_op(
        STATELESS_RANDOM[node.record.op_type],
        key=state[:1],
        counter=state[1:],
        alg=1,
        **arguments,
    )
