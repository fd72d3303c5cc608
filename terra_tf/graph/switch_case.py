"""`Case` and `While` made of FuncGraphs, lowered to `Switch` and `Merge` when the function runs."""

from __future__ import annotations

from typing import Any

from terra_tf._tf_internals import atomic_function, attr_value_pb2, dtypes, function_type, ops
from terra_tf.graph.lean_graph import LeanGraph, apply_op
from terra_tf.graph.symbols import identity, scalar

_NO_TYPE = function_type.FunctionType([])  # of functions that are called by name alone


def make_branch_graph(name: str, outer: Any) -> Any:
    """Returns an empty graph that captures what it uses of the graph around it."""
    graph = LeanGraph(name)
    graph.outer_graph = outer
    return graph


def dummy(dtype: Any) -> Any:
    """Returns a scalar in the place of a value that does not exist on this path."""
    if dtype == dtypes.variant:  # of a list that the loop of a function keeps for its gradient
        arguments = {"element_shape": -1, "max_num_elements": 0, "element_dtype": dtypes.float32}
        return apply_op("EmptyTensorList", **arguments).outputs[0]
    return ops.get_default_graph().zero(dtype)


def as_output(tensor: Any) -> Any:
    """Returns the tensor as an output of the current graph, a branch: one of an op of its own."""
    graph = ops.get_default_graph()
    is_own = tensor.graph is graph and tensor.op.type != "Placeholder"
    return tensor if is_own else identity(tensor)


def add_case(index: Any, branches: list[Any], after: list) -> Any:
    """Adds a Case to the current graph.

    Args:
      index: Which branch to take, a scalar int32.
      branches: FuncGraphs whose `outputs` and `control_outputs` are set; their outputs have
        the same dtypes.
      after: Ops that come before whichever branch is taken.

    Returns:
      The operation.
    """
    outer = ops.get_default_graph()
    captured = _unify_captures(branches)
    functions = []
    for branch in branches:
        branch.structured_outputs = None
        function = atomic_function.from_func_graph(branch.name, branch, {}, _NO_TYPE)
        outer._add_function_recursive(function)
        functions.append(attr_value_pb2.NameAttrList(name=function.name.decode()))
    with ops.control_dependencies(after):
        case = apply_op(
            "Case",
            branch_index=index,
            input=captured,
            Tout=[tensor.dtype for tensor in branches[0].outputs],
            branches=functions,
            output_shapes=None,
        )
    case._set_attr("_lower_using_switch_merge", attr_value_pb2.AttrValue(b=True))
    return case


def add_while(
    condition: Any, body: Any, initial: list[Any], shapes: list[Any], after: list
) -> Any:
    """Adds a While to the current graph. Its first loop variable counts trips, from 0.

    Args:
      condition: A FuncGraph whose one input is the number of the trip, and whose output says
        whether it is made.
      body: A FuncGraph whose inputs are the trip and the loop variables, and whose outputs are
        those of the next trip.
      initial: The loop variables that the first trip takes.
      shapes: What includes their shapes after any trip.
      after: Ops that come before the first trip.

    Returns:
      The operation. Its outputs are the number of trips, the loop variables, and what the body
      took from outside.
    """
    outer = ops.get_default_graph()
    first = scalar()
    variables = body.inputs
    trip = condition.inputs
    captured = _unify_captures([condition, body])
    unused = [condition.placeholder_for(variable) for variable in variables[1:]]
    condition.inputs = [*trip, *unused, *condition.inputs]
    with body.as_default():
        body.outputs += [identity(tensor) for tensor in body.inputs]
    body.inputs = [*variables, *body.inputs]
    functions = {"cond": condition, "body": body}
    names = {}
    for name, graph in functions.items():
        graph.structured_outputs = None
        function = atomic_function.from_func_graph(graph.name, graph, {}, _NO_TYPE)
        outer._add_function_recursive(function)
        names[name] = attr_value_pb2.NameAttrList(name=function.name.decode())
    with ops.control_dependencies(after):
        shapes = [first.shape, *shapes, *(tensor.shape for tensor in captured)]
        operation = apply_op(
            "While", input=[first, *initial, *captured], output_shapes=shapes, **names
        )
    operation._set_attr("_lower_using_switch_merge", attr_value_pb2.AttrValue(b=True))
    return operation


def _unify_captures(branches: list[Any]) -> list[Any]:
    """Gives every branch the same inputs, and returns what they are outside."""
    captured: dict[int, Any] = {}
    for branch in branches:
        for key, (external, _) in branch.captured.items():
            captured.setdefault(key, external)
    for branch in branches:
        branch.inputs = [
            branch.captured[key][1] if key in branch.captured else branch.placeholder_for(external)
            for key, external in captured.items()
        ]
    return list(captured.values())
