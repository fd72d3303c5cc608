"""Turns a TraceGraph into a TensorFlow function and says how Python talks to it.

The function takes the step's id, then the captured variables and tensors. Everything else
comes and goes through channels of the step's mailbox. It has no outputs: fetches deliver
values, writes change variables. It is built without automatic control dependencies, which
would chain the ops that wait; exactly the order that is needed is added here:

- program order per variable, within an epoch by SSA values, between epochs by the commit;
- `AwaitCommit` of an epoch after its fallible ops, its fetches and its final values;
- writes after the commit; the next epoch's reads after the writes and Python's go-ahead;
- a fetch after the fallible ops before it.
"""

from __future__ import annotations

import itertools
from typing import Any

import tensorflow as tf

from terra_tf._tf_internals import (
    apply_op,
    array_ops,
    atomic_function,
    dtypes,
    func_graph,
    handle_data_util,
    handle_shape_and_type,
    inferred_attributes,
    op_def_registry,
    ops,
)
from terra_tf.errors import ImperativeReason, UndelegableOpError
from terra_tf.graph.epochs import epoch_starts, is_imperative, writes_variable
from terra_tf.graph.folding import can_fold, constant_value, is_constant
from terra_tf.graph.generated_graph import EpochChannels, GeneratedGraph
from terra_tf.graph.symbols import is_handle, scalar, static_shape, unique
from terra_tf.trace.op_classes import (
    DENSE_WRITES,
    IN_PLACE_WRITES,
    INDEXED_WRITES,
    STATELESS_RANDOM,
    is_fallible,
)
from terra_tf.trace.trace_graph import (
    Captured,
    Feed,
    Node,
    NodeInput,
    Output,
    TraceGraph,
    Variable,
)

_serial = itertools.count()
_NEVER_FED = frozenset({dtypes.resource.as_datatype_enum, dtypes.variant.as_datatype_enum})


def generate(graph: TraceGraph) -> GeneratedGraph:
    """Builds and registers the function of a TraceGraph.

    Raises:
      UndelegableOpError: An op has to run imperatively.
    """
    return _Generator(graph).build()


class _Epoch:
    """What has been built of the epoch under way."""

    def __init__(self, gate: Any) -> None:
        self.gate = gate  # reads of variables come after it
        self.values: dict[int, Any] = {}  # slot -> SSA value
        self.changed: set[int] = set()
        self.reads: dict[int, list] = {}  # slot -> ops that read the variable itself
        self.fallible: list = []
        self.fetches: list = []
        self.held_back: list[tuple[int, list, Any]] = []  # slot, inputs, emit


