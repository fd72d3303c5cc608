"""`GradientTape.jacobian` and `batch_jacobian` in steps.

TensorFlow makes a function of its own in each call: it traces the gradient of one row, vectorizes
it (`pfor`) and runs the result once. Here the result is run op by op, as ops of the step, and kept:
what has been made of the same history is not made again (docs/design/0009).

    jacobian -> pfor -> kept? -- yes --> its tensors are looked up --> run (a pure call)
                          '---- no ----> made, with its code --------------^
"""

from __future__ import annotations

import functools
import threading
import types
from typing import Any, NamedTuple

import tensorflow as tf

from terra_tf import _native
from terra_tf._tf_internals import (
    EagerTensor,
    backprop,
    context,
    func_graph,
    functions_run_eagerly,
    nest,
    pfor_ops,
    uid,
)
from terra_tf.config import config
from terra_tf.runtime.straight_line_code import NotStraightError, StraightLineCode
from terra_tf.runtime.swapped_code import SwappedCode

_MAX_BODIES = 1024


class _Call(NamedTuple):
    """A call of a method of a tape that has not come to `pfor` yet."""

    function: types.FunctionType
    tape: Any
    given: tuple  # what its result depends on, but for the step so far


class _Calls(threading.local):
    def __init__(self) -> None:
        self.current: _Call | None = None


_calls = _Calls()


class Hooks:
    """The swapped code of what is hooked; `restore()` puts it back."""

    def __init__(self) -> None:
        tape = backprop.GradientTape
        self._swapped = [
            SwappedCode(tape.jacobian, _jacobian),
            SwappedCode(tape.batch_jacobian, _jacobian),
            SwappedCode(pfor_ops.pfor, _pfor),
        ]

    def restore(self) -> None:
        """Puts TensorFlow's code back."""
        for swapped in self._swapped:
            swapped.restore()


def _jacobian(original: types.FunctionType) -> Any:
    def jacobian(args: tuple, kwargs: dict[str, Any]) -> Any:
        if _controller() is None:
            return original(*args, **kwargs)
        outer, _calls.current = _calls.current, _described(original, *args, **kwargs)
        try:
            return original(*args, **kwargs)
        finally:
            _calls.current = outer

    return jacobian


def _described(
    function: types.FunctionType, tape: Any = None, target: Any = None, sources: Any = None,
    unconnected_gradients: Any = None, *_: Any, source: Any = None, **__: Any,
) -> _Call | None:  # fmt: skip
    """Returns the call, or None where TensorFlow has to look at its arguments."""
    flat = nest.flatten(sources if source is None else source)
    handles = [s if type(s) is EagerTensor else getattr(s, "handle", None) for s in flat]
    tensors = [target, *handles]
    if type(tape) is not backprop.GradientTape or tape._tape is None:
        return None
    if tape._recording and not tape._persistent:  # its gradient stops the recording
        return None
    if not all(type(tensor) is EagerTensor for tensor in tensors):
        return None
    return _Call(function, tape, (*tensors, str(unconnected_gradients)))


def _controller() -> Any:
    """Returns the controller of the step whose ops this thread runs, or None."""
    if not config.replay_calls or not context.executing_eagerly() or functions_run_eagerly():
        return None
    native = _native.load().module
    controller = native.current_controller()
    if controller is None or controller.native.mode == native.Mode.IMPERATIVE:
        return None
    return controller


def _pfor(original: types.FunctionType) -> Any:
    def pfor(args: tuple, kwargs: dict[str, Any]) -> Any:
        call, _calls.current = _calls.current, None
        controller = _controller() if call is not None else None
        if call is None or controller is None:
            return original(*args, **kwargs)
        made = _made(controller, call, args, kwargs)
        if isinstance(made, str):
            return original(*args, **kwargs)
        _use_up(call.tape)
        body, captured = made
        return body(captured)

    return pfor


def _made(controller: Any, call: _Call, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Returns a body and the tensors it takes, or why the graph cannot be taken apart."""
    make = functools.partial(_make, call.tape, args, kwargs)
    if call.tape._recording:
        return make()
    given = (*call.given, args[1], kwargs.get("parallel_iterations"))
    name = f"GradientTape.{call.function.__name__}"
    return controller.native.make_once(name, call.function, call.tape._tape._tape, given, make)


def _make(tape: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[_Body, tuple] | str:
    kept = tape._tape
    graph = _CapturingGraph("vectorized")
    try:
        func_graph.func_graph_from_py_func(
            graph.name, functools.partial(_vectorize, *args, **kwargs), (), {}, func_graph=graph
        )
        code = StraightLineCode(graph)
        return _body_of(code, graph.structured_outputs), tuple(code.captured)
    except (NotStraightError, ValueError, NotImplementedError) as error:
        tape._tape = kept  # TensorFlow starts anew, and raises the program's error if it is one
        return str(error) if isinstance(error, NotStraightError) else "it cannot be vectorized"



def _vectorize(
    loop_fn: Any, iterations: Any, fallback_to_while_loop: bool = True, **options: Any
) -> Any:
    return pfor_ops._pfor_impl(loop_fn, iterations, fallback_to_while_loop, **options)


def _use_up(tape: Any) -> None:
    """Leaves a tape for one gradient as its gradient does."""
    if not tape._persistent and tape._tape is not None:
        tape._watched_variables = tape._tape.watched_variables()
        tape._tape = None


class _CapturingGraph(func_graph.FuncGraph):
    """A graph in which tensors from outside are inputs, the smallest, too.

    TensorFlow makes constants of them, so that the graph is for one step's values.
    """

    def capture(self, tensor: Any, name: str | None = None, shape: Any = None) -> Any:
        if not isinstance(tensor, EagerTensor):
            return super().capture(tensor, name, shape)
        captures = self._function_captures
        return captures._create_placeholder_helper(self, tensor, name or str(uid()))


class _Body:
    """A vectorized gradient: takes the tensors it was made of, returns what `pfor` returns."""

    def __init__(self, code: StraightLineCode, outputs: Any) -> None:
        self._run = _native.load().module.pure_function(
            "a vectorized gradient", code.function(), False, False
        )
        self._outputs = nest.map_structure(lambda output: output is not None, outputs)

    def __call__(self, captured: tuple) -> Any:
        results = iter(self._run(captured, {}))
        return nest.map_structure(lambda is_there: next(results) if is_there else None,
                                  self._outputs)  # fmt: skip


_bodies: dict[bytes, _Body] = {}  # a body's code is known by its address: none is freed


def _body_of(code: StraightLineCode, outputs: Any) -> _Body:
    """Returns the same body for the same code.

    Raises:
      NotStraightError: There are too many of them.
    """
    if not all(output is None or tf.is_tensor(output) for output in nest.flatten(outputs)):
        raise NotStraightError("it returns something that is no tensor")
    key = code.fingerprint + repr(nest.map_structure(lambda o: o is None, outputs)).encode()
    if key not in _bodies:
        if len(_bodies) >= _MAX_BODIES:
            raise NotStraightError("there are too many already")
        _bodies[key] = _Body(code, outputs)
    return _bodies[key]
