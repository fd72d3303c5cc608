"""Writes a TraceGraph and its generated function down as the cursor's flat tables."""

from __future__ import annotations

import collections
import functools
from collections.abc import Hashable
from typing import Any

from terra_tf import _native
from terra_tf._tf_internals import context, dtypes, handle_shape_and_type, op_def_registry
from terra_tf.config import config
from terra_tf.graph.epochs import is_any, writes_variable
from terra_tf.graph.folding import constant_value, is_constant
from terra_tf.graph.generated_graph import GeneratedGraph
from terra_tf.runtime.plan_tables import InputKind, NodeKind, PlanInput
from terra_tf.trace.attributes import result_attributes
from terra_tf.trace.function_facts import facts_of
from terra_tf.trace.location_tree import turns_user_loop
from terra_tf.trace.markers import MARKER
from terra_tf.trace.op_classes import ASK_FOR_SHAPES, IN_PLACE_WRITES
from terra_tf.trace.placing import FUNCTION
from terra_tf.trace.records import TensorSpec
from terra_tf.trace.trace_graph import (
    END,
    START,
    Captured,
    Feed,
    Joined,
    Node,
    NodeInput,
    Output,
    TraceGraph,
    Variable,
    VariableSlot,
)

_ANY_COUNTS = [-2]
_RESOURCE = dtypes.resource.as_datatype_enum


def make_plan(graph: TraceGraph, generated: GeneratedGraph) -> tuple[Any, dict]:
    """Returns the native `Plan`, and the slot of each (feed, place)."""
    maker = _PlanMaker(graph, generated)
    return maker.make(), maker.feeds


def config_proto() -> bytes:
    """Returns the serialized ConfigProto the function runs with.

    Those of Grappler's passes that change the last bits of results are off unless the knob says
    otherwise: arithmetic rewriting, remapping to fused kernels, constant folding (which turns a
    division by a constant into a multiplication by its reciprocal), and memory optimization (which
    takes sums of large tensors apart where a function returns them).
    """
    proto = context.context().config
    if not config.grappler_arithmetic:
        rewrites = proto.graph_options.rewrite_options
        rewrites.arithmetic_optimization = rewrites.OFF
        rewrites.remapping = rewrites.OFF
        rewrites.constant_folding = rewrites.OFF
        rewrites.memory_optimization = rewrites.NO_MEM_OPT
    return proto.SerializeToString()


