"""Runs the open epoch of a co-executed step again, eagerly, in program order.

After the graph is cancelled nothing of the epoch has happened to any variable. Replay makes it
happen as eager would have: every delegated op is executed on the values that Python has; what
Python (or anybody) already has a value of keeps that value; every pending tensor that somebody
still holds gets one. Ops that ran imperatively have happened and are not run again. Nothing is
recorded on a tape: that was done when the ops were delegated.

A replay may be interrupted anywhere and run again: no op runs twice, since what it returned is
noted (`run_once`) before Python can be interrupted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from terra_tf import _native
from terra_tf._tf_internals import (
    NotOkStatusException,
    context,
    inferred_attributes,
    status_to_exception,
)
from terra_tf.runtime import interception
from terra_tf.runtime.built_graph import BuiltGraph
from terra_tf.runtime.function_errors import raised_by_function
from terra_tf.runtime.prefix import input_of
from terra_tf.trace.function_facts import is_function
from terra_tf.trace.op_classes import STATELESS_RANDOM
from terra_tf.trace.trace_graph import Captured, Constant, Feed, Node, Output, Variable


class Failure(NamedTuple):
    """An op failed in replay, as it would have in eager: its node, and what it raised."""

    node: int
    error: BaseException


class Replay:
    """Replays what a session has done from its op `start` on; its graph has ended.

    Needs the GIL, and that no op of the step is delegated meanwhile.
    """

    def __init__(self, built: BuiltGraph, session: Any, start: int) -> None:
        self._built = built
        self._nodes = built.trace_graph.nodes
        self._session = session
        self._path = list(session.path)[start:]
        self._native = _native.load().module
        self._env: dict[tuple[int, int], Any] = {}
        self._made = {}
        self._ready = {}
        for index, node, output, ready, _, _, _ in session.outputs():
            self._made[node, output] = index
            if ready:
                self._ready[node, output] = index
        self._seeds = dict(session.seeds)
        self._last_use = self._find_last_uses()
        self._num_done = 0  # of the path
        self._returned: dict[int, Any] = {}  # by nodes that have run: a result, or an exception
        self._failure: Failure | None = None

    def run(self) -> Failure | None:
        """Returns what failed; what could not be set by then is poisoned with its error."""
        self._native.run_unrecorded(self._run)
        return self._failure

    def _run(self) -> None:
        while self._num_done < len(self._path) and self._failure is None:
            self._run_node(self._path[self._num_done])
            self._num_done += 1

    def _run_node(self, index: int) -> None:
        node = self._nodes[index]
        if index in self._built.generated.folded:
            return
        if node.is_imperative or self._has_all_outputs(index, node):
            return
        if index not in self._returned:
            self._execute(index, node)
        returned = self._returned[index]
        if isinstance(returned, BaseException):
            self._fail(index, node, returned)
            return
        for output, tensor in enumerate(_listed(returned)):
            self._settle(index, output, tensor)
        self._returned[index] = None  # its tensors may go
        for source in self._sources(index):
            if isinstance(source, Output) and self._last_use[source.node] == index:
                self._env.pop((source.node, source.output), None)

    def _sources(self, index: int) -> list:
        num_inputs = len(self._nodes[index].inputs)
        return [
            input_of(self._built, self._session, index, i, as_sent=True) for i in range(num_inputs)
        ]

    def _find_last_uses(self) -> dict[int, int]:
        last: dict[int, int] = {}
        for index in self._path:
            for source in self._sources(index):
                if isinstance(source, Output):
                    last[source.node] = index
        return last

    def _has_all_outputs(self, index: int, node: Node) -> bool:
        """An op whose every result has a value need not run, unless it has an effect."""
        return bool(node.outputs) and all(
            (index, output) in self._ready for output in range(len(node.outputs))
        )

    def _settle(self, index: int, output: int, tensor: Any) -> None:
        key = (index, output)
        if key in self._ready:
            return
        made = self._made.get(key)
        if made is not None:
            self._session.set_output(made, tensor)
        if index in self._last_use:
            self._env[key] = tensor

    def _fail(self, index: int, node: Node, error: BaseException) -> None:
        """No tensor may stay pending: whoever reads it would hang."""
        if isinstance(error, NotOkStatusException):
            named = f" name: {node.record.name}"  # as the op's wrapper does in eager
            if node.record.name is not None and not error.message.endswith(named):
                error.message += named
            error = status_to_exception(error)
        if is_function(node.record.op_type):
            error = raised_by_function(node.record.op_type, error)
        message = str(getattr(error, "message", error))
        code = int(getattr(error, "error_code", 2) or 2)
        unreached = set(self._path[self._num_done :])
        for (other, _), made in self._made.items():
            if other in unreached:
                self._session.poison_output(made, message, code)
        self._failure = Failure(index, error)

    # ------------------------------------------------------------ one node

    def _execute(self, index: int, node: Node) -> None:
        """Runs an op; what it returned or raised is in `_returned` then."""
        inputs = [self._value(index, source) for source in self._sources(index)]
        record = node.record
        if index in self._seeds:
            self._draw(index, node, inputs)
        elif record.is_fast:
            self._run_fast(index, record.op_type, record.counts, inputs, record.attrs)
        else:
            self._native.run_once(
                None,
                self._returned,
                index,
                interception.originals["execute"],
                context.context()._handle,
                record.device or None,
                record.op_type,
                inputs,
                record.attrs,
                len(node.outputs),
            )

    def _draw(self, index: int, node: Node, inputs: list) -> None:
        """Draws the bits that the graph drew, or would have."""
        key, low, high = self._seeds[index]
        op_type = node.record.op_type
        arguments = [inputs[0]]
        arguments.append(self._native.from_uint64([key]))
        arguments.append(self._native.from_uint64([low, high]))
        arguments.append(tf.constant(1, tf.int32))  # Philox
        attrs: tuple = ()
        if op_type == "RandomUniformInt":
            arguments += inputs[1:]
        else:
            attrs = ("dtype", node.outputs[0].dtype)
        counts = (-1,) * len(arguments)
        self._run_fast(index, STATELESS_RANDOM[op_type], counts, arguments, attrs)

    def _value(self, index: int, source: Any) -> Any:
        if isinstance(source, Variable):
            return self._session.variable(source.slot)
        if isinstance(source, (Constant, Captured)):
            return source.tensor
        if isinstance(source, Feed):
            return self._session.feed_value(self._built.feed_slot(index, source))
        if not isinstance(source, Output):
            return source  # a joined input that came from outside of the step
        folded = self._built.generated.folded.get(source.node)
        if folded is not None:
            return folded[source.output]
        key = (source.node, source.output)
        if key in self._env:
            return self._env[key]
        return self._session.output_tensor(self._made[key])

    def _run_fast(
        self, index: int, op_type: str, counts: tuple, inputs: list, attrs: tuple
    ) -> None:
        inferred = inferred_attributes(op_type)
        pairs = zip(attrs[::2], attrs[1::2])
        given = [item for pair in pairs if pair[0] not in inferred for item in pair]
        self._native.run_once(
            _device_scope(self._nodes[index].record.device),
            self._returned,
            index,
            interception.originals["fast_path_execute"],
            context.context(),
            op_type,
            None,
            *_grouped(inputs, counts),
            *given,
        )


def _device_scope(name: str) -> Any:
    """Returns a context in which an op runs where it would have, or None if that is here."""
    if name == interception.device_scope():
        return None
    return context.context().device(name or None)


def _grouped(inputs: list, counts: tuple) -> list:
    """Returns an op's arguments: lists where it takes lists."""
    arguments: list[Any] = []
    position = 0
    for count in counts:
        width = max(count, 1) if count < 0 else count
        items = list(inputs[position : position + width])
        arguments.append(items[0] if count < 0 else items)
        position += width
    return arguments


def _listed(returned: Any) -> list:
    """Returns an op's results; one of them may be a list of tensors."""
    return [] if returned is None else tf.nest.flatten(returned)
