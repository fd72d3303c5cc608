"""Where Python waited for the graph: which value, which line of the user's, how often, how long.

Native code says after each wait that was one (some microseconds and more) what was awaited, and
for how long. The line is read off the waiting thread's stack then, which costs a microsecond or
two of the time that was lost anyway.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import sys
from types import CodeType
from typing import Any

from terra_tf.runtime.source_lines import line_of
from terra_tf.trace.code_origin import is_user_file


class Awaited(enum.IntEnum):
    """What Python waited for; the numbers are `kernels/outputs/stall.h`'s."""

    VALUE = 0
    GO_AHEAD = 1
    END = 2


@dataclasses.dataclass(slots=True)
class Wait:
    """All waits for one thing at one line.

    Attributes:
      awaited: What kind of thing.
      op_type: The op whose value was awaited, or that had to wait; "" for the end of a step.
      made_at: The user's line that ran that op, or "".
      where: The user's line that waited, or "".
      count: How often.
      total_s: How long, together.
    """

    awaited: Awaited
    op_type: str
    made_at: str
    where: str
    count: int = 0
    total_s: float = 0.0


class Waits:
    """The waits of one function. Guarded by the GIL; any thread may add."""

    MAX_LINES = 500  # a program that makes new code at each step must not fill memory

    def __init__(self) -> None:
        self._waits: dict[tuple, Wait] = {}

    def add(self, awaited: int, built: Any, node: int, waited_s: float) -> str:
        """Adds one wait of the calling thread; returns its line, or ""."""
        code, line = _user_point()
        graph = built.trace_graph
        key = (awaited, graph.generation, node, code, line)
        wait = self._waits.get(key)
        if wait is None:
            if len(self._waits) >= self.MAX_LINES:
                return ""
            wait = self._waits[key] = _new_wait(Awaited(awaited), graph, node, code, line)
        wait.count += 1
        wait.total_s += waited_s
        return wait.where

    def longest_first(self) -> tuple[Wait, ...]:
        """Returns the waits of each line, the one that lost most time first.

        What is one line for the user may be many nodes: one for each trip of a loop, and others
        in the next graph.
        """
        merged: dict[tuple, Wait] = {}
        for wait in list(self._waits.values()):
            key = (wait.awaited, wait.op_type, wait.made_at, wait.where)
            known = merged.setdefault(key, Wait(*key))
            known.count += wait.count
            known.total_s += wait.total_s
        return tuple(sorted(merged.values(), key=lambda wait: -wait.total_s))


def _new_wait(
    awaited: Awaited, graph: Any, node: int, code: CodeType | None, line: int
) -> Wait:
    where = ""
    if code is not None:
        where = f"{os.path.basename(code.co_filename)}:{line} in {code.co_name}"
    if not 0 <= node < len(graph.nodes):
        return Wait(awaited, "", "", where)
    record = graph.nodes[node].record
    return Wait(awaited, record.op_type, line_of(record), where)


def _user_point() -> tuple[CodeType | None, int]:
    """Returns code and line of the innermost frame of the user's."""
    frame = sys._getframe(1)
    while frame is not None:
        if is_user_file(frame.f_code.co_filename):
            return frame.f_code, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return None, 0
