"""Raises an exception at the k-th line of Terra's own Python, as a signal's handler could.

    with raising_at(k) as injection:
        step(x)
    injection.where   the line, or None if fewer were run

A tracing function counts the lines that are run in `terra_tf/` on this thread; at the k-th it
raises, and Python runs on as if the line had.
"""

import contextlib
import dataclasses
import pathlib
import sys

import terra_tf

PACKAGE = str(pathlib.Path(terra_tf.__file__).parent)


@dataclasses.dataclass
class Injection:
    """What has been done: how many lines were run before, and where it was raised."""

    number: int
    error: type[BaseException]
    num_lines: int = 0
    where: str | None = None


@contextlib.contextmanager
def raising_at(number, error=KeyboardInterrupt):
    """Raise `error` at line `number` (counted from 0) that is run in the package."""
    injection = Injection(number, error)

    def on_line(frame, event, _):
        if event == "line":
            injection.num_lines += 1
            if injection.num_lines > number and injection.where is None:
                code = frame.f_code
                name = code.co_filename[len(PACKAGE) + 1 :]
                injection.where = f"{name}:{frame.f_lineno} in {code.co_name}"
                sys.settrace(None)
                raise error(f"at line {number}: {injection.where}")
        return on_line

    def on_call(frame, event, _):
        return on_line if frame.f_code.co_filename.startswith(PACKAGE) else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        yield injection
    finally:
        sys.settrace(before)
