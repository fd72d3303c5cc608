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
import inspect
import types
from collections.abc import Callable
from typing import Any, NamedTuple

from terra_tf import _native
from terra_tf._tf_internals import EagerTensor, backprop, nest
from terra_tf.runtime.gradient_calls import is_plain_source
from terra_tf.runtime.pfor_calls import CapturingGraph, controller_of_step, expect, whole_body
from terra_tf.runtime.straight_line_code import NotStraightError, straight_function
from terra_tf.runtime.swapped_code import SwappedCode


class _Call(NamedTuple):
    """A call of a method of a tape that has not come to `pfor` yet."""

    function: types.FunctionType
    tape: Any
    given: tuple  # what its result depends on, but for the step so far


METHODS = (backprop.GradientTape.jacobian, backprop.GradientTape.batch_jacobian)


def hook(method: types.FunctionType) -> SwappedCode:
    """Returns what swaps a method's code, and puts it back."""
    return SwappedCode(method, _jacobian)


def _jacobian(original: types.FunctionType) -> Any:
    signature = inspect.signature(original)

    def jacobian(args: tuple, kwargs: dict[str, Any]) -> Any:
        if controller_of_step() is None:
            return original(*args, **kwargs)
        call = _described(original, signature, args, kwargs)
        with expect(None if call is None else functools.partial(_run, call)):
            return original(*args, **kwargs)

    return jacobian


def _described(
    function: types.FunctionType, signature: inspect.Signature, args: tuple, kwargs: dict[str, Any]
) -> _Call | None:
    """Returns the call, or None where it is TensorFlow's to look at its arguments."""
    try:
        given = signature.bind(*args, **kwargs).arguments
        sources = nest.flatten(given["sources"] if "sources" in given else given["source"])
    except (TypeError, ValueError):
        return None
    tape, target = given["self"], given["target"]
    if type(tape) is not backprop.GradientTape or tape._tape is None:
        return None
    if tape._recording and not tape._persistent:  # its gradient stops the recording
        return None
    if not given.get("experimental_use_pfor", True) or type(target) is not EagerTensor:
        return None
    if not all(map(is_plain_source, sources)):
        return None
    handles = [s if type(s) is EagerTensor else s.handle for s in sources]
    options = str(given.get("unconnected_gradients")), given.get("parallel_iterations")
    return _Call(function, tape, (target, *handles, *options))


def _run(call: _Call, controller: Any, vectorized: Callable[[], Any]) -> Any:
    make = functools.partial(_make, vectorized)
    if call.tape._recording:
        body, captured, _ = make()
        is_kept = False
    else:
        name = f"GradientTape.{call.function.__name__}"
        tape = call.tape._tape._tape
        made, is_kept = controller.native.make_once(name, call.function, tape, call.given, make)
        body, captured = made[:2]
    _use_up(call.tape)
    return body(captured, is_kept)


def _make(vectorized: Callable[[], Any]) -> tuple[Callable[..., Any], tuple, str | None]:
    """Returns a body, the tensors it takes, and why it cannot be used again (or None)."""
    graph = CapturingGraph(vectorized.__name__)
    graph.trace(vectorized)
    try:
        function, captured = straight_function(graph)
        return _StraightBody(function, graph.structured_outputs), tuple(captured), None
    except NotStraightError as error:
        body, captured = whole_body(graph)
        return body, tuple(captured), str(error) if error.has_effect else None


def _use_up(tape: Any) -> None:
    """Leaves a tape for one gradient as its gradient does."""
    if not tape._persistent and tape._tape is not None:
        tape._watched_variables = tape._tape.watched_variables()
        tape._tape = None


class _StraightBody:
    """Runs a vectorized gradient op by op, on the tensors it was made of."""

    def __init__(self, function: Callable[..., list], outputs: Any) -> None:
        self._function = function
        self._outputs = nest.map_structure(lambda output: output is not None, outputs)

    def __call__(self, captured: tuple, is_kept: bool) -> Any:
        results = iter(self._pure(captured, {}) if is_kept else self._function(*captured))
        return nest.map_structure(lambda is_there: next(results) if is_there else None,
                                  self._outputs)  # fmt: skip

    @functools.cached_property
    def _pure(self) -> Any:
        name = "a vectorized gradient"
        return _native.load().module.pure_function(name, self._function, False, False)
