"""Writes a function's `Case`s out as `_SwitchN` and `Merge`.

TensorFlow does this by itself when it instantiates a function (`lower_case_op.cc`,
`inline_function_utils.cc`), for any branches. It wraps what goes into a branch and what comes out
in an Identity each, and orders every branch by a pivot. Here it is done with what branches of
this package need, about a third fewer ops:

    index ────┬─> _SwitchN(index)  ─> pivot of each branch (an Identity)  ^─> ops without inputs
              └─> _SwitchN(captured) ─> ops of the branches ─┬─> Merge(output)
                  one for each captured tensor               └^─> done of each branch ─> Merge

An op runs if what it takes is alive: one that takes nothing but constants takes the pivot as a
control input. Constants are always alive. Pivots and `done` are made where somebody needs them.

Cases in the bodies of rolled loops are TensorFlow's to lower.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from terra_tf._tf_internals import atomic_function, context, dtypes, function_pb2, node_def_pb2

_INT32 = dtypes.int32.as_datatype_enum


def lower_cases(function: Any) -> Any:
    """Returns a function that does the same without a `Case`; it is registered while it lives.

    Args:
      function: An `AtomicFunction` of a graph without automatic control dependencies.

    Returns:
      Another `AtomicFunction`, or the same where it has no `Case`.
    """
    definition = function_pb2.FunctionDef()
    definition.CopyFrom(function.definition)
    if not any(node.op == "Case" for node in definition.node_def):
        return function
    definition.signature.name += "_lowered"
    _Lowering(definition).run()
    return atomic_function.from_function_def(definition, function.function_type)


@dataclasses.dataclass
class _Branch:
    """A branch that is being written out.

    Attributes:
      prefix: Of its nodes' names.
      constants: Name -> node of what is alive whichever branch is taken.
      inputs: Name of an argument -> the tensor that stands for it.
      outputs: What it gives for each of the Case's outputs.
      constant_outputs: A constant's value -> the tensor that is given for it.
      ends: Nodes that must run before the Case is done, and that no output depends on.
    """

    prefix: str
    constants: dict[str, Any]
    inputs: dict[str, str]
    outputs: list[str] = dataclasses.field(default_factory=list)
    ends: list[str] = dataclasses.field(default_factory=list)
    constant_outputs: dict[bytes, str] = dataclasses.field(default_factory=dict)


class _Lowering:
    def __init__(self, definition: Any) -> None:
        self._definition = definition
        self._nodes: list[Any] = []
        self._renamed: dict[str, str] = {}  # tensors and control inputs

    def run(self) -> None:
        """Replaces the definition's nodes."""
        for node in self._definition.node_def:
            if node.op == "Case":
                _LoweredCase(node, self._add).run(self._renamed)
            else:
                self._nodes.append(node)
        for node in self._nodes:
            node.input[:] = [self._renamed.get(name, name) for name in node.input]
        returned = self._definition.ret
        for name, tensor in list(returned.items()):
            returned[name] = self._renamed.get(tensor, tensor)
        controls = self._definition.control_ret
        for name, node in list(controls.items()):
            controls[name] = self._renamed.get(f"^{node}", f"^{node}")[1:]
        del self._definition.node_def[:]
        self._definition.node_def.extend(self._nodes)

    def _add(self, op: str, name: str, inputs: list[str], **attrs: int) -> Any:
        node = node_def_pb2.NodeDef(op=op, name=name, input=inputs)
        for key, value in attrs.items():
            if key == "T":
                node.attr[key].type = value
            else:
                node.attr[key].i = value
        self._nodes.append(node)
        return node


