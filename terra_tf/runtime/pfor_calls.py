"""What TensorFlow vectorizes in steps: calls of `pfor`, which makes a function in each.

    jacobian, vectorized_map -> pfor -> def_function.function(f)()
                                            '-> what was expected of it, with f

Who knows what to do with such an `f` says so before TensorFlow comes there; without that, and
outside of steps, TensorFlow goes its own way.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

from terra_tf import _native
from terra_tf._tf_internals import (
    EagerTensor,
    concrete_function_of,
    context,
    func_graph,
    functions_run_eagerly,
    py_func_from_autograph,
)
from terra_tf.config import config

Run = Callable[[Any, Callable[[], Any]], Any]  # (controller, f) -> the result of f()


class _Expected(threading.local):
    def __init__(self) -> None:
        self.run: Run | None = None


_expected = _Expected()


@contextlib.contextmanager
def expect(run: Run | None) -> Iterator[None]:
    """Says what runs the next function that `pfor` writes on this thread; None: TensorFlow."""
    outer, _expected.run = _expected.run, run
    try:
        yield
    finally:
        _expected.run = outer


def forget_call() -> None:
    """One that was interrupted may have left what it expected behind."""
    _expected.run = None


class DefFunction:
    """TensorFlow's module of that name, as `pfor` sees it."""

    def __init__(self, module: types.ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def function(self, vectorized: Callable[[], Any]) -> Callable[[], Any]:
        """Returns what runs the function that `pfor` has written."""
        run, _expected.run = _expected.run, None
        controller = controller_of_step()
        if run is None or controller is None:
            return self._module.function(vectorized)
        return functools.partial(run, controller, vectorized)


def controller_of_step() -> Any:
    """Returns the controller of the step whose ops this thread runs, or None."""
    if not config.replay_calls or not context.executing_eagerly() or functions_run_eagerly():
        return None
    native = _native.load().module
    controller = native.current_controller()
    if controller is None or controller.native.mode == native.Mode.IMPERATIVE:
        return None
    return controller


class CapturingGraph(func_graph.FuncGraph):
    """A graph in which tensors from outside are inputs, the smallest, too.

    TensorFlow makes constants of them, so that the graph is for one step's values. Inputs are
    named by their order: the same Python makes the same graph.
    """

    def trace(self, function: Callable[[], Any]) -> None:
        """Adds what a function without arguments does, as `tf.function` would."""
        func_graph.func_graph_from_py_func(
            self.name, py_func_from_autograph(function), (), {}, func_graph=self
        )

    def capture(self, tensor: Any, name: str | None = None, shape: Any = None) -> Any:
        if not isinstance(tensor, EagerTensor):
            return super().capture(tensor, name, shape)
        captures = self._function_captures
        return captures._create_placeholder_helper(self, tensor, f"captured_{len(self.inputs)}")


    def forget_outside(self) -> None:
        """Forgets what the inputs were: whoever calls the graph says so each time."""
        self._function_captures.clear()
        self._function_captures._recompute_cached_properties()
        self.variables = ()

    def let_go(self) -> None:
        """Lets go of everything: a graph is a cycle, which would keep tensors of the step."""
        self.forget_outside()
        func_graph.dismantle_func_graph(self)


def whole_body(graph: CapturingGraph) -> tuple[Callable[[tuple, bool], Any], list]:
    """Returns what runs the graph as one function, and the tensors it takes."""
    function = concrete_function_of(graph)
    inputs = list(function.captured_inputs)
    return lambda captured, is_kept: function._call_flat([], list(captured)), inputs