class _PlanMaker:
    def __init__(self, graph: TraceGraph, generated: GeneratedGraph) -> None:
        self._graph = graph
        self._generated = generated
        native = _native.load().module
        self._has_devices = len(context.context().list_logical_devices()) > 1
        self._plan = native.Plan(
            function_name=generated.name,
            config_proto=config_proto(),
            num_channels=generated.num_channels,
            check_devices=self._has_devices,
        )
        self._num_alike = collections.Counter(map(_place_of, graph.nodes))
        self._constants: dict[int, int] = {}
        self._captured: dict[int, int] = {}
        self.feeds: dict[tuple[Feed, tuple | None], int] = {}
        self._webs_of: dict[Output, list[int]] = {}
        for number, web in enumerate(generated.joins.webs):
            for output in web:
                self._webs_of.setdefault(output, []).append(number)

    def make(self) -> Any:
        for slot in self._generated.captured_variables:
            self._plan.add_launch_input(self._graph.variables[slot].handle)
        for source in self._generated.captured_tensors:
            self._plan.add_launch_input(source.tensor)
        for slot in range(len(self._graph.variables)):
            self._add_variable(slot, self._generated.variable_channels.get((slot, None), -1))
        # (slot, branch) -> the native slot that only this branch feeds
        self._slots: dict[tuple[int, tuple | None], int] = {}
        for (slot, place), channel in self._generated.variable_channels.items():
            if place is not None:
                self._slots[slot, place] = len(self._graph.variables) + len(self._slots)
                self._add_variable(slot, channel)
        for index, node in enumerate(self._graph.nodes):
            self._add_node(index, node)
        self._add_levels()
        self._add_joins()
        first = self._following(START)
        self._plan.finish(
            num_webs=len(self._generated.joins.webs),
            first_nodes=first,
            starts_with_fork=self._is_fork(START, first),
        )
        return self._plan

    def _add_variable(self, slot: int, channel: int) -> None:
        variable = self._graph.variables[slot]
        self._plan.add_variable(
            variable=slot,
            captured=variable.handle if slot in self._generated.captured_variables else None,
            feed_channel=channel,
            accepts=functools.partial(_same_type, self._type_of(variable)),
            written=slot in self._generated.written_slots,
        )

    def _type_of(self, variable: VariableSlot) -> tuple:
        """Returns dtype and shape of a variable; its device, too, if there are several."""
        device = variable.type.device if self._has_devices else None
        return handle_shape_and_type(variable.type), device

    def _add_levels(self) -> None:
        generated, epoch = self._generated, 0
        starts = [epoch.start for epoch in generated.epochs]
        for number, level in enumerate(generated.cases.levels):
            while epoch + 1 < len(starts) and starts[epoch + 1] <= number:
                epoch += 1
            self._plan.add_level(
                channel=generated.case_channels.get(number, -1),
                skip_index=len(level.blocks) if number in generated.skippable else -1,
                epoch=epoch,
            )
        self._add_loops()

    def _add_loops(self) -> None:
        generated = self._generated
        for level, (trip_begin, loop_end) in generated.kept.items():
            if level not in generated.skippable:  # as trips of a loop inside are
                self._plan.keep_in_trip(level=level, trip_begin=trip_begin, loop_end=loop_end)
        for loop, first_channel, shifts, _ in generated.loops:
            channel = first_channel
            for shift in shifts:
                for trip in range(loop.num_trips):
                    self._plan.add_loop_turn(
                        level=loop.begin + trip * loop.period + shift,
                        channel=channel,
                        end=loop.end + shift,
                    )
                    channel += int(first_channel >= 0)

    def _add_joins(self) -> None:
        joins = self._generated.joins.of_input
        for key, join in joins.items():
            self._plan.add_join(
                rule=int(join.rule),
                web=join.web,
                same=-1 if join.same is None else joins[join.same].number,
                alternatives=[tuple(output) for output in join.alternatives],
                allows_external=join.external is not None,
                channel=self._generated.join_channels.get(key, -1),
                dtype=join.spec.dtype,
                shape=_dims(join.spec.shape if join.external is None else join.external.spec.shape),
            )

    def _following(self, node: int) -> list[int]:
        """What has run right after a node, most often first."""
        following = self._graph.successors.get(node, {})
        known = sorted(following.items(), key=lambda item: -item[1])
        return [successor for successor, _ in known if successor != END]

    def _is_fork(self, node: int, following: list[int]) -> bool:
        """Whether Python's place has to be looked at to know what follows."""
        if len(following) != 1 or END in self._graph.successors.get(node, {}):
            return True
        if node == START:
            return False
        here, there = (self._graph.nodes[n].key.location for n in (node, following[0]))
        return here is not None and there is not None and turns_user_loop(here, there)

    def _add_node(self, index: int, node: Node) -> None:
        generated, record = self._generated, node.record
        imperative = node.is_imperative
        folded = generated.folded.get(index, ())
        block, position = generated.cases.block_of[index], generated.cases.position_of[index]
        is_last = position + 1 == len(block.nodes)
        following = self._following(index)
        marker = record.marker
        has_siblings = (
            imperative
            and record.location is not None
            and self._num_alike[_place_of(node)] > 1
        )
        self._plan.add_node(
            kind=_kind(imperative, folded),
            name=_name_of(node),
            counts=_ANY_COUNTS if is_any(node) else list(record.counts),
            inputs=[self._input(index, position, node) for position in range(len(node.inputs))],
            outputs=[self._output(index, node, i) for i in range(len(node.outputs))],
            is_fast=record.is_fast,
            attrs=record.attrs,
            canonical=record.canonical,
            tape_attrs=record.attrs + self._inferred(node) + (MARKER, marker),
            folded=list(folded),
            seed_channel=generated.seed_channels.get(index, -1),
            check_channel=generated.check_channels.get(index, -1),
            exit_channel=generated.exit_channels.get(index, -1),
            device=record.device,
            marker=marker,
            level=block.level,
            branch=generated.branch_of(index),
            is_head=position == 0,
            next=-1 if is_last else block.nodes[position + 1],
            successors=following,
            is_fork=self._is_fork(index, following),
            shape_rule=generated.shape_rules.get(index, b""),
            on_host=index in generated.on_host,
            asks_for_shapes=record.op_type in ASK_FOR_SHAPES,
            of_shapes=index in generated.of_shapes,
            may_raise=node.may_raise,
            has_siblings=has_siblings,
            input_specs=[self._input_spec(s) for s in node.inputs] if has_siblings else [],
            result_attributes=_result_attributes(node) if has_siblings else None,
        )

    def _output(self, index: int, node: Node, output: int) -> tuple:
        generated, spec = self._generated, node.outputs[output]
        is_handle = spec.dtype == _RESOURCE and not node.is_imperative
        shape = spec.shape if node.is_imperative else generated.output_shapes.get((index, output))
        return (
            spec.dtype,
            None if shape is None else list(shape),
            generated.fetch_channels.get((index, output), -1),
            generated.output_feeds.get((index, output), -1),
            self._webs_of.get(Output(index, output), []),
            node.record.placements[output] if node.record.placements else ("", ""),
            facts_of(node.record.op_type).returned_handles[output] if is_handle else -1,
        )

    def _input(self, index: int, position: int, node: Node) -> PlanInput:
        if node.is_imperative:
            source = node.inputs[position]
            if isinstance(source, Variable) and not is_any(node):
                return PlanInput(InputKind.RESOURCE, source.slot)
            return PlanInput(InputKind.ANY)
        join = self._generated.joins.of_input.get((index, position))
        if join is not None:
            return PlanInput(InputKind.JOIN, join.number)
        source = node.inputs[position]
        if isinstance(source, Variable):
            slots = (self._slots.get((source.slot, place)) for place in self._places(index))
            slot = next((s for s in slots if s is not None), source.slot)
            return PlanInput(InputKind.VARIABLE, slot, _how_it_writes(node))
        if is_constant(source, self._generated.folded):
            value = constant_value(source, self._generated.folded)
            return PlanInput(InputKind.CONSTANT, self._constant(value))
        if isinstance(source, Output):
            return PlanInput(InputKind.OUTPUT, source.node, source.output)
        if isinstance(source, Captured):
            return PlanInput(InputKind.CAPTURED, self._capture(source))
        assert isinstance(source, Feed)
        return PlanInput(InputKind.FEED, self._feed(source, index))

    def _places(self, index: int) -> list[tuple | None]:
        """Where a node is, innermost first."""
        return self._generated.places_of(index)[::-1]

    def _constant(self, tensor: Any) -> int:
        slot = self._constants.get(id(tensor))
        if slot is None:
            slot = self._constants[id(tensor)] = len(self._constants)
            self._plan.add_constant(tensor)
        return slot

    def _capture(self, source: Captured) -> int:
        slot = self._captured.get(source.handle)
        if slot is None:
            slot = self._captured[source.handle] = len(self._captured)
            self._plan.add_captured(source.tensor)
        return slot

    def _feed(self, source: Feed, index: int) -> int:
        channels = self._generated.feed_channels
        keys = [(source, place) for place in self._places(index)]
        key = next((key for key in keys if key in channels), (source, None))
        slot = self.feeds.get(key)
        if slot is None:
            slot = self.feeds[key] = len(self.feeds)
            # What only folded nodes use has no channel: nobody waits for it.
            channel = channels.get(key, -1)
            allowed = self._generated.feed_ranges.get(source)
            self._plan.add_feed(source.spec.dtype, _dims(source.spec.shape), channel, allowed)
        return slot

    def _input_spec(self, source: NodeInput) -> TensorSpec:
        """Returns what an input has been so far."""
        if isinstance(source, Variable):
            return TensorSpec(_RESOURCE, None)
        if isinstance(source, Output):
            return self._graph.nodes[source.node].outputs[source.output]
        if isinstance(source, Joined):
            known = [self._input_spec(output) for output in source.sources]
            known += [] if source.external is None else [source.external.spec]
            return functools.reduce(TensorSpec.joined, known)
        return source.spec

    def _inferred(self, node: Node) -> tuple:
        """The inferred attributes as TensorFlow gives them to the tape."""
        definition = op_def_registry.get(node.record.op_type)
        if definition is None or not node.record.is_fast:
            return ()
        result: list[Any] = []
        position = 0
        for arg, count in zip(definition.input_arg, node.record.counts):
            n = max(count, 1) if count < 0 else count
            types = [self._input_spec(s).dtype for s in node.inputs[position : position + n]]
            position += n
            if arg.number_attr:
                result += [arg.number_attr, n]
            if arg.type_list_attr:
                result += [arg.type_list_attr, types]
            elif arg.type_attr and types:
                result += [arg.type_attr, types[0]]
        return tuple(result)


