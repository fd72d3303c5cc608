"""A terra function that Keras calls while it builds a graph of its training step: said once."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Iterator

from terra_tf.errors import format_message

# Where a library calls a model's step, and what to write so that it calls it eagerly.
_CALLERS = {
    "keras/src/backend/tensorflow/trainer.py": (
        "one_step_on_data",
        "terra_tf.keras.accelerate(model), after or before compile()",
    ),
    "tf_keras/src/engine/training.py": (
        "run_step",
        "model.compile(..., run_eagerly=True)",
    ),
}
_FUNCTION_OF_THE_USERS = "polymorphic_function/polymorphic_function.py"


def warn_if_keras_traces(name: str) -> bool:
    """Warns where Keras' own `tf.function` is about to freeze a function, and says whether.

    A `tf.function` of the program's in between is what the program asked for: nothing is said.
    """
    for frame in _frames():
        file = frame.f_code.co_filename.replace("\\", "/")
        if file.endswith(_FUNCTION_OF_THE_USERS):
            return False
        for path, (caller, suggestion) in _CALLERS.items():
            if file.endswith("/" + path) and frame.f_code.co_name == caller:
                _warn(name, suggestion)
                return True
    return False


def _frames() -> Iterator[types.FrameType]:
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _warn(name: str, suggestion: str) -> None:
    message = format_message(
        f"Keras builds a graph of its step, and {name} in it: its Python will not run again",
        "TERRA-KERAS-GRAPH",
        why="the model was compiled without run_eagerly=True, so this is tf.function.",
        suggestions=[suggestion],
    )
    warnings.warn(message, UserWarning, stacklevel=4)
