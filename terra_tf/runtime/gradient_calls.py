"""`GradientTape.gradient` in steps, without the Python around the tape where that does nothing.

For each source and target TensorFlow looks for composite tensors, asks whether it can be trained,
and packs and unpacks structures: 0.6 ms for the variables of a small GPT (docs/design/0009). For
one tensor and a flat list of plain variables (Keras' own, too) and tensors all of this hands its
input on, so the tape is asked at once. Anything else goes TensorFlow's way.
"""

from __future__ import annotations

import sys
import types
from typing import Any

from terra_tf._tf_internals import EagerTensor, ResourceVariable, backprop, dtypes, pywrap_tfe
from terra_tf.runtime.swapped_code import SwappedCode

_FLOATING = frozenset(
    {dtypes.float16, dtypes.bfloat16, dtypes.float32, dtypes.float64}
    | {dtypes.complex64, dtypes.complex128}
)


def hook(native: Any) -> SwappedCode:
    """Returns what swaps the method's code, and puts it back."""

    def make_target(original: types.FunctionType) -> Any:
        def gradient(args: tuple, kwargs: dict[str, Any]) -> Any:
            if native.current_controller() is None or not _is_plain(args, kwargs):
                return original(*args, **kwargs)
            return _ask_tape(*args)

        return gradient

    return SwappedCode(backprop.GradientTape.gradient, make_target)


def _is_plain(args: tuple, kwargs: dict[str, Any]) -> bool:
    if kwargs or len(args) != 3:
        return False
    tape, target, sources = args
    if type(tape) is not backprop.GradientTape or tape._tape is None or tape._recording:
        return False
    if type(target) is not EagerTensor or target.dtype not in _FLOATING:
        return False
    return type(sources) is list and all(map(is_plain_source, sources))


def is_plain_source(source: Any) -> bool:
    """Says whether it is a tensor or a variable of floats, and nothing that is made of some."""
    kind = type(source)
    if kind is EagerTensor:
        return source.dtype in _FLOATING
    if kind is not ResourceVariable:
        if kind is not _keras_variable():
            return False
        source = source._value
    return type(source) is ResourceVariable and source._dtype in _FLOATING


def _keras_variable() -> type | None:
    """Returns the class of Keras 3's variables, if the program has imported it."""
    return getattr(sys.modules.get("keras.src.backend"), "Variable", None)


def _ask_tape(tape: Any, target: Any, sources: list[Any]) -> list[Any]:
    handles = [s if type(s) is EagerTensor else s.handle for s in sources]
    gradients: list[Any] = pywrap_tfe.TFE_Py_TapeGradient(
        tape._tape._tape, [target], handles, None, list(sources), "none"
    )
    if not tape._persistent:
        tape._watched_variables = tape._tape.watched_variables()
        tape._tape = None
    return gradients
