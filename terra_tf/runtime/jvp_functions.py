"""What a forward accumulator calls at each op: TensorFlow's function for the op's kind.

TensorFlow looks a function up by the types of all arguments, which takes more time than most ops.
In a step it is looked up by what these types are made of: the op, its attributes, the tensors'
types and shapes. What is found is the very function that TensorFlow would find, and it is called
in the same way.

    op with a tangent -> dispatch -> known? -- yes --> function._call_flat
                                       '------ no ---> TensorFlow's dispatch
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from terra_tf._tf_internals import (
    EagerTensor,
    context,
    dtypes,
    forwardprop,
    handle_shape_and_type,
    tracing_compilation,
)
from terra_tf.trace.markers import without_marker

_MAX_KEPT = 4096
_known: dict[Hashable, Any] = {}


def hook(native: Any, dispatch: Callable[..., Any]) -> Callable[..., Any]:
    """Returns what stands for TensorFlow's dispatch.

    The name that an op has on tapes is among its attributes; no function depends on it.
    """

    def dispatch_known(
        op_name: str, attributes: tuple, inputs: list, outputs: list, tangents: list,
        use_batch: bool = False,
    ) -> Any:  # fmt: skip
        args = (op_name, without_marker(attributes), inputs, outputs, tangents, use_batch)
        tensors = [*inputs, *outputs, *tangents]
        key = _key_of(args, tensors) if native.current_controller() is not None else None
        if key is None:
            return dispatch(*args)
        function = _known.get(key) or _learn(key, args, tensors)
        if function is None:
            return dispatch(*args)
        return function._call_flat(tensors, captured_inputs=function.captured_inputs)

    return dispatch_known


def _key_of(args: tuple, tensors: list) -> Hashable | None:
    """Returns what the function depends on, or None where that is TensorFlow's to say."""
    op_name, attributes, inputs, outputs, _, use_batch = args
    if use_batch or not context.executing_eagerly():
        return None
    if forwardprop._TRACE_COUNT.get(op_name, 0) >= forwardprop._TRACE_COUNT_LIMIT:
        return None  # then functions are for more shapes than one
    if not all(type(tensor) is EagerTensor for tensor in tensors):
        return None
    types = tuple(_type_of(tensor) for tensor in tensors)
    if None in types:
        return None
    key = (op_name, attributes, len(inputs), len(outputs), types, context.context().device_name)
    try:
        hash(key)
    except TypeError:  # an attribute is a list
        return None
    return key


def _type_of(tensor: Any) -> Hashable | None:
    if tensor.dtype == dtypes.variant:
        return None
    is_handle = tensor.dtype == dtypes.resource
    return tensor.dtype, tuple(tensor.shape), handle_shape_and_type(tensor) if is_handle else None


def _learn(key: Hashable, args: tuple, tensors: list) -> Any:
    """Keeps and returns TensorFlow's function; None if it takes others, or in another order."""
    function = tracing_compilation.trace_function(
        args=args, tracing_options=forwardprop._jvp_exact_config
    )
    bound = function.function_type.bind(*args)
    given = function.function_type.unpack_inputs(bound)
    if len(given) != len(tensors) or any(a is not b for a, b in zip(given, tensors, strict=True)):
        return None
    if len(_known) >= _MAX_KEPT:
        _known.clear()
    _known[key] = function
    return function
