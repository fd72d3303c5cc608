"""Builds a rolled loop: a `While` whose body is one trip, lowered to Enter, Merge and Exit.

What a trip hands on to the next one is loop variables: inputs that the trip before made, webs,
variables that it writes. Python says by `Terra>LoopCond` whether there is another trip, unless
every path makes them all. Each communication op of the body has a channel for each trip, one after
the other; `Terra>Trip` gives it the place of its trip.

A trip's number goes on only after what the trip has to do for effect: fetches come in order, after
the ops before them that can fail, though these were in an earlier trip.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from terra_tf._tf_internals import dtypes, ops
from terra_tf.errors import UndelegableOpError
from terra_tf.graph.emitter import Emitter
from terra_tf.graph.epochs import slots_of
from terra_tf.graph.foreknowledge import Foreknowledge
from terra_tf.graph.generated_graph import EmittedLoop, trip_place
from terra_tf.graph.lean_graph import LeanGraph, apply_op
from terra_tf.graph.loops import CannotRollError, Carried, RolledLoop, Varying
from terra_tf.graph.scope import Scope
from terra_tf.graph.switch_case import add_while, dummy
from terra_tf.graph.symbols import common_shape, identity, scalar, static_shape, unique
from terra_tf.graph.variable_emitter import VariableEmitter
from terra_tf.trace.op_classes import DENSE_WRITES
from terra_tf.trace.trace_graph import Output, TraceGraph

_serial = itertools.count()


class _LoopVariable(NamedTuple):
    """What one trip hands to the next.

    Attributes:
      table: Where the body's scope keeps it: "loop_inputs", "webs", "variables" or "exits".
      key: Its key there.
      initial: The tensor that the first trip takes.
      shape: What it is in the body; None where it is the initial one's.
      result: The key of what a trip hands on, where that is another.
      after: Its key behind the loop, where that is another.
    """

    table: str
    key: Any
    initial: Any
    shape: Any = None
    result: Any = None
    after: Any = None


class LoopEmitter:
    """Builds loops.

    Args:
      emitter: Where ops go.
      variables: Builds ops on variables.
      foreknowledge: Is told of the nodes of every trip.
      emit_levels: Builds levels [first, end) in the emitter's scope.
    """

    def __init__(
        self,
        emitter: Emitter,
        variables: VariableEmitter,
        foreknowledge: Foreknowledge,
        emit_levels: Callable[[int, int], None],
    ) -> None:
        self._emitter, self._variables = emitter, variables
        self._graph: TraceGraph = emitter.graph
        self._out = emitter.out
        self._foreknowledge = foreknowledge
        self._emit_levels = emit_levels

    def emit(self, loop: RolledLoop) -> None:
        """Adds a loop to the current scope.

        Raises:
          CannotRollError: It has to stay unrolled.
        """
        try:
            self._emit(loop)
        except UndelegableOpError as error:
            raise CannotRollError(loop, str(error.reason)) from None
        except CannotRollError as error:
            raise error.of(loop) from None

    def _emit(self, loop: RolledLoop) -> None:
        outer = self._emitter.scope
        channel = self._register(loop, outer)
        self._prepare_variables(loop, outer)
        fed_before = set(self._out.feed_channels)
        initial = self._loop_variables(loop, outer)
        fed_to_start = set(self._out.feed_channels) - fed_before
        body = self._make_body(loop, outer, initial)
        fed_in_trips = set(self._out.feed_channels) - fed_before - fed_to_start
        if {feed for feed, _ in fed_to_start} & {feed for feed, _ in fed_in_trips}:
            # Python feeds it once, in the first trip, and the loop would wait for it to begin.
            raise CannotRollError(loop, "it starts with a tensor that its first trip is fed")
        condition = self._make_condition(loop, outer, channel)
        shapes = [static_shape(None) if v.shape is not None else v.initial.shape for v in initial]
        operation = add_while(
            *(condition, body.graph, [v.initial for v in initial], shapes),
            self._before(outer, body),
        )
        self._absorb(loop, outer, body, operation, initial)
        self._finish_trips(loop, outer, body)

    # -------------------------------------------------------------- places

    def _register(self, loop: RolledLoop, outer: Scope) -> int:
        """Notes where the trips are; returns the channel of the loop's condition."""
        out, channel = self._out, -1
        depth = len(out.trip_places.get(loop.begin, ()))
        if not loop.is_certain:
            channel = out.new_channels(loop.num_trips * len(outer.shifts))
        out.loops.append(EmittedLoop(loop, channel, outer.shifts, depth))
        for shift in outer.shifts:
            end = loop.end + shift
            for level in range(loop.begin + shift, end):
                if level not in out.aligned:  # or a loop around has done it, in the same order
                    out.aligned[level] = loop.blocks[level]
                begin = level - (level - loop.begin - shift) % loop.period
                out.trip_places.setdefault(level, []).append(trip_place(begin, depth))
                is_kept = loop.representative + (level - begin) not in loop.skippable
                # What the loop starts with may hang on its first trip, if all paths make it.
                may_begin = begin > loop.begin + shift or not loop.begins_for_certain
                # Who cannot leave this loop early may leave one around it.
                if is_kept and may_begin and not loop.is_certain:
                    out.kept[level] = (begin, end)
        return channel

    # ----------------------------------------------------- loop variables

    def _prepare_variables(self, loop: RolledLoop, outer: Scope) -> None:
        """Reads in the line around the loop what its trips read and write."""
        main = self._emitter.main
        for number in loop.variable_nodes:
            op_type = self._graph.nodes[number].record.op_type
            is_write = op_type in DENSE_WRITES
            is_certain = outer is main and self._runs_for_certain(loop, number)
            for slot in sorted(slots_of(self._graph.nodes[number])):
                if is_write and slot not in main.handles and not is_certain:
                    raise CannotRollError(loop, "it writes a variable not known before it")
                if is_write or (is_certain and op_type == "ReadVariableOp"):
                    self._variables.read(slot)

    def _runs_for_certain(self, loop: RolledLoop, number: int) -> bool:
        """Whether the first trip is always made, and passes what a node stands for."""
        level = self._out.cases.level_of(number)
        is_in_each_trip = level not in loop.skippable and len(loop.blocks[level]) == 1
        return loop.begins_for_certain and is_in_each_trip

    def _loop_variables(self, loop: RolledLoop, outer: Scope) -> list[_LoopVariable]:
        variables: dict[tuple, _LoopVariable] = {}

        def add(table: str, key: Any, tensor: Any, shape: Any = None) -> None:
            variables.setdefault((table, key), _LoopVariable(table, key, tensor, shape))

        for source in loop.inputs.values():
            if isinstance(source, Carried):
                add("loop_inputs", source, self._emitter.value(*source.first))
        for carried in loop.carried_webs:
            variables["webs", carried.before] = _LoopVariable(
                *("webs", carried.before, self._emitter.value(*carried.first), None),
                *(carried.result, carried.last),
            )
        for web in loop.webs:
            known = outer.find("webs", web)
            if known is None:
                specs = [self._spec(output) for output in self._out.joins.webs[web]]
                shape = common_shape([static_shape(spec.shape) for spec in specs])
                add("webs", web, dummy(dtypes.as_dtype(specs[0].dtype)), shape)
            else:
                add("webs", web, known)
        for number in loop.variable_nodes:
            if self._graph.nodes[number].record.op_type in DENSE_WRITES:
                for slot in slots_of(self._graph.nodes[number]):
                    add("variables", slot, outer.epoch.values[slot])
        for output in loop.exits:
            spec = self._spec(output)
            add("exits", output, dummy(dtypes.as_dtype(spec.dtype)), static_shape(None))
        if any(variable.initial is None for variable in variables.values()):
            raise CannotRollError(loop, "what it starts with is not in the graph")
        return list(variables.values())

    def _spec(self, output: Output) -> Any:
        return self._graph.nodes[output.node].outputs[output.output]

    # ---------------------------------------------------------------- body

    def _make_body(self, loop: RolledLoop, outer: Scope, initial: list[_LoopVariable]) -> Scope:
        emitter = self._emitter
        graph = LeanGraph(f"terra_body_{next(_serial)}")
        graph.outer_graph = outer.graph
        shifts = tuple(o + shift for o in outer.shifts for shift in loop.shifts())
        place = self._out.trip_places[loop.representative][-1]
        body = outer.body(graph, place, shifts)
        body.epoch.values = dict(outer.epoch.values)
        for key, source in loop.inputs.items():
            if isinstance(source, Varying) and outer.find("inputs", key) is not None:
                raise CannotRollError(loop, "a constant varies with the trips of two loops")
            body.inputs[key] = source
        emitter.scope = body
        try:
            with graph.as_default():
                body.trip = graph.placeholder(dtypes.int32, static_shape(()))
                placeholders = [_placeholder(variable) for variable in initial]
                body.step = self._place(loop, outer, body.trip)
                body.flat_trip = self._flat_trip(loop, outer, body.trip)
                for variable, placeholder in zip(initial, placeholders):
                    if variable.table == "variables":
                        body.epoch.values[variable.key] = placeholder
                    elif variable.table != "exits":
                        getattr(body, variable.table)[variable.key] = placeholder
                self._emit_levels(loop.representative, loop.representative + loop.period)
                results = [self._result(loop, body, variable) for variable in initial]
                self._check(loop, body, initial, placeholders, results)
                done = unique(body.epoch.fallible + body.epoch.fetches + body.controls)
                with ops.control_dependencies(done):
                    one = scalar(1)
                    next_trip = apply_op("AddV2", x=body.trip, y=one).outputs[0]
                graph.inputs = [body.trip, *placeholders]
                graph.outputs = [next_trip, *results]
        finally:
            emitter.scope = outer
        return body

    def _place(self, loop: RolledLoop, outer: Scope, trip: Any) -> Any:
        step = outer.nearest("step")
        return apply_op("Terra>Trip", step=step, trip=trip, num_trips=loop.num_trips).outputs[0]

    def _flat_trip(self, loop: RolledLoop, outer: Scope, trip: Any) -> Any:
        around = outer.nearest("flat_trip")
        if around is None:
            return trip
        count = scalar(loop.num_trips)
        before = apply_op("Mul", x=around, y=count).outputs[0]
        return apply_op("AddV2", x=before, y=trip).outputs[0]

    def _result(self, loop: RolledLoop, body: Scope, variable: _LoopVariable) -> Any:
        """What a trip hands on for a loop variable."""
        if variable.table == "variables":
            result = body.epoch.values[variable.key]
        elif variable.table == "webs":
            result = body.webs[variable.key if variable.result is None else variable.result]
        else:
            is_carried = isinstance(variable.key, Carried)
            output = variable.key.source if is_carried else variable.key
            if output.node in self._out.folded:
                raise CannotRollError(loop, "what it hands on is a constant")
            result = body.outputs.get(output)
            if result is None:
                raise CannotRollError(loop, "a trip may go without what the next one takes")
        return identity(result)

    def _check(
        self,
        loop: RolledLoop,
        body: Scope,
        initial: list[_LoopVariable],
        placeholders: list,
        results: list,
    ) -> None:
        if body.epoch.held_back:
            raise CannotRollError(loop, "it writes a variable in place")
        for variable, placeholder, result in zip(initial, placeholders, results):
            if variable.initial.dtype != result.dtype:
                raise CannotRollError(loop, "a loop variable changes its type")
            known, shape = placeholder.shape, result.shape
            if not _includes(known, shape):
                raise CannotRollError(loop, "a loop variable changes its shape")

    def _make_condition(self, loop: RolledLoop, outer: Scope, channel: int) -> Any:
        graph = LeanGraph(f"terra_condition_{next(_serial)}")
        graph.outer_graph = outer.graph
        with graph.as_default():
            trip = graph.placeholder(dtypes.int32, static_shape(()))
            if channel < 0:
                limit = scalar(loop.num_trips)
                goes_on = apply_op("Less", x=trip, y=limit).outputs[0]
            else:
                goes_on = apply_op(
                    "Terra>LoopCond",
                    step=self._place(loop, outer, trip),
                    trip=trip,
                    channel=channel,
                    num_trips=loop.num_trips,
                ).outputs[0]
            graph.inputs, graph.outputs = [trip], [goes_on]
        return graph

    def _before(self, outer: Scope, body: Scope) -> list:
        """A loop that fetches, or lets Python run an op, comes after what can fail."""
        before = [] if outer.epoch.gate is None else [outer.epoch.gate]
        if body.epoch.fetches or body.controls:
            before += outer.epoch.fallible
        return unique(before)

    # -------------------------------------------------------- after the loop

    def _absorb(
        self,
        loop: RolledLoop,
        outer: Scope,
        body: Scope,
        operation: Any,
        initial: list[_LoopVariable],
    ) -> None:
        """Makes what came out of the loop known in the line around it."""
        last = (loop.num_trips - 2) * loop.period
        for number, variable in enumerate(initial):
            tensor = operation.outputs[1 + number]
            result = body.graph.outputs[1 + number]
            if variable.table == "variables":
                tensor.set_shape(result.shape)
                outer.epoch.values[variable.key] = tensor
                outer.epoch.changed.add(variable.key)
            elif variable.table == "webs":
                of_first = result.shape if variable.shape is not None else variable.initial.shape
                tensor.set_shape(common_shape([of_first, result.shape]))
                outer.webs[variable.key if variable.after is None else variable.after] = tensor
            elif variable.table == "exits":
                node, output = variable.key
                tensor.set_shape(result.shape)
                outer.outputs[Output(self._out.shifted(node, last), output)] = tensor
        epoch = outer.epoch
        if body.controls:
            outer.controls.append(operation)
        if body.epoch.fallible:
            epoch.fallible.append(operation)
        if body.epoch.fetches:
            epoch.fetches.append(operation)
        if body.epoch.reads:
            epoch.reads.append(operation)

    def _finish_trips(self, loop: RolledLoop, outer: Scope, body: Scope) -> None:
        """Notes of every trip what was found out of the representative."""
        out = self._out
        for shift in loop.shifts():
            for number, outputs in body.emitted.items():
                image = out.shifted(number, shift)
                outer.emitted[image] = outputs
                if shift != 0:
                    self._note_image(loop, number, image, outputs)

    def _note_image(self, loop: RolledLoop, number: int, image: int, outputs: list) -> None:
        out, graph = self._out, self._graph
        if number in out.folded:
            out.folded[image] = graph.nodes[image].record.folded
            return
        rule = out.shape_rules.get(number, b"")
        if rule:
            out.shape_rules[image] = rule
        for output in range(len(outputs)):
            if (number, output) in out.output_shapes:
                out.output_shapes[image, output] = out.output_shapes[number, output]
        self._foreknowledge.note(image, outputs, rule, may_be_on_host=number in out.on_host)
        if (number in out.on_host) != (image in out.on_host):
            raise CannotRollError(loop, "Python knows some trips' values, and not others'")
        for output in range(len(outputs)):
            asked = (image, output) in graph.shape_reads or graph.nodes[image].record.under_tape
            is_known = self._foreknowledge.knows_shape(image, output)
            if asked and not is_known and (image, output) not in out.fetch_channels:
                raise CannotRollError(loop, "shapes of later trips depend on data")


def _placeholder(variable: _LoopVariable) -> Any:
    shape = variable.initial.shape if variable.shape is None else variable.shape
    return ops.get_default_graph().placeholder(variable.initial.dtype, shape)


def _includes(shape: Any, other: Any) -> bool:
    """Says whether a static shape says no more than another."""
    if shape.rank is None:
        return True
    return other.rank == shape.rank and all(
        dim is None or dim == of_other for dim, of_other in zip(shape.as_list(), other.as_list())
    )
