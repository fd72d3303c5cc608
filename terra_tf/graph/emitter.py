"""Turns single nodes into TensorFlow ops, at whatever place of the function the generator is.

Knows values, fetches, imperative and random ops; variables are `variable_emitter`'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from terra_tf._tf_internals import (
    dtypes,
    handle_data_util,
    handle_shape_and_type,
    ops,
)
from terra_tf.errors import ImperativeReason, UndelegableOpError
from terra_tf.graph.epochs import kept_over_epochs
from terra_tf.graph.fallibility import Fallibility
from terra_tf.graph.folding import can_fold, constant_value, is_constant
from terra_tf.graph.foreknowledge import Foreknowledge
from terra_tf.graph.function_calls import FunctionCalls
from terra_tf.graph.generated_graph import GeneratedGraph, OpRange
from terra_tf.graph.kernel_shapes import note_kernel_shape
from terra_tf.graph.lean_graph import apply_op, serialized_constant
from terra_tf.graph.loops import CannotRollError, Carried, TripFeed, Varying
from terra_tf.graph.op_maker import OpMaker, arguments_of
from terra_tf.graph.random_ops import draw
from terra_tf.graph.scope import EpochState, Scope
from terra_tf.graph.shape_rules import shape_rule
from terra_tf.graph.symbols import (
    common_shape,
    constant,
    have_equal_bytes,
    identity,
    scalar,
    static_shape,
    unique,
)
from terra_tf.graph.tries import Tries
from terra_tf.graph.trivial_ops import emit_trivially
from terra_tf.trace.function_facts import is_function
from terra_tf.trace.joins import Join, Rule
from terra_tf.trace.op_classes import STATELESS_RANDOM
from terra_tf.trace.trace_graph import (
    Captured,
    Feed,
    Node,
    Output,
    TraceGraph,
    Variable,
    outputs_of,
)

_NEVER_FED = frozenset({dtypes.resource.as_datatype_enum, dtypes.variant.as_datatype_enum})


class Emitter:
    """Builds ops in the current scope.

    Attributes:
      scope: Where ops go; the generator changes it.
      main: The scope of the function's main line.
      fallibility: Which ops can fail.
    """

    def __init__(
        self,
        graph: TraceGraph,
        out: GeneratedGraph,
        function_graph: Any,
        epoch_starts: tuple[int, ...],
        foreknowledge: Foreknowledge,
        keeps_bits: bool,
        looks_at_indices: bool,
        hold_handle: Callable[[Any], Any] | None,
    ) -> None:
        self.epoch_starts = epoch_starts
        self._foreknowledge = foreknowledge
        self._ops = OpMaker(keeps_bits)
        self._hold_handle = hold_handle
        self.fallibility = Fallibility(graph, out, looks_at_indices)
        self._functions = FunctionCalls(self)
        self._tries = Tries(graph, out.cases)
        self.graph = graph
        self.out = out
        self.main = self.scope = Scope(function_graph, None, EpochState(None))
        self.inputs: list = []  # of the function
        self._used_table = False  # whether an input differs by trip
        self._captured: dict[int, Any] = {}
        self._serialized: dict[int, bytes] = {}  # constants of the traces, by id
        self._kept = graph.fetches | kept_over_epochs(graph, out.cases, epoch_starts)
        self._taken = _taken_by(graph.nodes)
        self._needed_late = _taken_by(node for node in graph.nodes if node.is_imperative)
        self.web_of: dict[Output, list[int]] = {}
        for number, web in enumerate(out.joins.webs):
            for output in web:
                self.web_of.setdefault(output, []).append(number)
        alternatives = (o for join in out.joins.of_input.values() for o in join.alternatives)
        # What takes part in a join has to be known by its handle, so it is not folded.
        self._joined_nodes = {output.node for output in (*self.web_of, *alternatives)}

    # ------------------------------------------------------ function inputs

    def add_inputs(self) -> None:
        """Adds the step's id, the captured variables and tensors."""
        self.main.step = self._placeholder(dtypes.int64, static_shape(()))
        used = [
            source for node in self.graph.nodes if not node.is_imperative for source in node.inputs
        ]
        for slot in dict.fromkeys(s.slot for s in used if isinstance(s, Variable)):
            variable = self.graph.variables[slot]
            if variable.captured:
                placeholder = self._placeholder(dtypes.resource, static_shape(()))
                handle_data_util.set_handle_data(placeholder, variable.type._handle_data)
                self.main.handles[slot] = placeholder
                self.out.captured_variables.append(slot)
                if self._hold_handle is not None:
                    self.out.held_handles[slot] = self._hold_handle(variable.handle)
        for source in used:
            if isinstance(source, Captured) and source.handle not in self._captured:
                dtype, shape = dtypes.as_dtype(source.spec.dtype), static_shape(source.spec.shape)
                self._captured[source.handle] = self._placeholder(dtype, shape)
                self.out.captured_tensors.append(source)

    def _placeholder(self, dtype: Any, shape: Any) -> Any:
        placeholder = self.main.graph.placeholder(dtype, shape)
        self.inputs.append(placeholder)
        return placeholder

    def handle(self, slot: int) -> Any:
        """Returns the symbolic handle of a variable."""
        known = self.scope.find("handles", slot)
        if known is None:
            keys = [(slot, place) for place in self.scope.places]
            channel = self._channels(self.out.variable_channels, keys)
            known = self.feed(dtypes.resource.as_datatype_enum, (), channel)
            handle_data_util.set_handle_data(known, self.graph.variables[slot].type._handle_data)
            self.scope.handles[slot] = known
        elif known.graph is not self.scope.graph and slot in self.out.held_handles:
            number = self.out.held_handles[slot].number
            known = apply_op("Terra>Handle", number=number).outputs[0]
            handle_data_util.set_handle_data(known, self.graph.variables[slot].type._handle_data)
            self.scope.handles[slot] = known
        return known

    def read_held(self, slot: int, dtype: int) -> Any:
        """Adds an op that reads a variable without its handle, in a branch; or returns None.

        What a branch takes from outside passes a Switch, also where another one is taken.
        """
        if self.scope is self.main or slot not in self.out.held_handles:
            return None
        number = self.out.held_handles[slot].number
        return apply_op("Terra>ReadVariable", dtype=dtype, number=number)

    # ------------------------------------------------------------ channels

    @property
    def step(self) -> Any:
        """What communication ops take for their step here."""
        return self.scope.nearest("step")

    def images(self, index: int) -> list[int]:
        """Returns the nodes that one of the current scope stands for: in a loop, of each trip."""
        return [self.out.shifted(index, shift) for shift in self.scope.shifts]

    def _channels(self, table: dict[Any, int], keys: list) -> int:
        """Notes a channel for each key, one after the other; returns the first."""
        first = self.out.new_channels(len(keys))
        table.update((key, first + number) for number, key in enumerate(keys))
        return first

    def feed(self, dtype: int, shape: Any, channel: int) -> Any:
        """Adds a Feed in the current scope."""
        return apply_op(
            "Terra>Feed", step=self.step, dtype=dtype, shape=static_shape(shape), channel=channel
        ).outputs[0]

    def fetch(self, tensor: Any, channel: int) -> None:
        """Adds a Fetch after everything before it that can fail."""
        with ops.control_dependencies(list(self.scope.epoch.fallible)):
            op = apply_op("Terra>Fetch", step=self.step, input=tensor, channel=channel)
        self.scope.epoch.fetches.append(op)
        self.scope.controls.append(op)

    def await_commit(self, channel: int, after: list) -> Any:
        """Adds an AwaitCommit; returns the op."""
        with ops.control_dependencies(unique(after)):
            op = apply_op("Terra>AwaitCommit", step=self.step, channel=channel)
        self.scope.controls.append(op)
        return op

    # --------------------------------------------------------------- values

    def node(self, index: int) -> Node:
        """Returns a node; in the body of a loop, with the inputs that the body sees."""
        node = self.graph.nodes[index]
        if self.scope.nearest("trip") is None:
            return node
        seen = [self.scope.find("inputs", (index, i)) for i in range(len(node.inputs))]
        inputs = tuple(known if new is None else new for known, new in zip(node.inputs, seen))
        return dataclasses.replace(node, inputs=inputs)

    def value(self, index: int, position: int) -> Any:
        """Returns the symbolic tensor of an input of a delegated node."""
        join = self.out.joins.of_input.get((index, position))
        if join is None:
            return self._plain_value(index, position)
        known = self.scope.find("joins", (index, position))
        if known is None:
            known = self.scope.joins[index, position] = self._join(join)
        return known

    def _plain_value(self, index: int, position: int) -> Any:
        source = self.node(index).inputs[position]
        if isinstance(source, Variable):
            return self.handle(source.slot)
        if isinstance(source, Carried):
            return self.scope.find("loop_inputs", source)
        if isinstance(source, Varying):
            return self._varying(source)
        if is_constant(source, self.out.folded):
            return self._constant_input(source)
        if isinstance(source, Output):
            return self.scope.find("outputs", source)
        if isinstance(source, Captured):
            return self._captured[source.handle]
        assert isinstance(source, (Feed, TripFeed))
        return self._feed_of(source, index, position)

    # ---------------------------------------------------- constants by trip

    def _varying(self, source: Varying) -> Any:
        self._used_table = True
        known = self.scope.find("loop_inputs", source)
        if known is None:
            scope: Any = self.scope
            while scope.trip is None or scope.place[0] != source.loop:
                scope = scope.parent
            known = self._of_table(source.tensors, scope.trip)
            self.scope.loop_inputs[source] = known
        return known

    def _constant_input(self, source: Any) -> Any:
        """A constant; a folded op's result may be another in each trip."""
        value = constant_value(source, self.out.folded)
        if isinstance(source, Output):
            scope: Scope | None = self.scope
            while scope is not None and source.node not in scope.emitted:
                scope = scope.parent
            shifts = (0,) if scope is None else scope.shifts
            numbers = [self.out.shifted(source.node, shift) for shift in shifts]
            values = [self.graph.nodes[n].record.folded[source.output] for n in numbers]
            if scope is not None and not have_equal_bytes(values):
                return self._of_table(tuple(values), scope.nearest("flat_trip"))
        return self._constant(value)

    def _of_table(self, tensors: tuple[Any, ...], number: Any) -> Any:
        with ops.init_scope():
            table = np.stack([tensor.numpy() for tensor in tensors])
        params = constant(table, tensors[0].dtype)
        self._used_table = True
        return apply_op("GatherV2", params=params, indices=number, axis=scalar()).outputs[0]

    def _join(self, join: Join) -> Any:
        if join.rule is Rule.SAME:
            return self.scope.find("joins", join.same)
        if join.spec.dtype in _NEVER_FED:
            sources = join.alternatives
            if join.rule is Rule.LATEST:
                sources = self.out.joins.webs[join.web]
            if any(self.graph.nodes[source.node].is_imperative for source in sources):
                raise UndelegableOpError(join.node, ImperativeReason.RESOURCE_OP)
        if join.rule is Rule.LATEST:
            candidates = [self.scope.find("webs", join.web)]
        else:
            candidates = [self.scope.find("outputs", source) for source in join.alternatives]
        # Not of the traces' shapes: they may have been equal by chance.
        shapes = [c.shape for c in candidates if c is not None]
        if join.external is not None:
            shapes.append(static_shape(join.external.spec.shape))
        shape = common_shape(shapes)
        if join.needs_message:
            keys = [(image, join.position) for image in self.images(join.node)]
            channel = self._channels(self.out.join_channels, keys)
            dtype = dtypes.as_dtype(join.spec.dtype)
            candidates = [
                self.scope.graph.zero(dtype) if c is None else c for c in candidates
            ]
            tensor = apply_op(
                "Terra>Select", step=self.step, inputs=candidates, channel=channel
            ).outputs[0]
        elif candidates[0].shape.is_fully_defined() and candidates[0].shape == shape:
            return candidates[0]
        else:
            tensor = identity(candidates[0])
        tensor.set_shape(shape)
        return tensor

    def _constant(self, tensor: Any) -> Any:
        value = self._serialized.get(id(tensor))
        if value is None:
            with ops.init_scope():
                value = serialized_constant(tensor.numpy(), tensor.dtype)
            self._serialized[id(tensor)] = value
        constants = self.scope.constants
        if value not in constants:
            with ops.control_dependencies(None):
                constants[value] = self.scope.graph.constant(value, tensor.dtype)
        return constants[value]

    def _feed_of(self, source: Feed | TripFeed, index: int, position: int) -> Any:
        known = self.scope.find("feeds", source)
        if known is None:
            fed = [self.graph.nodes[image].inputs[position] for image in self.images(index)]
            keys = list(zip(fed, self.scope.places))
            channel = self._channels(self.out.feed_channels, keys)
            spec = (source.feed if isinstance(source, TripFeed) else source).spec
            known = self.feed(spec.dtype, spec.shape, channel)
            self.scope.feeds[source] = known
        return known

    # ---------------------------------------------------------------- nodes

    def emit(self, index: int, emit_variable_op: Any) -> None:
        """Adds a node's ops to the current scope."""
        graph = self.scope.graph
        first = graph.num_operations()
        try:
            self._emit(index, emit_variable_op)
        except UndelegableOpError as error:
            if self.scope.nearest("trip") is not None:
                raise
            # This function will not be used. It is built to its end as if Python ran the op, to
            # find the others: one by one, a long loop would take as many builds as it has trips.
            self.out.undelegable[index] = error.reason
            self.graph.force(index, error.reason)
            self._emit(index, emit_variable_op)
        may_have_failed = self.scope.epoch.fallible and not self.graph.nodes[index].is_imperative
        if may_have_failed and self._tries.may_leave_at(self.images(index)):
            self._signal(self.out.exit_channels, index)
        self.out.op_ranges.append(OpRange(graph, first, graph.num_operations(), index))

    def _emit(self, index: int, emit_variable_op: Any) -> None:
        node = self.node(index)
        if node.is_imperative:
            outputs = self._emit_imperative(index, node)
            self._keep(index, outputs)
            self._foreknowledge.note(index, outputs, b"")
            return
        for position in range(len(node.inputs)):
            if (index, position) in self.out.joins.of_input:
                self.value(index, position)  # Python decides it, even if nobody uses it

        def is_static(position: int) -> bool:
            return self._is_static(index, position)

        if index not in self._joined_nodes and can_fold(node, self.out.folded, is_static):
            self.out.folded[index] = node.record.folded
            self.scope.emitted[index] = []
            return
        self._used_table = False
        num_fallible = len(self.scope.epoch.fallible)
        values = [self.value(index, position) for position in range(len(node.inputs))]
        used_table = self._used_table
        if any(value is None for value in values):  # a variant that Python has, and cannot feed
            raise UndelegableOpError(index, ImperativeReason.RESOURCE_OP)
        if node.record.op_type in STATELESS_RANDOM:
            channel = self._channels(self.out.seed_channels, self.images(index))
            state = self.feed(dtypes.uint64.as_datatype_enum, (3,), channel)
            operation = draw(node, arguments_of(node.record, values), state)
            if not all(is_constant(source, self.out.folded) for source in node.inputs):
                self.note_fallible(operation)  # a shape or range that may be wrong
            outputs = list(operation.outputs)
        elif is_function(node.record.op_type):
            outputs = self._functions.emit(index, node, values)
        elif any(isinstance(source, Variable) for source in node.inputs):
            outputs = emit_variable_op(index, node, values)
        else:
            outputs = self.emit_op(index, node, values)
        if len(self.scope.epoch.fallible) > num_fallible:
            self._tries.note_fallible(index, self.images(index))
        self._keep(index, outputs)
        if not all(tensor.shape.is_fully_defined() for tensor in outputs):
            if used_table:
                raise CannotRollError(None, "a shape may depend on a constant of each trip's own")
            self.out.shape_rules[index] = shape_rule(node, outputs)
        self._foreknowledge.note(index, outputs, self.out.shape_rules.get(index, b""))
        for output, tensor in enumerate(outputs):
            self._settle_output(index, output, tensor)

    def _keep(self, index: int, outputs: list) -> None:
        self.scope.emitted[index] = outputs
        for output, tensor in enumerate(outputs):
            key = Output(index, output)
            self.scope.outputs[key] = tensor
            for web in self.web_of.get(key, ()):
                self.scope.webs[web] = tensor

    def _is_static(self, index: int, position: int) -> bool:
        """Says whether an input's shape is fixed by the graph. Feeds nothing."""
        source = self.node(index).inputs[position]
        if isinstance(source, TripFeed):
            return static_shape(source.feed.spec.shape).is_fully_defined()
        if isinstance(source, Feed) and (index, position) not in self.out.joins.of_input:
            return static_shape(source.spec.shape).is_fully_defined()
        if isinstance(source, Variable):
            variable = self.graph.variables[source.slot]
            spec = handle_shape_and_type(variable.type)
            known = spec is not None and spec[1] is not None and -1 not in spec[1]
            return variable.captured and known
        value = self.value(index, position)
        return value is not None and value.shape.is_fully_defined()

    def _settle_output(self, index: int, output: int, tensor: Any) -> None:
        shape = tensor.shape
        known = tuple(shape.as_list()) if shape.is_fully_defined() else None
        node = self.graph.nodes[index]
        traced = node.outputs[output].shape
        if known is not None and known != traced:
            # Of `FusedBatchNormGradV3`, oneDNN's kernel makes reserves of another shape than the
            # shape function says. Where no op takes it, the kernel's word is enough.
            if traced is None or -1 in traced or Output(index, output) in self._taken:
                raise UndelegableOpError(index, ImperativeReason.UNCERTAIN_SHAPE)
            known = traced
        self.out.output_shapes[index, output] = known
        if index in self.out.on_host or tensor.dtype == dtypes.resource:
            return
        images = [(image, output) for image in self.images(index)]
        wanted = any(key in self._kept or key in self._needed_late for key in images)
        if not self._foreknowledge.knows_shape(index, output):
            # Who asks for the shape gets the value; the tape asks at once.
            asked = any(key in self.graph.shape_reads for key in images)
            wanted = wanted or asked or node.record.under_tape
        if wanted:
            self.fetch(tensor, self._channels(self.out.fetch_channels, images))

    def _emit_imperative(self, index: int, node: Node) -> list:
        if not self._begins_epoch(index) and (
            self.scope.epoch.fallible or self.scope.parent is not None
        ):
            self._signal(self.out.check_channels, index)
        outputs: list[Any] = []
        for output, spec in enumerate(node.outputs):
            if spec.dtype in _NEVER_FED:
                outputs.append(None)
                continue
            keys = [(image, output) for image in self.images(index)]
            channel = self._channels(self.out.output_feeds, keys)
            outputs.append(self.feed(spec.dtype, spec.shape, channel))
        return outputs

    def _signal(self, channels: dict[int, int], index: int) -> None:
        """Tells Python that nothing before this place has failed."""
        channel = self._channels(channels, self.images(index))
        with ops.control_dependencies(list(self.scope.epoch.fallible)):
            op = apply_op("Terra>Fetch", step=self.step, input=scalar(), channel=channel)
        self.scope.controls.append(op)

    def _begins_epoch(self, index: int) -> bool:
        """Before such an op everything has ended, and its branch goes on only after it."""
        block = self.out.cases.block_of[index]
        return block.nodes[0] == index and block.level in self.epoch_starts

    def emit_op(self, index: int, node: Node, values: list) -> list:
        """Adds the op that the node is; returns its outputs."""
        trivial = emit_trivially(node, values, self.out.folded)
        if trivial is not None:
            return [trivial]
        operation = self._ops.make(node.record, values)
        note_kernel_shape(node, operation)
        self._note_fallible(index, node, operation, values)
        return list(operation.outputs)

    def note_fallible(self, operation: Any) -> None:
        """Makes fetches and the commit wait for an op that can fail."""
        self.scope.epoch.fallible.append(operation)
        self.out.is_fallible = True

    def _note_fallible(self, index: int, node: Node, operation: Any, values: list) -> None:
        is_in_loop = self.scope.nearest("trip") is not None
        is_plain = operation.type == node.record.op_type
        inputs = values if is_plain else list(operation.inputs)
        if self.fallibility.can_fail(index, node, inputs, is_in_loop):
            self.note_fallible(operation)


def _taken_by(nodes: Iterable[Node]) -> set[Output]:
    inputs = (an_input for node in nodes for an_input in node.inputs)
    return {source for an_input in inputs for source in outputs_of(an_input)}
