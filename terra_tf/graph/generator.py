"""Turns a TraceGraph into a TensorFlow function and says how Python talks to it.

The function takes the step's id, then the captured variables and tensors. Everything else
comes and goes through channels of the step's mailbox. It has no outputs: fetches deliver
values, writes change variables. Its main line is the levels of the case assignment in order:
a block that every path passes as it is, a switch-case as a `Case` that `Terra>CaseSelect`
drives, with a branch for skipping if any path skips it. What a branch makes and somebody else
uses comes out of the Case (SSA); where another branch was taken, it is a dummy that nobody looks
at.

It is built without automatic control dependencies, which would chain the ops that wait;
exactly the order that is needed is added here:

- program order per variable, within an epoch by SSA values, between epochs by the commit;
- `AwaitCommit` of an epoch after its fallible ops, its fetches and its final values;
- writes after the commit; the next epoch's reads after the writes and Python's go-ahead;
- a fetch after the fallible ops before it.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Collection
from typing import Any

import tensorflow as tf

from terra_tf._tf_internals import atomic_function, ops
from terra_tf.errors import UndelegableOpError
from terra_tf.graph.emitter import Emitter
from terra_tf.graph.epochs import plan_epochs, slots_of
from terra_tf.graph.foreknowledge import Foreknowledge, InferShapes
from terra_tf.graph.generated_graph import EpochChannels, GeneratedGraph
from terra_tf.graph.lean_graph import LeanGraph, apply_op
from terra_tf.graph.loop_emitter import LoopEmitter
from terra_tf.graph.loop_finder import LoopFinder
from terra_tf.graph.loop_tables import LoopTables
from terra_tf.graph.loops import CannotRollError, RolledLoop
from terra_tf.graph.lowering import lower_cases
from terra_tf.graph.scope import EpochState, HeldCase, HeldWrite, Scope
from terra_tf.graph.switch_case import add_case, as_output, dummy, make_branch_graph
from terra_tf.graph.symbols import common_shape, scalar, unique
from terra_tf.graph.variable_emitter import VariableEmitter, dense_writes
from terra_tf.trace.case_assignment import BasicBlock
from terra_tf.trace.joins import Rule, resolve_joins
from terra_tf.trace.trace_graph import Output, TraceGraph

_serial = itertools.count()


_MAX_REFUSED_LOOPS = 4  # then none is rolled


def generate(
    graph: TraceGraph,
    infer_shapes: InferShapes,
    roll_from: int = 0,
    roll_constant_from: int = 0,
    keeps_bits: bool = True,
    looks_at_indices: bool = True,
    hold_handle: Callable[[Any], Any] | None = None,
    keep_going: Callable[[], None] = lambda: None,
) -> GeneratedGraph:
    """Builds and registers the function of a TraceGraph.

    Args:
      graph: The TraceGraph.
      infer_shapes: Runs shape functions, as the cursor will.
      roll_from: The fewest trips for which a loop is rolled whose number of trips varies; 0 is
        never.
      roll_constant_from: The same for other loops.
      keeps_bits: Whether TensorFlow must not merge ops where that changes the last bits.
      looks_at_indices: Whether the cursor can compare integers that are fed with ranges.
      hold_handle: Returns what keeps a variable's handle for `Terra>Handle`. Without it, branches
        take handles from the graph around them.
      keep_going: Is called at each op; what it raises ends the work.

    Raises:
      UndelegableOpError: Ops have to run imperatively. The TraceGraph is then of no more use.
    """
    refused: dict[tuple[int, int], tuple[RolledLoop, str]] = {}
    while True:
        is_rolling = len(refused) < _MAX_REFUSED_LOOPS
        limits = (roll_from, roll_constant_from) if is_rolling else (0, 0)
        try:
            generator = _Generator(
                graph,
                infer_shapes,
                limits,
                refused.keys(),
                keeps_bits,
                looks_at_indices,
                hold_handle,
                keep_going,
            )
            generated = generator.build()
            generated.unrolled = list(refused.values())
            return generated
        except CannotRollError as error:
            assert error.loop is not None
            refused[error.loop.begin, error.loop.period] = (error.loop, error.why)


class _Generator:
    def __init__(
        self,
        graph: TraceGraph,
        infer_shapes: InferShapes,
        roll_from: tuple[int, int],
        refused: Collection[tuple[int, int]],
        keeps_bits: bool,
        looks_at_indices: bool,
        hold_handle: Callable[[Any], Any] | None,
        keep_going: Callable[[], None],
    ) -> None:
        self._graph = graph
        self._keep_going = keep_going
        self._epochs = plan_epochs(graph)
        self._out = GeneratedGraph(self._epochs.cases, resolve_joins(graph))
        self._name = f"terra_step_{next(_serial)}"
        main = LeanGraph(self._name)
        foreknowledge = Foreknowledge(graph, self._out, infer_shapes)
        self._emitter = Emitter(
            graph,
            self._out,
            main,
            self._epochs.starts,
            foreknowledge,
            keeps_bits,
            looks_at_indices,
            hold_handle,
        )
        self._variables = VariableEmitter(self._emitter, self._is_last_use)
        self._loops = LoopEmitter(
            self._emitter, self._variables, foreknowledge, self._emit_levels
        )
        self._finder: LoopFinder | None = None
        if any(roll_from):
            varying, constant = (limit or sys.maxsize for limit in roll_from)
            tables = LoopTables(graph, self._epochs.cases, self._out.joins, self._epochs.starts)
            self._finder = LoopFinder(tables, varying, constant, refused)
        self._last_use = self._find_last_uses()
        self._used_outside, self._joins_used_outside = self._find_crossing()

    # ------------------------------------------------------------ the whole

    def build(self) -> GeneratedGraph:
        emitter, out = self._emitter, self._out
        function_graph = emitter.main.graph
        with function_graph.as_default():
            emitter.add_inputs()
            out.epochs.append(EpochChannels(0, out.new_channel()))
            self._emit_levels(0, len(self._epochs.cases.levels))
            self._end_epoch()
        if out.undelegable:
            node, reason = next(iter(out.undelegable.items()))
            raise UndelegableOpError(node, reason, out.undelegable)
        function_graph.inputs = emitter.inputs
        function_graph.outputs = []
        function_graph.structured_outputs = None
        function_graph.control_outputs = unique(emitter.main.controls)
        out.function = atomic_function.from_func_graph(self._name, function_graph, {})
        out.lowered = lower_cases(out.function)
        out.name = tf.compat.as_str(out.lowered.name)
        return out

    def _emit_levels(self, first: int, end: int) -> None:
        """Adds levels to the current scope: the main line, or the body of a loop."""
        found = [] if self._finder is None else self._finder.find(first, end, self._can_be_skipped)
        loops = {loop.begin: loop for loop in found}
        number = first
        while number < end:
            if number in self._epochs.starts:
                self._begin_epoch(number)
            if number in loops:
                self._loops.emit(loops[number])
                number = loops[number].end
                continue
            blocks, has_skip = self._out.blocks_at(number), self._can_be_skipped(number)
            if len(blocks) > 1 or has_skip:
                self._emit_case(number, blocks, has_skip)
            else:
                for node in blocks[0].nodes:
                    self._keep_going()
                    self._emitter.emit(node, self._variables.emit)
            number += 1

    def _can_be_skipped(self, level: int) -> bool:
        """Whether the main line, or a trip of the innermost loop, may go without a level."""
        loops = [each.loop for each in self._out.loops]
        around = [loop for loop in loops if loop.begin <= level < loop.end]
        if around:
            return level in around[-1].skippable
        return not self._epochs.cases.levels[level].is_mandatory

    def _find_last_uses(self) -> dict[int, tuple[int, int]]:
        """Slot -> the last (level, position in its block) that uses it."""
        cases = self._epochs.cases
        last: dict[int, tuple[int, int]] = {}
        for number, node in enumerate(self._graph.nodes):
            place = (cases.level_of(number), cases.position_of[number])
            for slot in slots_of(node):
                last[slot] = max(last.get(slot, place), place)
        return last

    def _is_last_use(self, slot: int, node: int) -> bool:
        cases = self._epochs.cases
        place = (cases.level_of(node), cases.position_of[node])
        return self._emitter.scope is self._emitter.main and self._last_use[slot] == place

    def _find_crossing(self) -> tuple[set[Output], set[tuple[int, int]]]:
        """What blocks make that other blocks use directly: outputs, and joined inputs."""
        block_of = self._epochs.cases.block_of
        outputs: set[Output] = set()
        joins: set[tuple[int, int]] = set()
        used: tuple[Output, ...]
        for number, node in enumerate(self._graph.nodes):
            if node.is_imperative:
                continue
            for position, source in enumerate(node.inputs):
                join = self._out.joins.of_input.get((number, position))
                if join is None:
                    used = (source,) if isinstance(source, Output) else ()
                elif join.rule is Rule.SAME and join.same is not None:
                    used = ()
                    if block_of[join.same[0]] is not block_of[number]:
                        joins.add(join.same)
                else:
                    used = join.alternatives
                outputs |= {o for o in used if block_of[o.node] is not block_of[number]}
        return outputs, joins

    # -------------------------------------------------------------- epochs

    def _begin_epoch(self, level: int) -> None:
        emitter, out = self._emitter, self._out
        done = self._end_epoch()
        closed = out.epochs[-1]
        closed.done, closed.resume = out.new_channel(), out.new_channel()
        with ops.control_dependencies(done):
            signal = apply_op(
                "Terra>Fetch", step=emitter.step, input=scalar(), channel=closed.done
            )
        emitter.main.controls.append(signal)
        emitter.main.epoch = EpochState(emitter.await_commit(closed.resume, [signal]))
        out.epochs.append(EpochChannels(level, out.new_channel()))

    def _end_epoch(self) -> list:
        epoch = self._emitter.main.epoch
        finals = [epoch.values[slot].op for slot in sorted(epoch.changed)]
        gate = [] if epoch.gate is None else [epoch.gate]
        before = epoch.fallible + epoch.fetches + finals + epoch.reads + gate
        for held in epoch.held_back:
            before += [tensor.op for tensor in _tensors_of(held)]
        commit = self._emitter.await_commit(self._out.epochs[-1].commit, before)
        done = [commit]
        last_write: dict[int, Any] = {}
        for slot in sorted(epoch.changed):
            with ops.control_dependencies([commit]):
                last_write[slot] = apply_op(
                    "AssignVariableOp",
                    resource=self._emitter.handle(slot),
                    value=epoch.values[slot],
                )
            done.append(last_write[slot])
        for held in epoch.held_back:
            slots = _slots_of_held(held)
            after = [commit] + [last_write[slot] for slot in sorted(slots) if slot in last_write]
            write = self._apply_held(held, unique(after))
            last_write.update(dict.fromkeys(slots, write))
            done.append(write)
        self._emitter.main.controls += done
        return unique(done)

    def _apply_held(self, held: HeldWrite | HeldCase, after: list) -> Any:
        emitter = self._emitter
        if isinstance(held, HeldWrite):
            with ops.control_dependencies(after):
                return held.emit(emitter.handle(held.slot), held.tensors)
        branches = []
        for number in range(held.num_branches):
            graph = make_branch_graph(self._branch_name("apply"), emitter.main.graph)
            with graph.as_default():
                last: list = []
                for write in held.branches[number] if number < len(held.branches) else ():
                    handle = emitter.handle(write.slot)
                    with ops.control_dependencies(last):
                        last = [write.emit(handle, write.tensors)]
                graph.outputs, graph.control_outputs = [], last
            branches.append(graph)
        return add_case(held.index, branches, after)

    # -------------------------------------------------------- switch-cases

    def _emit_case(self, number: int, blocks: tuple[BasicBlock, ...], has_skip: bool) -> None:
        emitter, scope = self._emitter, self._emitter.scope
        nodes = tuple(node for block in blocks for node in block.nodes)
        for slot in sorted(dense_writes(self._graph, nodes)):
            if slot in emitter.main.handles:
                self._variables.read(slot)  # what the other branches hand on
        branches = [self._build_branch(b.nodes, number, i) for i, b in enumerate(blocks)]
        if has_skip:
            branches.append(self._build_branch((), number, len(blocks)))
        made_dtypes = {key: t.dtype for _, made in branches for key, t in made.items()}
        keys = list(made_dtypes)
        for branch, made in branches:
            with branch.graph.as_default():
                branch.graph.outputs = [
                    as_output(self._hand_out(branch, made, key, made_dtypes[key]))
                    for key in keys
                ]
            branch.graph.control_outputs = unique(branch.controls)
        self._out.num_switch_cases += 1
        channel = self._out.new_channels(len(scope.shifts))
        for place, shift in enumerate(scope.shifts):
            self._out.case_channels[number + shift] = channel + place
            if has_skip:
                self._out.skippable.add(number + shift)
        select = apply_op(
            "Terra>CaseSelect", step=emitter.step, channel=channel, num_branches=len(branches)
        )
        index = _at_once(select.outputs[0])
        graphs = [branch.graph for branch, _ in branches]
        case = add_case(index, graphs, self._before_case(branches, scope.epoch))
        self._absorb(case, index, branches, keys)

    def _before_case(self, branches: list, epoch: EpochState) -> list:
        """A branch that fetches, or lets Python run an op, comes after what can fail."""
        before = [] if epoch.gate is None else [epoch.gate]
        if any(scope.epoch.fetches or scope.controls for scope, _ in branches):
            before += epoch.fallible
        return unique(before)

    def _build_branch(self, nodes: tuple[int, ...], *place: int) -> tuple[Scope, dict[Any, Any]]:
        """Returns a branch's scope, and what it made that others use: key -> tensor."""
        emitter, around = self._emitter, self._emitter.scope
        graph = make_branch_graph(self._branch_name("branch"), around.graph)
        scope = emitter.scope = around.branch(graph, place)
        try:
            with graph.as_default():
                for node in nodes:
                    self._keep_going()
                    emitter.emit(node, self._variables.emit)
        finally:
            emitter.scope = around
        around.emitted.update(scope.emitted)
        made: dict[Any, Any] = {}
        for output, tensor in scope.outputs.items():
            if output in self._used_outside and tensor is not None:
                made["output", output] = tensor
        for web, tensor in scope.webs.items():
            if tensor is not None:
                made["web", web] = tensor
        for key, tensor in scope.joins.items():
            if key in self._joins_used_outside:
                made["join", key] = tensor
        for slot in sorted(scope.epoch.changed):
            made["variable", slot] = scope.epoch.values[slot]
        for position, held in enumerate(scope.epoch.held_back):
            assert isinstance(held, HeldWrite)  # a block holds no case
            for name, tensor in held.tensors.items():
                made["held", (id(scope), position, name)] = tensor
        return scope, made

    def _branch_name(self, what: str) -> str:
        return f"{self._name}_{what}_{next(_serial)}"

    def _hand_out(self, scope: Scope, made: dict, key: tuple[str, Any], dtype: Any) -> Any:
        """What one branch gives for a value that some branch makes."""
        if key in made:
            return made[key]
        kind, what = key
        before = None
        if kind == "web":
            before = scope.find("webs", what)
        elif kind == "variable":
            before = scope.epoch.values[what]
        return dummy(dtype) if before is None else before

    def _absorb(self, case: Any, index: Any, branches: list, keys: list) -> None:
        """Makes what came out of a Case known in the line around it."""
        main = self._emitter.scope
        tensors = dict(zip(keys, case.outputs))
        for key, tensor in tensors.items():
            place = keys.index(key)
            makers = [scope.graph.outputs[place] for scope, made in branches if key in made]
            before = main.webs.get(key[1]) if key[0] == "web" else None
            shapes = [tensor.shape for tensor in makers]
            tensor.set_shape(common_shape(shapes if before is None else [*shapes, before.shape]))
            if key[0] == "output":
                main.outputs[key[1]] = tensor
            elif key[0] == "web":
                main.webs[key[1]] = tensor
            elif key[0] == "join":
                main.joins[key[1]] = tensor
            elif key[0] == "variable":
                main.epoch.values[key[1]] = tensor
                main.epoch.changed.add(key[1])
        self._absorb_effects(case, index, branches, tensors)

    def _absorb_effects(self, case: Any, index: Any, branches: list, tensors: dict) -> None:
        main = self._emitter.scope
        main.controls.append(case)
        epochs = [scope.epoch for scope, _ in branches]
        if any(epoch.fallible for epoch in epochs):
            main.epoch.fallible.append(case)
        if any(epoch.fetches for epoch in epochs):
            main.epoch.fetches.append(case)
        if any(epoch.reads for epoch in epochs):
            main.epoch.reads.append(case)
        held: list[list[HeldWrite]] = []
        for scope, _ in branches:
            held.append([])
            for position, write in enumerate(scope.epoch.held_back):
                outside = {
                    name: tensors["held", (id(scope), position, name)] for name in write.tensors
                }
                held[-1].append(
                    HeldWrite(write.slot, write.op_type, outside, write.attrs, write.handle)
                )
        if any(held):
            main.epoch.held_back.append(HeldCase(index, held, len(branches)))


def _at_once(index: Any) -> Any:
    """Passes a decision on through one op, so that its coming wakes one thread and not many.

    What an asynchronous kernel makes ready, TensorFlow schedules op by op, each in its own way
    to a thread pool that has gone to sleep. What a cheap synchronous kernel makes ready goes on
    in its thread. (Not an Identity: Grappler's pruner takes those out.)
    """
    return apply_op("EnsureShape", input=index, shape=[]).outputs[0]


def _tensors_of(held: HeldWrite | HeldCase) -> list:
    if isinstance(held, HeldWrite):
        return list(held.tensors.values())
    return [t for writes in held.branches for write in writes for t in write.tensors.values()]


def _slots_of_held(held: HeldWrite | HeldCase) -> set[int]:
    if isinstance(held, HeldWrite):
        return {held.slot}
    return {write.slot for writes in held.branches for write in writes}