class _Generator:
    def __init__(self, graph: TraceGraph) -> None:
        self._graph = graph
        self._out = GeneratedGraph()
        self._env: dict[tuple[int, int], Any] = {}
        self._externals: dict[Any, Any] = {}
        self._handles: dict[int, Any] = {}
        self._controls: list = []
        self._starts = epoch_starts(graph)
        self._last_use = self._find_last_uses()

    # ------------------------------------------------------------ the whole

    def build(self) -> GeneratedGraph:
        function_graph = func_graph.FuncGraph(f"terra_step_{next(_serial)}")
        with function_graph.as_default():
            self._inputs = [array_ops.placeholder(dtypes.int64, [])]
            self._step = self._inputs[0]
            self._add_captures()
            self._epoch = _Epoch(None)
            self._out.epochs.append(EpochChannels(0, self._channel()))
            for index, node in enumerate(self._graph.nodes):
                if index in self._starts:
                    self._begin_epoch(index)
                self._emit(index, node)
            self._end_epoch(is_last=True)
        function_graph.inputs = self._inputs
        function_graph.outputs = []
        function_graph.structured_outputs = None
        function_graph.control_outputs = unique(self._controls)
        name = function_graph.name
        self._out.function = atomic_function.from_func_graph(name, function_graph, {})
        self._out.name = self._out.function.name.decode()
        return self._out

    def _channel(self) -> int:
        self._out.num_channels += 1
        return self._out.num_channels - 1

    def _find_last_uses(self) -> dict[int, int]:
        last: dict[int, int] = {}
        for index, node in enumerate(self._graph.nodes):
            for source in node.inputs:
                if isinstance(source, Variable):
                    last[source.slot] = index
        return last

    def _add_captures(self) -> None:
        used = [
            source
            for node in self._graph.nodes
            if not is_imperative(node)
            for source in node.inputs
        ]
        for slot in dict.fromkeys(s.slot for s in used if isinstance(s, Variable)):
            variable = self._graph.variables[slot]
            if variable.captured:
                placeholder = self._placeholder(dtypes.resource, [])
                handle_data_util.copy_handle_data(variable.handle, placeholder)
                self._handles[slot] = placeholder
                self._out.captured_variables.append(slot)
        for source in used:
            if isinstance(source, Captured) and source.handle not in self._externals:
                dtype = dtypes.as_dtype(source.spec.dtype)
                self._externals[source.handle] = self._placeholder(dtype, source.spec.shape)
                self._out.captured_tensors.append(source.tensor)

    def _placeholder(self, dtype: Any, shape: Any) -> Any:
        placeholder = array_ops.placeholder(dtype, shape)
        self._inputs.append(placeholder)
        return placeholder

    # ------------------------------------------------------------ channels

    def _feed(self, dtype: int, shape: Any, channel: int) -> Any:
        return apply_op(
            "Terra>Feed", step=self._step, dtype=dtype, shape=static_shape(shape), channel=channel
        ).outputs[0]

    def _fetch(self, tensor: Any, after: list) -> int:
        channel = self._channel()
        with ops.control_dependencies(list(after)):
            op = apply_op("Terra>Fetch", step=self._step, input=tensor, channel=channel)
        self._epoch.fetches.append(op)
        self._controls.append(op)
        return channel

    def _await(self, channel: int, after: list) -> Any:
        with ops.control_dependencies(unique(after)):
            op = apply_op("Terra>AwaitCommit", step=self._step, channel=channel)
        self._controls.append(op)
        return op

    # -------------------------------------------------------------- epochs

    def _begin_epoch(self, index: int) -> None:
        done = self._end_epoch(is_last=False)
        closed = self._out.epochs[-1]
        closed.done, closed.resume = self._channel(), self._channel()
        with ops.control_dependencies(done):
            signal = apply_op(
                "Terra>Fetch", step=self._step, input=scalar(), channel=closed.done
            )
        self._controls.append(signal)
        self._epoch = _Epoch(self._await(closed.resume, [signal]))
        self._out.epochs.append(EpochChannels(index, self._channel()))

    def _end_epoch(self, is_last: bool) -> list:
        epoch = self._epoch
        finals = [epoch.values[slot].op for slot in sorted(epoch.changed)]
        inputs = [t.op for _, tensors, _ in epoch.held_back for t in tensors]
        reads = [op for slot in epoch.reads for op in epoch.reads[slot]]
        gate = [] if epoch.gate is None else [epoch.gate]
        before = epoch.fallible + epoch.fetches + finals + inputs + reads + gate
        commit = self._await(self._out.epochs[-1].commit, before)
        done = [commit]
        last_write: dict[int, Any] = {}
        for slot in sorted(epoch.changed):
            with ops.control_dependencies([commit]):
                write = apply_op(
                    "AssignVariableOp", resource=self._handle(slot), value=epoch.values[slot]
                )
            last_write[slot] = write
            done.append(write)
        for slot, _, emit in epoch.held_back:
            after = [commit] + ([last_write[slot]] if slot in last_write else [])
            with ops.control_dependencies(after):
                last_write[slot] = emit()
            done.append(last_write[slot])
        self._controls += done
        return unique(done)

    # --------------------------------------------------------------- nodes

    def _emit(self, index: int, node: Node) -> None:
        record = node.record
        if is_imperative(node):
            outputs = self._emit_imperative(index, node)
        elif can_fold(node, self._out.folded, self._has_static_shape):
            self._out.folded[index] = record.folded
            outputs = None
        elif record.op_type in STATELESS_RANDOM:
            outputs = self._emit_random(index, node)
        elif any(isinstance(source, Variable) for source in node.inputs):
            outputs = self._emit_variable_op(index, node)
        else:
            outputs = self._emit_op(node)
        for output, tensor in enumerate(outputs or ()):
            self._env[index, output] = tensor
            if not is_imperative(node):
                self._settle_output(index, output, tensor)

    def _settle_output(self, index: int, output: int, tensor: Any) -> None:
        shape = tensor.shape
        known = tuple(shape.as_list()) if shape.is_fully_defined() else None
        traced = self._graph.nodes[index].outputs[output].shape
        if known is not None and known != traced:
            raise UndelegableOpError(index, ImperativeReason.UNCERTAIN_SHAPE)
        self._out.output_shapes[index, output] = known
        wanted = (index, output) in self._graph.fetches
        if known is None:  # who asks for the shape gets the value; the tape asks at once
            asked = (index, output) in self._graph.shape_reads
            wanted = wanted or asked or self._graph.nodes[index].record.under_tape
        if wanted:
            channel = self._fetch(tensor, self._epoch.fallible)
            self._out.fetch_channels[index, output] = channel

    def _emit_imperative(self, index: int, node: Node) -> list:
        if self._epoch.fallible:
            channel = self._channel()
            with ops.control_dependencies(list(self._epoch.fallible)):
                op = apply_op("Terra>Fetch", step=self._step, input=scalar(), channel=channel)
            self._controls.append(op)
            self._out.check_channels[index] = channel
        for source in node.inputs:
            if isinstance(source, Output):
                self._fetch_late(source)
        outputs = []
        for output, spec in enumerate(node.outputs):
            if spec.dtype in _NEVER_FED:
                outputs.append(None)
                continue
            channel = self._out.output_feeds[index, output] = self._channel()
            outputs.append(self._feed(spec.dtype, spec.shape, channel))
        return outputs

    def _fetch_late(self, source: Output) -> None:
        """An imperative op needs the value: fetch it where it is not fetched already."""
        key = (source.node, source.output)
        producer = self._graph.nodes[source.node]
        if key in self._out.fetch_channels or source.node in self._out.folded:
            return
        if not is_imperative(producer):
            self._out.fetch_channels[key] = self._fetch(self._env[key], self._epoch.fallible)

    def _emit_op(self, node: Node) -> list:
        operation = apply_op(node.record.op_type, **self._arguments(node))
        self._note_fallible(node, operation)
        return list(operation.outputs)

    def _note_fallible(self, node: Node, operation: Any) -> None:
        input_dtypes = tuple(t.dtype.as_datatype_enum for t in operation.inputs)
        constants = frozenset(
            i for i, s in enumerate(node.inputs) if is_constant(s, self._out.folded)
        )
        is_static = all(t.shape.is_fully_defined() for t in operation.inputs)
        if is_fallible(node.record.op_type, input_dtypes, constants, is_static):
            self._epoch.fallible.append(operation)
            self._out.is_fallible = True

    def _arguments(self, node: Node) -> dict[str, Any]:
        record = node.record
        definition = op_def_registry.get(record.op_type)
        values = [self._value(source) for source in node.inputs]
        arguments: dict[str, Any] = {}
        position = 0
        for arg, count in zip(definition.input_arg, record.counts):
            if count < 0:
                arguments[arg.name] = values[position]
                position += 1
            else:
                arguments[arg.name] = values[position : position + count]
                position += count
        inferred = inferred_attributes(record.op_type)
        for name, value in zip(record.attrs[::2], record.attrs[1::2]):
            if name not in inferred:
                arguments[name] = value
        return arguments

    def _value(self, source: NodeInput) -> Any:
        if isinstance(source, Variable):
            return self._handle(source.slot)
        if is_constant(source, self._out.folded):
            return self._constant(constant_value(source, self._out.folded))
        if isinstance(source, Output):
            return self._env[source.node, source.output]
        if isinstance(source, Captured):
            return self._externals[source.handle]
        return self._feed_of(source)

    def _constant(self, tensor: Any) -> Any:
        key = ("constant", id(tensor))
        if key not in self._externals:
            with ops.init_scope():
                value = tensor.numpy()
            with ops.control_dependencies(None):
                self._externals[key] = ops.convert_to_tensor(value, dtype=tensor.dtype)
        return self._externals[key]

    def _feed_of(self, source: Feed) -> Any:
        key = ("feed", source.group)
        if key not in self._externals:
            channel = self._out.feed_channels[source.group] = self._channel()
            self._externals[key] = self._feed(source.spec.dtype, source.spec.shape, channel)
        return self._externals[key]

    def _has_static_shape(self, source: NodeInput) -> bool:
        if isinstance(source, Variable):
            variable = self._graph.variables[source.slot]
            spec = handle_shape_and_type(variable.handle)
            known = spec is not None and spec[1] is not None and -1 not in spec[1]
            return variable.captured and known
        if isinstance(source, Output) and source.node not in self._out.folded:
            tensor = self._env[source.node, source.output]
            return tensor is not None and tensor.shape.is_fully_defined()
        return True

    # -------------------------------------------------------------- random

    def _emit_random(self, index: int, node: Node) -> list:
        channel = self._out.seed_channels[index] = self._channel()
        state = self._feed(dtypes.uint64.as_datatype_enum, (3,), channel)
        arguments = self._arguments(node)
        for name in ("seed", "seed2"):
            arguments.pop(name)
        if node.record.op_type == "RandomUniformInt":
            arguments.pop("dtype", None)
        else:
            arguments["dtype"] = node.outputs[0].dtype
        operation = apply_op(
            STATELESS_RANDOM[node.record.op_type],
            key=state[:1],
            counter=state[1:],
            alg=1,
            **arguments,
        )
        sources = [s for s in node.inputs if not is_constant(s, self._out.folded)]
        if sources:  # a shape or range that may be wrong
            self._epoch.fallible.append(operation)
            self._out.is_fallible = True
        return list(operation.outputs)

    # ----------------------------------------------------------- variables

    def _handle(self, slot: int) -> Any:
        if slot not in self._handles:
            channel = self._out.variable_channels[slot] = self._channel()
            handle = self._feed(dtypes.resource.as_datatype_enum, (), channel)
            handle_data_util.copy_handle_data(self._graph.variables[slot].handle, handle)
            self._handles[slot] = handle
        return self._handles[slot]

    def _read(self, slot: int) -> Any:
        epoch = self._epoch
        if slot not in epoch.values:
            spec = handle_shape_and_type(self._graph.variables[slot].handle)
            with ops.control_dependencies([] if epoch.gate is None else [epoch.gate]):
                op = apply_op("ReadVariableOp", resource=self._handle(slot), dtype=spec[0])
            epoch.reads.setdefault(slot, []).append(op)
            op.outputs[0].set_shape(static_shape(spec[1]))
            epoch.values[slot] = op.outputs[0]
        return epoch.values[slot]

    def _emit_variable_op(self, index: int, node: Node) -> list:
        op_type = node.record.op_type
        slot = node.inputs[0].slot
        if handle_shape_and_type(self._graph.variables[slot].handle) is None:
            raise UndelegableOpError(index, ImperativeReason.RESOURCE_OP)
        if writes_variable(node):
            self._check_write(index, node, slot)
            self._out.written_slots.add(slot)
        if op_type == "ReadVariableOp":
            # A read of its own, so that the tape's and the fetch's identity is this node's.
            return [apply_op("Identity", input=self._read(slot)).outputs[0]]
        if op_type in DENSE_WRITES:
            self._write_dense(index, node, slot)
            return []
        if op_type in IN_PLACE_WRITES:
            self._write_in_place(node, slot)
            return []
        if op_type in ("ResourceGather", "ResourceGatherNd"):
            return self._gather(node, slot)
        return self._emit_op(node)

    def _check_write(self, index: int, node: Node, slot: int) -> None:
        """A write that might not fit would fail after the commit: it is no op for the graph."""
        spec = handle_shape_and_type(self._graph.variables[slot].handle)
        variable = None if spec is None else spec[1]
        values = [self._value(source) for source in node.inputs[1:]]
        is_static = all(value.shape.is_fully_defined() for value in values)
        if node.record.op_type in DENSE_WRITES:
            is_assign = node.record.op_type == "AssignVariableOp"
            if is_assign and variable is None and not node.record.attribute("validate_shape"):
                return  # a variable of any shape takes any value
            is_static = is_static and tuple(values[0].shape.as_list()) == variable
        if node.record.op_type == "ResourceStridedSliceAssign":
            bounds = node.inputs[1:4]
            is_static = is_static and all(is_constant(s, self._out.folded) for s in bounds)
        if node.record.op_type == "ResourceScatterDiv":
            is_static = is_static and values[-1].dtype.is_floating
        if not is_static or variable is None or -1 in variable:
            raise UndelegableOpError(index, ImperativeReason.DYNAMIC_WRITE)

    def _write_dense(self, index: int, node: Node, slot: int) -> None:
        epoch, op_type = self._epoch, node.record.op_type
        value = self._value(node.inputs[1])
        if op_type == "AssignVariableOp":
            epoch.values[slot] = apply_op("Identity", input=value).outputs[0]
            epoch.changed.add(slot)
            return
        if slot not in epoch.changed and self._last_use[slot] == index:
            # Nobody looks at the new value: keep the delta, change the variable in place.
            def apply_delta() -> Any:
                return apply_op(op_type, resource=self._handle(slot), value=value)

            epoch.held_back.append((slot, [value], apply_delta))
            return
        arithmetic = "AddV2" if op_type == "AssignAddVariableOp" else "Sub"
        epoch.values[slot] = apply_op(arithmetic, x=self._read(slot), y=value).outputs[0]
        epoch.changed.add(slot)

    def _write_in_place(self, node: Node, slot: int) -> None:
        arguments = self._arguments(node)
        if node.record.op_type in INDEXED_WRITES:
            arguments["indices"] = self._check_indices(node, slot, arguments["indices"])
        tensors = [v for v in arguments.values() if isinstance(v, tf.Tensor) and not is_handle(v)]

        def write() -> Any:
            return apply_op(node.record.op_type, **arguments)

        self._epoch.held_back.append((slot, tensors, write))

    def _check_indices(self, node: Node, slot: int, indices: Any) -> Any:
        spec = handle_shape_and_type(self._graph.variables[slot].handle)
        limits = [spec[1][0]]
        if "Nd" in node.record.op_type:
            limits = list(spec[1][: indices.shape.as_list()[-1]])
        operation = apply_op("Terra>CheckIndices", indices=indices, limits=limits)
        self._epoch.fallible.append(operation)
        self._out.is_fallible = True
        return operation.outputs[0]

    def _gather(self, node: Node, slot: int) -> list:
        epoch, arguments = self._epoch, self._arguments(node)
        if slot in epoch.values:
            indices = arguments["indices"]
            if node.record.op_type == "ResourceGatherNd":
                operation = apply_op("GatherNd", params=epoch.values[slot], indices=indices)
            else:
                batch_dims = int(arguments.get("batch_dims") or 0)
                axis = ops.convert_to_tensor(batch_dims, dtype=dtypes.int32)
                operation = apply_op(
                    "GatherV2",
                    params=epoch.values[slot],
                    indices=indices,
                    axis=axis,
                    batch_dims=batch_dims,
                )
        else:
            with ops.control_dependencies([] if epoch.gate is None else [epoch.gate]):
                operation = apply_op(node.record.op_type, **arguments)
            epoch.reads.setdefault(slot, []).append(operation)
        epoch.fallible.append(operation)
        self._out.is_fallible = True
        return list(operation.outputs)