class _LoweredCase:
    def __init__(self, case: Any, add: Any) -> None:
        self._name = case.name
        self._add = add
        index, *inputs = case.input
        after = [name for name in inputs if name.startswith("^")]
        self._inputs = [name for name in inputs if not name.startswith("^")]
        functions = case.attr["branches"].list.func
        self._definitions = [context.context().get_function_def(f.name) for f in functions]
        self._index = index
        if after:
            add("Identity", f"{self._name}/index", [index, *after], T=_INT32)
            self._index = f"{self._name}/index:output:0"
        self._has_pivots = False
        self._pivots: dict[int, str] = {}

    def run(self, renamed: dict[str, str]) -> None:
        """Adds the nodes, and tells by what those of the Case are replaced."""
        self._switch_inputs()
        branches = [self._add_branch(i, each) for i, each in enumerate(self._definitions)]
        done = self._merge_outputs(branches, renamed)
        if any(branch.ends for branch in branches) or not done:
            done.append(self._merge_ends(branches))
        if len(done) == 1:
            renamed[f"^{self._name}"] = f"^{done[0]}"
        else:
            self._add("NoOp", self._name, [f"^{name}" for name in done])

    def _switch_inputs(self) -> None:
        """A `_SwitchN` for each tensor that some branch uses."""
        num_branches = len(self._definitions)
        used = [_used_arguments(definition) for definition in self._definitions]
        for position, tensor in enumerate(self._inputs):
            names = [d.signature.input_arg[position].name for d in self._definitions]
            if any(name in users for name, users in zip(names, used)):
                dtype = self._definitions[0].signature.input_arg[position].type
                name = f"{self._name}/switch{position}"
                self._add("_SwitchN", name, [tensor, self._index], num_outs=num_branches, T=dtype)

    def _pivot(self, number: int) -> str:
        """The name of a node that is alive where the branch is taken."""
        if not self._has_pivots:
            self._has_pivots = True
            self._add(
                "_SwitchN",
                f"{self._name}/pivots",
                [self._index, self._index],
                num_outs=len(self._definitions),
                T=_INT32,
            )
        if number not in self._pivots:
            name = self._pivots[number] = f"{self._name}/pivot{number}"
            self._add("Identity", name, [f"{self._name}/pivots:outputs:{number}"], T=_INT32)
        return self._pivots[number]

    # ------------------------------------------------------------- branches

    def _add_branch(self, number: int, definition: Any) -> _Branch:
        branch = _Branch(
            f"{self._name}/branch{number}/_0/",
            {node.name: node for node in definition.node_def if node.op == "Const"},
            {
                arg.name: f"{self._name}/switch{position}:outputs:{number}"
                for position, arg in enumerate(definition.signature.input_arg)
            },
        )
        for node in definition.node_def:
            self._add_node(number, branch, node)
        for arg in definition.signature.output_arg:
            tensor = definition.ret[arg.name]
            constant = branch.constants.get(_node_of(tensor))
            if constant is None:
                branch.outputs.append(branch.inputs.get(tensor, branch.prefix + tensor))
            else:
                branch.outputs.append(self._constant_output(number, branch, constant))
        reached = _ancestors(definition)
        ends = dict.fromkeys(definition.control_ret.values())
        branch.ends = [branch.prefix + name for name in ends if name not in reached]
        return branch

    def _constant_output(self, number: int, branch: _Branch, constant: Any) -> str:
        """One that is alive where the branch is taken; equal ones are one."""
        key = constant.attr["value"].SerializeToString(deterministic=True)
        if key not in branch.constant_outputs:
            name = f"{branch.prefix}output_{constant.name}"
            node = self._add("Const", name, [f"^{self._pivot(number)}"])
            for attribute in ("dtype", "value"):
                node.attr[attribute].CopyFrom(constant.attr[attribute])
            branch.constant_outputs[key] = f"{name}:output:0"
        return branch.constant_outputs[key]

    def _add_node(self, number: int, branch: _Branch, node: Any) -> None:
        inputs = []
        for name in node.input:
            if name.startswith("^"):
                is_argument = name[1:] in branch.inputs
                before = self._pivot(number) if is_argument else f"{branch.prefix}{name[1:]}"
                inputs.append(f"^{before}")
            else:
                inputs.append(branch.inputs.get(name, branch.prefix + name))
        is_constant = node.name in branch.constants
        if not is_constant and all(_node_of(name) in branch.constants for name in node.input):
            inputs.append(f"^{self._pivot(number)}")
        copy = self._add(node.op, branch.prefix + node.name, inputs)
        copy.device = node.device
        for key, value in node.attr.items():
            copy.attr[key].CopyFrom(value)

    # -------------------------------------------------------------- outputs

    def _merge_outputs(self, branches: list[_Branch], renamed: dict[str, str]) -> list[str]:
        names = []
        for position, arg in enumerate(self._definitions[0].signature.output_arg):
            names.append(f"{self._name}/merge{position}")
            outputs = [branch.outputs[position] for branch in branches]
            self._add("Merge", names[-1], outputs, N=len(outputs), T=arg.type)
            renamed[f"{self._name}:output:{position}"] = f"{names[-1]}:output:0"
        return names

    def _merge_ends(self, branches: list[_Branch]) -> str:
        """Adds a node that runs once the branch that was taken has ended."""
        tensors = []
        for number, branch in enumerate(branches):
            done = self._pivot(number)
            if branch.ends:
                inputs = [f"{done}:output:0", *(f"^{name}" for name in branch.ends)]
                done = f"{self._name}/done{number}"
                self._add("Identity", done, inputs, T=_INT32)
            tensors.append(f"{done}:output:0")
        name = f"{self._name}/done"
        self._add("Merge", name, tensors, N=len(tensors), T=_INT32)
        return name


def _node_of(name: str) -> str:
    """The node, or argument, of an input's name."""
    return name.removeprefix("^").partition(":")[0]


def _used_arguments(definition: Any) -> set[str]:
    used = {name for node in definition.node_def for name in node.input if ":" not in name}
    return used | set(definition.ret.values())


def _ancestors(definition: Any) -> set[str]:
    """The nodes that some output depends on; constants that are handed out depend on none."""
    inputs = {node.name: node.input for node in definition.node_def if node.op != "Const"}
    reached: set[str] = set()
    pending = [_node_of(tensor) for tensor in definition.ret.values()]
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending += [_node_of(each) for each in inputs.get(name, ())]
    return reached