def _kind(is_imperative: bool, folded: tuple) -> NodeKind:
    if is_imperative:
        return NodeKind.IMPERATIVE
    return NodeKind.FOLDED if folded else NodeKind.DELEGATED


def _place_of(node: Node) -> Hashable:
    return node.key.op_type, node.key.location


def _name_of(node: Node) -> str:
    """Returns the op's type; of a function only if it has to be that one."""
    may_be_any = node.record.imperative is not None or is_any(node)
    return FUNCTION if may_be_any and node.key.op_type == FUNCTION else node.record.op_type


def _result_attributes(node: Node) -> Hashable:
    """Returns those that tell a node from its siblings; None: all that it has, or it has none."""
    may_vary = node.key.attributes is None and node.key.op_type != FUNCTION
    return result_attributes(node.record.op_type, node.record.attrs) if may_vary else None


def _how_it_writes(node: Node) -> int:
    """Returns 0 for a read, 1 for a dense write, 2 for one in place."""
    if node.record.op_type in IN_PLACE_WRITES:
        return 2
    return int(writes_variable(node))


def _dims(shape: tuple | None) -> list[int] | None:
    return None if shape is None else list(shape)


def _same_type(expected: tuple, handle: Any) -> bool:
    shape_and_type, device = expected
    if shape_and_type is None or handle_shape_and_type(handle) != shape_and_type:
        return False
    return device is None or handle.device == device
