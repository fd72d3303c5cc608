"""Runs the open epoch of a co-executed step again, eagerly, in program order.

After the graph is cancelled nothing of the epoch has happened to any variable. Replay makes it
happen as eager would have: every delegated op is executed on the values that Python has; what
Python (or anybody) already has a value of keeps that value; every pending tensor that somebody
still holds gets one. Ops that ran imperatively have happened and are not run again. Nothing is
recorded on a tape: that was done when the ops were delegated.
"""

from __future__ import annotations

import contextlib
from typing import Any

import tensorflow as tf

from terra_tf import _native
from terra_tf._tf_internals import (
    NotOkStatusException,
    context,
    inferred_attributes,
    record,
    status_to_exception,
)
from terra_tf.runtime import interception
from terra_tf.runtime.built_graph import BuiltGraph
from terra_tf.runtime.prefix import input_of
from terra_tf.trace.op_classes import STATELESS_RANDOM
from terra_tf.trace.trace_graph import Captured, Constant, Feed, Node, Output, Variable


class ReplayError(Exception):
    """An op failed in replay, as it would have in eager.

    Attributes:
      node: Its index.
      error: The `tf.errors.OpError` (or other exception) to raise.
    """

    def __init__(self, node: int, error: BaseException) -> None:
        super().__init__(str(error))
        self.node = node
        self.error = error


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

    def run(self) -> None:
        """Raises ReplayError; what could not be set by then is poisoned with its error."""
        self._native.enter_nested()
        try:
            with record.stop_recording():
                for index in self._path:
                    self._try_node(index)
        finally:
            self._native.leave_nested()

    def _try_node(self, index: int) -> None:
        """Whatever goes wrong, no tensor may stay pending: whoever reads it would hang."""
        try:
            self._run_node(index)
        except NotOkStatusException as error:
            name = self._nodes[index].record.name
            if name is not None:  # as the op's wrapper does in eager
                error.message += f" name: {name}"
            self._fail(index, status_to_exception(error))
        except Exception as error:
            self._fail(index, error)

    def _run_node(self, index: int) -> None:
        node = self._nodes[index]
        if index in self._built.generated.folded:
            return
        if node.is_imperative or self._has_all_outputs(index, node):
            return
        for output, tensor in enumerate(self._execute(index, node)):
            self._settle(index, output, tensor)
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

    def _fail(self, index: int, error: BaseException) -> None:
        message = str(getattr(error, "message", error))
        code = int(getattr(error, "error_code", 2) or 2)
        unreached = set(self._path[self._path.index(index) :])
        for (node, _), made in self._made.items():
            if node in unreached:
                self._session.poison_output(made, message, code)
        raise ReplayError(index, error)

    # ------------------------------------------------------------ one node

    def _execute(self, index: int, node: Node) -> list:
        inputs = [self._value(index, source) for source in self._sources(index)]
        if index in self._seeds:
            return self._draw(index, node, inputs)
        record_ = node.record
        if not record_.is_fast:
            handle, device = context.context()._handle, record_.device or None
            name = record_.op_type
            return interception.originals["execute"](
                handle, device, name, inputs, record_.attrs, len(node.outputs)
            )
        with _device_scope(record_.device):
            return _run_fast(record_.op_type, record_.counts, inputs, record_.attrs)

    def _draw(self, index: int, node: Node, inputs: list) -> list:
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
        return _run_fast(STATELESS_RANDOM[op_type], counts, arguments, attrs)

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


def _device_scope(name: str) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which ops run where they would have, whoever replays them."""
    if name == interception.device_scope():
        return contextlib.nullcontext()
    scope: contextlib.AbstractContextManager[Any] = context.context().device(name or None)
    return scope


def _run_fast(op_type: str, counts: tuple, inputs: list, attrs: tuple) -> list:
    arguments: list[Any] = []
    position = 0
    for count in counts:
        if count < 0:
            arguments.append(inputs[position])
            position += 1
        else:
            arguments.append(list(inputs[position : position + count]))
            position += count
    inferred = inferred_attributes(op_type)
    given = [
        item
        for pair in zip(attrs[::2], attrs[1::2])
        if pair[0] not in inferred
        for item in pair
    ]
    result = interception.originals["fast_path_execute"](
        context.context(), op_type, None, *arguments, *given
    )
    if result is None:
        return []
    return tf.nest.flatten(result)  # an output may be a list of tensors

