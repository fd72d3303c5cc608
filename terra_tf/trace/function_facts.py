"""What TensorFlow's functions do: which of them the graph may run as ops of its own.

A `tf.function` that a step calls is an op named after the function. It can be delegated if its
body has no effect, whatever it reads: the variables among its inputs, too, which then have to be
as eager would have them there. Looked for in the body and in all functions that it calls.

A body with an effect (it writes variables, draws random numbers, prints) is Python's to run, and
so is one that XLA compiles.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from terra_tf._tf_internals import NotFoundError, context, dtypes, op_def_registry
from terra_tf.errors import ImperativeReason
from terra_tf.trace.op_classes import READS, READS_FILES, SAFE_STATEFUL

_RESOURCE = dtypes.resource.as_datatype_enum
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_LOOPS = frozenset({"While", "StatelessWhile"})
_BRANCHES = frozenset({"If", "StatelessIf", "Case", "StatelessCase"})
_RUN_FUNCTIONS = _CALLS | _LOOPS | _BRANCHES
_SAFE = READS | SAFE_STATEFUL | _RUN_FUNCTIONS
_XLA = "_XlaMustCompile"
_PREFIXES = ("__inference_", "__forward_", "__backward_")


@dataclasses.dataclass(frozen=True, slots=True)
class FunctionFacts:
    """What a function is to a step that calls it.

    Attributes:
      reason: Why Python has to run it, or None.
      returned_handles: Of each result that is a variable's handle, the input that it is.
    """

    reason: ImperativeReason | None
    returned_handles: dict[int, int] = dataclasses.field(default_factory=dict)


_UNKNOWN = FunctionFacts(ImperativeReason.NO_OP_DEFINITION)


def is_function(op_type: str) -> bool:
    """Says whether an op's type is the name of a `tf.function`, or of its gradient."""
    return op_type.startswith(_PREFIXES)


@functools.lru_cache(maxsize=4096)
def facts_of(name: str) -> FunctionFacts:
    """Returns what a registered function does, by its name: names are never given twice."""
    definition = definition_of(name)
    if definition is None or any(_has_effect(each) for each in _reached(definition)):
        return _UNKNOWN
    handles: dict[int, int] = {}
    for position, result in enumerate(definition.signature.output_arg):
        if result.type == _RESOURCE:
            source = _input_returned(definition, position)
            if source is None:
                return _UNKNOWN
            handles[position] = source
    if any(_calls_functions(each) for each in _reached(definition)):
        # Grappler would rewrite those that are called once more, with the graph's options.
        return FunctionFacts(ImperativeReason.NESTED_FUNCTIONS, handles)
    return FunctionFacts(None, handles)


def definition_of(name: str) -> Any:
    """Returns the FunctionDef of that name, or None."""
    try:
        return context.context().get_function_def(name)
    except NotFoundError:
        return None


def functions_of(definition: Any) -> Iterator[str]:
    """Yields the names of the functions that a function's body names, maybe some of them twice."""
    for node in definition.node_def:
        if op_def_registry.get(node.op) is None:
            yield node.op
        for value in node.attr.values():
            if value.HasField("func"):
                yield value.func.name
            for function in value.list.func:
                yield function.name


def _reached(definition: Any) -> Iterator[Any]:
    """Yields a function's definition, and those of all functions below; None for one unknown."""
    seen: set[str] = set()
    pending = [definition]
    while pending:
        current = pending.pop()
        yield current
        for name in () if current is None else functions_of(current):
            if name not in seen:
                seen.add(name)
                pending.append(definition_of(name))


def _calls_functions(definition: Any) -> bool:
    nodes = definition.node_def
    return any(node.op in _CALLS or op_def_registry.get(node.op) is None for node in nodes)


def _has_effect(definition: Any) -> bool:
    if definition is None or definition.attr[_XLA].b:
        return True
    return any(_node_has_effect(node) for node in definition.node_def)


def _node_has_effect(node: Any) -> bool:
    definition = op_def_registry.get(node.op)
    if node.op in _SAFE or definition is None:  # of a function, the body is looked at
        return node.attr[_XLA].b if _XLA in node.attr else False
    if "PyFunc" in node.op or node.op in READS_FILES:
        return True
    uses_resource = any(arg.type == _RESOURCE for arg in definition.input_arg)  # a table, say
    runs_function = any(attr.type == "func" for attr in definition.attr)
    return definition.is_stateful or uses_resource or runs_function


# -------------------------------------------------------------- handles handed on


def _input_returned(definition: Any, position: int) -> int | None:
    """Returns the input that a result is in every call, or None if that is not certain."""
    result = definition.signature.output_arg[position]
    return _input_behind(definition, definition.ret[result.name])


def _input_behind(definition: Any, tensor: str) -> int | None:
    inputs = [arg.name for arg in definition.signature.input_arg]
    nodes = {node.name: node for node in definition.node_def}
    for _ in range(len(nodes) + 1):
        if tensor in inputs:
            return inputs.index(tensor)
        name, *_, index = tensor.split(":")
        source = _source_of(nodes[name], int(index))
        if source is None:
            return None
        tensor = nodes[name].input[source]
    return None


def _source_of(node: Any, index: int) -> int | None:
    """Returns the input of a node that its output of this number is, or None."""
    if node.op in ("Identity", "IdentityN"):
        return index
    bodies = (key for key in ("f", "body", "then_branch", "else_branch") if key in node.attr)
    names = [node.attr[key].func.name for key in bodies]
    if "branches" in node.attr:
        names += [function.name for function in node.attr["branches"].list.func]
    if node.op not in _RUN_FUNCTIONS or not names:
        return None
    definitions = [definition_of(name) for name in names]
    sources = {None if each is None else _input_returned(each, index) for each in definitions}
    if len(sources) != 1:
        return None
    (source,) = sources
    if node.op in _LOOPS:
        return source if source == index else None
    return source + 1 if source is not None and node.op in _BRANCHES else source
