"""`tf.custom_gradient` in steps, without the Python around the user's where that does nothing.

The user's function and its gradient run in every step. Around them TensorFlow flattens and packs,
asks of each tensor whether it is composite, and reads the gradient function's signature, which is
four fifths of what a small one costs. Of plain tensors and variables all of this hands its input
on. What is recorded, and in which order, is as in TensorFlow (`_eager_mode_decorator` of
tensorflow/python/ops/custom_gradient.py); anything else goes TensorFlow's way.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from terra_tf._tf_internals import (
    EagerTensor,
    ResourceVariable,
    composite_tensor_gradient,
    custom_gradient,
    identity,
    nest,
    ops,
    record,
    tf_inspect,
)
from terra_tf.config import config

_PLAIN = (EagerTensor, ResourceVariable)


def hook(native: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    """Returns what stands for TensorFlow's `_eager_mode_decorator`."""

    def decorator(function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        if native.current_controller() is None or not _is_plain(function, args, kwargs):
            return original(function, args, kwargs)
        return _run(function, args)

    return decorator


def _is_plain(function: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Says whether it is the user's, of plain tensors and variables.

    What TensorFlow's own functions record is known, and recorded again (docs/design/0009).
    """
    if kwargs or not config.replay_calls or not all(type(arg) in _PLAIN for arg in args):
        return False
    module = getattr(function, "__globals__", {}).get("__name__", "")
    return not module.startswith("tensorflow.")


def _run(function: Callable[..., Any], args: tuple) -> Any:
    with record.VariableWatcher() as watcher:
        result, gradient = function(*args)
    watched = {variable.ref() for variable in watcher.watched_variables()}
    variables = [
        each.deref() for each in watched if all(each.deref() is not arg for arg in args)
    ]
    _check_signature(gradient, variables)
    is_single = type(result) is EagerTensor
    results = [result] if is_single else _flat_tensors(result)
    outputs = [identity(each) for each in results]
    inputs = [ops.convert_to_tensor(each) for each in (*args, *variables)]

    # Of the result, its structure: one tensor has none.
    of = functools.partial(
        _gradients_of, gradient, None if is_single else result, len(args), variables
    )
    record.record_operation(function.__name__, outputs, inputs, of)
    if is_single:
        return outputs[0]
    return nest.pack_sequence_as(result, _replaced(result, outputs))


def _check_signature(gradient: Any, variables: list) -> None:
    if type(gradient) is types.FunctionType and not variables:
        return
    signature = tf_inspect.getfullargspec(gradient)
    takes = "variables" in signature.args or "variables" in signature.kwonlyargs
    if variables and not takes and not signature.varkw:
        raise TypeError(
            "@tf.custom_gradient grad_fn must accept keyword argument 'variables', "
            f"since function uses variables: {variables}"
        )


def _looks_like_tensorflows(function: Any) -> Any:
    """Puts a function's code into TensorFlow's file: tracebacks leave out what is in there."""
    function.__code__ = function.__code__.replace(
        co_filename=custom_gradient.__file__, co_name="actual_grad_fn"
    )
    return function


@_looks_like_tensorflows
def _gradients_of(
    gradient: Any, result: Any, num_args: int, variables: list, *upstream: Any
) -> list:
    if result is not None:
        upstream = tuple(_replaced(result, upstream))
    of_variables: Any = []
    if variables:
        of_inputs, of_variables = gradient(*upstream, variables=variables)
        if len(of_variables) != len(variables):
            raise ValueError(
                "Must return gradient for each variable from @custom_gradient grad_fn."
            )
    else:
        of_inputs = gradient(*upstream)
    flat = [of_inputs] if type(of_inputs) is EagerTensor else _flat_tensors(of_inputs)
    if len(flat) != num_args:
        raise ValueError(
            f"custom_gradient function expected to return {num_args} "
            f"gradients, but returned {len(flat)} instead."
        )
    return flat + of_variables


def _flat_tensors(structure: Any) -> list:
    flat: list = composite_tensor_gradient.get_flat_tensors_for_gradients(nest.flatten(structure))
    return flat


def _replaced(structure: Any, tensors: Any) -> list:
    replaced: list = composite_tensor_gradient.replace_flat_tensors_for_gradients(
        nest.flatten(structure), tensors
    )
    return replaced
