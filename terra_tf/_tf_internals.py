"""The only door to `tensorflow.python.*`.

Everything here is private to TensorFlow and bound to one minor version (see
`_native`). The rest of the package imports these names from here, so that a new
TensorFlow is one file's work. `tests/test_source_rules.py` holds this.
"""

import functools
from typing import Any

from tensorflow.core.framework import (
    attr_value_pb2,
    function_pb2,
    node_def_pb2,
    tensor_shape_pb2,
)
from tensorflow.core.function import trace_type
from tensorflow.core.function.polymorphism import function_type
from tensorflow.python import pywrap_tfe
from tensorflow.python.client import pywrap_tf_session
from tensorflow.python.distribute import distribute_lib
from tensorflow.python.eager import backprop, context, core, execute, forwardprop, record
from tensorflow.python.eager.polymorphic_function import (
    atomic_function,
    concrete_function,
    tracing_compilation,
)
from tensorflow.python.eager.polymorphic_function.autograph_util import py_func_from_autograph
from tensorflow.python.eager.polymorphic_function.eager_function_run import functions_run_eagerly
from tensorflow.python.framework import (
    composite_tensor,
    composite_tensor_gradient,
    dtypes,
    errors_impl,
    func_graph,
    function_def_to_graph,
    op_def_library,
    op_def_registry,
    ops,
    tensor_shape,
    tensor_util,
)
from tensorflow.python.ops import (
    array_ops,
    custom_gradient,
    gen_array_ops,
    gen_resource_variable_ops,
    handle_data_util,
    resource_variable_ops,
)
from tensorflow.python.ops.parallel_for import control_flow_ops as pfor_ops
from tensorflow.python.trackable.base import Trackable
from tensorflow.python.types.core import Tensor as TensorLike
from tensorflow.python.util import _pywrap_determinism, nest, tf_inspect
from tensorflow.tsl.profiler.protobuf import xplane_pb2

EagerTensor = ops.EagerTensor
SymbolicTensor = ops.SymbolicTensor
BaseResourceVariable = resource_variable_ops.BaseResourceVariable
ResourceVariable = resource_variable_ops.ResourceVariable
SymbolicTensor = ops.SymbolicTensor
UnreadVariable = resource_variable_ops._UnreadVariable
CompositeTensor = composite_tensor.CompositeTensor
NotFoundError = errors_impl.NotFoundError
NotOkStatusException = core._NotOkStatusException
FallbackException = core._FallbackException
tensor_cache_class = context._EagerTensorCache
identity = gen_array_ops.identity
uid = pywrap_tfe.TFE_Py_UID
value_to_attr_value = op_def_library.value_to_attr_value
is_op_determinism_enabled = _pywrap_determinism.is_enabled

__all__ = [
    "BaseResourceVariable",
    "CompositeTensor",
    "EagerTensor",
    "FallbackException",
    "NotFoundError",
    "NotOkStatusException",
    "ResourceVariable",
    "SymbolicTensor",
    "TensorLike",
    "Trackable",
    "UnreadVariable",
    "apply_op",
    "array_ops",
    "atomic_function",
    "attr_value_pb2",
    "backprop",
    "composite_tensor_gradient",
    "concrete_function_of",
    "context",
    "custom_gradient",
    "dtypes",
    "errors_impl",
    "execute",
    "forwardprop",
    "func_graph",
    "function_def_to_graph",
    "function_pb2",
    "function_type",
    "functions_run_eagerly",
    "handle_data_util",
    "handle_shape_and_type",
    "identity",
    "inferred_attributes",
    "is_op_determinism_enabled",
    "nest",
    "node_def_pb2",
    "num_active_accumulators",
    "op_def_registry",
    "ops",
    "pfor_ops",
    "py_func_from_autograph",
    "pywrap_tf_session",
    "pywrap_tfe",
    "record",
    "status_to_exception",
    "tensor_cache_class",
    "tensor_shape",
    "tensor_shape_pb2",
    "tensor_util",
    "tf_inspect",
    "tracing_compilation",
    "uid",
    "value_to_attr_value",
    "xplane_pb2",
]


def concrete_function_of(graph: Any) -> concrete_function.ConcreteFunction:
    """Returns a function of a finished FuncGraph that takes no arguments."""
    outputs = trace_type.from_value(
        graph.structured_outputs, trace_type.InternalTracingContext()
    )
    captures = graph.function_captures.capture_types
    signature = function_type.FunctionType([], captures, return_annotation=outputs)
    return concrete_function.ConcreteFunction.from_func_graph(
        graph, signature, {}, shared_func_graph=False
    )


@functools.cache
def inferred_attributes(op_type: str) -> frozenset[str]:
    """Returns the names of the attributes that TensorFlow infers from an op's inputs."""
    definition = op_def_registry.get(op_type)
    if definition is None:  # a function
        return frozenset()
    names: set[str] = set()
    for arg in definition.input_arg:
        names |= {arg.type_attr, arg.number_attr, arg.type_list_attr}
    return frozenset(names - {""})


def apply_op(op_type: str, **inputs_and_attrs: Any) -> Any:
    """Adds an op to the current graph; returns the graph's `Operation`.

    Attributes that are not given have their defaults.
    """
    for attr in op_def_registry.get(op_type).attr:
        if attr.HasField("default_value") and attr.name not in inferred_attributes(op_type):
            inputs_and_attrs.setdefault(attr.name, None)
    return op_def_library._apply_op_helper(op_type, **inputs_and_attrs)[2]


def num_active_accumulators(tensor: Any) -> int:
    """Returns how many forward accumulators are active on this thread.

    Args:
      tensor: Any eager tensor of floats.
    """
    indices, _ = pywrap_tfe.TFE_Py_PackJVPs([tensor])  # of each accumulator, if there is one
    return len(indices)


def status_to_exception(error: Exception) -> Exception:
    """Returns the `tf.errors.OpError` that a raw status exception stands for."""
    return core._status_to_exception(error)


def default_strategy() -> Any:
    """Returns the strategy that is in force where none is."""
    return distribute_lib._get_default_strategy()


def unbound_handle(shape_and_type: Any) -> Any:
    """Returns a handle as of a variable of that type, which is no variable's."""
    dtype, shape = shape_and_type or (dtypes.float32.as_datatype_enum, None)
    with ops.init_scope():
        return gen_resource_variable_ops.var_handle_op(
            dtype=dtype, shape=tensor_shape.TensorShape(shape), shared_name="terra_tf: of nobody"
        )


def handle_shape_and_type(handle: Any) -> Any:
    """Returns `(dtype enum, shape or None)` of a variable's eager handle, or None if unknown."""
    data = getattr(handle, "_handle_data", None)
    if data is None or not data.is_set or len(data.shape_and_type) != 1:
        return None
    entry = data.shape_and_type[0]
    if entry.shape.unknown_rank:
        return entry.dtype, None
    return entry.dtype, tuple(dim.size for dim in entry.shape.dim)
