"""`tf.vectorized_map` in steps: its function is traced in each, and vectorized once.

The function is the user's: its Python runs in every call, as in eager. What it amounts to is a
graph; where an equal one was vectorized before, what came of that is called again, on the tensors
that this one has captured (docs/design/0009).

    vectorized_map(fn) -> pfor -> fn's graph -> digest -> known? -- yes --> call
                                                            '----- no --> PFor -> function -> call
"""

from __future__ import annotations

import functools
import hashlib
import threading
import types
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from terra_tf._tf_internals import concrete_function_of, handle_shape_and_type, nest, ops, pfor_ops
from terra_tf.runtime.pfor_calls import CapturingGraph, controller_of_step, expect, whole_body
from terra_tf.runtime.straight_line_code import NotStraightError, check_has_no_effect
from terra_tf.runtime.swapped_code import SwappedCode

_MAX_KEPT = 64


def hook() -> SwappedCode:
    """Returns what swaps the code of `tf.vectorized_map`, and puts it back."""
    return SwappedCode(tf.vectorized_map, _vectorized_map)


def _vectorized_map(original: types.FunctionType) -> Any:
    def vectorized_map(args: tuple, kwargs: dict[str, Any]) -> Any:
        with expect(None if controller_of_step() is None else _run):
            return original(*args, **kwargs)

    return vectorized_map


# ----------------------------------------------------------------------------- tracing


class _Tracing(threading.local):
    def __init__(self) -> None:
        self.current: _MapGraph | None = None


_tracing = _Tracing()


class _MapGraph(CapturingGraph):
    """A map's function, vectorized or not yet.

    Args:
      kept: What equal graphs were made to: digest -> names of what the function returned -> code.
    """

    def __init__(self, name: str, kept: dict[bytes, dict[tuple, _Kept]]) -> None:
        super().__init__(name)
        self._all_kept = kept
        self._digest = b""
        self._vectorize: Callable[[], Any] | None = None
        self.is_known = False  # then it is not vectorized
        self.returned: list[Any] = []  # by one call of the function

    def has_body(self, loop_var: Any) -> bool:
        """Says whether a loop's variable is that of the map itself, not of a loop within."""
        of_loops = (op for op in self.get_operations() if op.type == "PlaceholderWithDefault")
        return next(of_loops, None) is loop_var.op

    def end_body(self, vectorize: Callable[[], Any], how: str) -> None:
        """The function has been traced: has an equal graph been vectorized already?"""
        self._vectorize = vectorize
        handles = [handle_shape_and_type(outside) for outside, _ in self.captures]
        definition = self.as_graph_def(add_shapes=True).SerializeToString(deterministic=True)
        self._digest = hashlib.sha256(definition + repr((handles, how)).encode()).digest()
        self.is_known = self._digest in self._all_kept

    def find(self) -> _Kept | None:
        """Returns what does the same, or None."""
        return self._all_kept.get(self._digest, {}).get(_names_of(self.returned))

    def keep(self, kept: _Kept) -> None:
        """Keeps what has been made, and lets go of the oldest."""
        if len(self._all_kept) >= _MAX_KEPT:
            del self._all_kept[next(iter(self._all_kept))]
        self._all_kept.setdefault(self._digest, {})[_names_of(self.returned)] = kept

    def vectorize_late(self) -> None:
        """Vectorizes a known graph of which something else was returned this time."""
        assert self._vectorize is not None
        with self.as_default():
            convert = self._vectorize().convert
            outputs = [None if tensor is None else convert(tensor) for tensor in self.returned]
        self.structured_outputs: Any = nest.pack_sequence_as(self.structured_outputs, outputs)
        self.outputs = [output for output in outputs if output is not None]


def _names_of(tensors: list[Any]) -> tuple:
    return tuple(getattr(tensor, "name", None) for tensor in tensors)


def converter(original: Any) -> Callable[..., Any]:
    """Returns what stands for TensorFlow's `PFor`."""

    def convert(loop_var: Any, iters: Any, new_ops: Any, **options: Any) -> Any:
        real = functools.partial(original, loop_var, iters, new_ops, **options)
        graph = _tracing.current
        if graph is None or ops.get_default_graph() is not graph or not graph.has_body(loop_var):
            return real()
        graph.end_body(real, repr((iters.name, options.get("fallback_to_while_loop"))))
        return _Converter(graph, real)

    return convert


class _Converter:
    """Vectorizes outputs, or hands them on where that has been done before."""

    def __init__(self, graph: _MapGraph, real: Callable[[], Any]) -> None:
        self._graph = graph
        self._real = None if graph.is_known else real()

    def convert(self, output: Any) -> Any:
        self._graph.returned.append(output)
        return output if self._real is None else self._real.convert(output)


# ----------------------------------------------------------------------------- running


class _MakesVariablesError(BaseException):
    """The function makes a variable: TensorFlow's rules for that are its own.

    No `Exception`, which the function's own Python may catch.
    """


class _Kept:
    """A vectorized function. Of what its graph has captured it keeps nothing."""

    def __init__(self, graph: _MapGraph) -> None:
        self._function = concrete_function_of(graph)
        self._function.set_external_captures([])
        graph.forget_outside()

    def run(self, captured: list, outputs: Any) -> Any:
        """Calls it; the result has the structure of `outputs`."""
        results = nest.flatten(self._function._call_flat([], captured))
        return nest.pack_sequence_as(outputs, results)


def _run(controller: Any, vectorized: Callable[[], Any]) -> Any:
    """Returns what the function that `pfor` has written returns."""
    graph = _MapGraph(vectorized.__name__, controller.entry.vectorized)
    if not _trace(graph, vectorized):
        return pfor_ops.def_function.function(vectorized)()
    captured = [outside for outside, _ in graph.captures]
    kept = graph.find()
    if kept is None and graph.is_known:
        graph.vectorize_late()
    outputs = graph.structured_outputs
    if kept is None and _can_be_kept(graph):
        kept = _Kept(graph)
        graph.keep(kept)
    elif kept is not None:
        graph.let_go()
    if kept is not None:
        return kept.run(captured, outputs)
    body, captured = whole_body(graph)
    return body(tuple(captured), False)


def _trace(graph: _MapGraph, vectorized: Callable[[], Any]) -> bool:
    """Traces a function; false if it makes variables."""
    makes_variables = False

    def refuse(*_: Any, **__: Any) -> Any:
        nonlocal makes_variables
        makes_variables = True
        raise _MakesVariablesError

    outer, _tracing.current = _tracing.current, graph
    try:
        with graph.as_default(), tf.variable_creator_scope(refuse):
            graph.trace(vectorized)
    except _MakesVariablesError:
        return False
    finally:
        _tracing.current = outer
    return not makes_variables


def _can_be_kept(graph: _MapGraph) -> bool:
    """Says whether calling it again is like making another: plain tensors, and no effect."""
    try:
        check_has_no_effect(graph)
    except NotStraightError:
        return False
    return all(
        output is None or isinstance(output, tf.Tensor)
        for output in nest.flatten(graph.structured_outputs)
    )
