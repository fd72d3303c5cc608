"""The user's source lines: where something happened, for counters, reports and errors."""

from __future__ import annotations

import os
import sys

from terra_tf.trace.code_origin import is_user_file
from terra_tf.trace.records import OpRecord


def current_user_line() -> str:
    """Returns `file.py:12 in function` of the innermost user frame of this thread, or ""."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if is_user_file(code.co_filename):
            return f"{os.path.basename(code.co_filename)}:{frame.f_lineno} in {code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def line_of(record: OpRecord) -> str:
    """Returns the user's line that ran a recorded op, or ""."""
    if record.location is None:
        return ""
    frame = record.location.user_frame()
    return f"{os.path.basename(frame.filename)}:{frame.lineno} in {frame.function}"


def add_note(error: BaseException, record: OpRecord) -> None:
    """Says in an op's error which line ran the op: it surfaces later than it happened."""
    if hasattr(error, "add_note"):  # Python 3.11
        error.add_note(f"The op {record.op_type} was run by {line_of(record)}.")
