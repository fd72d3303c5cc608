"""`GradientTape.jacobian` and `batch_jacobian` in steps.

TensorFlow makes a function of its own in each call: it traces the gradient of one row, vectorizes
it (`pfor`) and runs the result once. Here what is made of the same history is not made again, and
is run op by op, as ops of the step (docs/design/0009).

    jacobian -> pfor -> def_function.function(f)()
                          '-> kept? -- yes --> its tensors are looked up --> run
                                '----- no ---> made, out of a graph ----------^
"""

from __future__ import annotations

import functools
import threading
import types
from collections.abc import Callable
from typing import Any, NamedTuple

from terra_tf import _native
from terra_tf._tf_internals import (
    EagerTensor,
    backprop,
    concrete_function_of,
    context,
    func_graph,
    functions_run_eagerly,
    nest,
    pfor_ops,
    py_func_from_autograph,
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
    """What of TensorFlow is replaced; `restore()` puts it back."""

    def __init__(self) -> None:
        tape = backprop.GradientTape
        self._swapped = [SwappedCode(method, _jacobian) for method in
                         (tape.jacobian, tape.batch_jacobian)]  # fmt: skip
        self._def_function = pfor_ops.def_function
        pfor_ops.def_function = _DefFunction(self._def_function)

    def restore(self) -> None:
        """Puts TensorFlow's code back."""
        pfor_ops.def_function = self._def_function
        for swapped in self._swapped:
            swapped.restore()


class _DefFunction:
    """TensorFlow's module of that name, as `pfor` sees it."""

    def __init__(self, module: types.ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def function(self, vectorized: Callable[[], Any]) -> Callable[[], Any]:
        """Returns what runs the function that `pfor` has written."""
        call, _calls.current = _calls.current, None
        controller = _controller()
        if call is None or controller is None:
            return self._module.function(vectorized)
        return functools.partial(_run, controller, call, vectorized)


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
    unconnected_gradients: Any = None, parallel_iterations: Any = None, *_: Any,
    source: Any = None, **__: Any,
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
    return _Call(function, tape, (*tensors, str(unconnected_gradients), parallel_iterations))


def _controller() -> Any:
    """Returns the controller of the step whose ops this thread runs, or None."""
    if not config.replay_calls or not context.executing_eagerly() or functions_run_eagerly():
        return None
    native = _native.load().module
    controller = native.current_controller()
    if controller is None or controller.native.mode == native.Mode.IMPERATIVE:
        return None
    return controller


def _run(controller: Any, call: _Call, vectorized: Callable[[], Any]) -> Any:
    make = functools.partial(_make, vectorized)
    if call.tape._recording:
        made = make()
    else:
        name = f"GradientTape.{call.function.__name__}"
        made = controller.native.make_once(
            name, call.function, call.tape._tape._tape, call.given, make
        )
    body, captured, _ = made
    _use_up(call.tape)
    return body(captured)


def _make(vectorized: Callable[[], Any]) -> tuple[Callable[[tuple], Any], tuple, str | None]:
    """Returns a body, the tensors it takes, and why it cannot be used again (or None)."""
    graph = _CapturingGraph(vectorized.__name__)
    func_graph.func_graph_from_py_func(
        graph.name, py_func_from_autograph(vectorized), (), {}, func_graph=graph
    )
    try:
        code = StraightLineCode(graph)
        return _straight_body(code, graph.structured_outputs), tuple(code.captured), None
    except NotStraightError as error:
        body, captured = _whole_body(graph)
        return body, captured, str(error) if error.has_effect else None


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


# ----------------------------------------------------------------------------- what is made


class _StraightBody:
    """Runs a vectorized gradient op by op, on the tensors it was made of."""

    def __init__(self, code: StraightLineCode, outputs: Any) -> None:
        self._run = _native.load().module.pure_function(
            "a vectorized gradient", code.function(), False, False
        )
        self._outputs = nest.map_structure(lambda output: output is not None, outputs)

    def __call__(self, captured: tuple) -> Any:
        results = iter(self._run(captured, {}))
        return nest.map_structure(lambda is_there: next(results) if is_there else None,
                                  self._outputs)  # fmt: skip


_bodies: dict[bytes, _StraightBody] = {}  # code is known by its address: none is freed


def _straight_body(code: StraightLineCode, outputs: Any) -> _StraightBody:
    """Returns the same body for the same code.

    Raises:
      NotStraightError: There are too many of them.
    """
    key = code.fingerprint + repr(nest.map_structure(lambda o: o is None, outputs)).encode()
    if key not in _bodies:
        if len(_bodies) >= _MAX_BODIES:
            raise NotStraightError("there are too many already")
        _bodies[key] = _StraightBody(code, outputs)
    return _bodies[key]


def _whole_body(graph: Any) -> tuple[Callable[[tuple], Any], tuple]:
    """Returns what runs the graph as one function, and the tensors it takes."""
    function = concrete_function_of(graph)
    inputs = tuple(function.captured_inputs)
    return lambda captured: function._call_flat([], list(captured)), inputs
