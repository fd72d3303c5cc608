"""A `Case` made of FuncGraphs, lowered to `_SwitchN` and `Merge` when the function runs."""

from __future__ import annotations

from typing import Any

from terra_tf._tf_internals import (
    apply_op,
    array_ops,
    atomic_function,
    attr_value_pb2,
    dtypes,
    func_graph,
    handle_data_util,
    ops,
)


def make_branch_graph(name: str, outer: Any) -> Any:
    """Returns an empty FuncGraph that captures what it uses of the graph around it."""
    graph = func_graph.FuncGraph(name)
    graph.outer_graph = outer
    return graph


def dummy(dtype: Any) -> Any:
    """Returns a scalar in the place of a value that does not exist on this path."""
    return array_ops.zeros((), dtype)


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
        function = atomic_function.from_func_graph(branch.name, branch, {})
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


def _unify_captures(branches: list[Any]) -> list[Any]:
    """Gives every branch the same inputs, and returns what they are outside."""
    captured: dict[int, Any] = {}
    for branch in branches:
        for external in branch.external_captures:
            captured.setdefault(id(external), external)
    for branch in branches:
        inner = {
            id(external): placeholder
            for external, placeholder in zip(branch.external_captures, branch.internal_captures)
        }
        with branch.as_default():
            branch.inputs = [
                inner[key] if key in inner else _placeholder(external)
                for key, external in captured.items()
            ]
    return list(captured.values())


def _placeholder(external: Any) -> Any:
    placeholder = array_ops.placeholder(external.dtype, external.shape)
    if external.dtype == dtypes.resource:
        handle_data_util.copy_handle_data(external, placeholder)
    return placeholder
