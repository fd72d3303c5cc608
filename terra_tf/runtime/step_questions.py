"""What a native session asks its controller, or reports to it, without changing the step.

`session.StepSession` is the controller; it adds everything that does change it.
"""

from __future__ import annotations

import logging
import sys
from types import FrameType
from typing import TYPE_CHECKING, Any

from terra_tf.config import config
from terra_tf.runtime import budget, failures, gradient_markers, source_lines
from terra_tf.runtime.entry import Entry
from terra_tf.runtime.step_locations import ForkLocator
from terra_tf.runtime.tape_names import TapeNames

if TYPE_CHECKING:
    from terra_tf import _terra_native

_logger = logging.getLogger("terra_tf")


class StepQuestions:
    """Answers about one step.

    Args:
      entry: The entry signature's state.
      built: The graph that is co-executed, or None.
      native: The native session.
      stop_frame: The frame whose callees the step's locations start with.
    """

    def __init__(
        self, entry: Entry, built: Any, native: _terra_native.Session, stop_frame: FrameType
    ) -> None:
        self.entry = entry
        self.built = built
        self.native = native
        self.tape_names = TapeNames(native)
        self._stop_frame: FrameType | None = stop_frame
        self._forks: ForkLocator | None = None

    # --------------------------------------------------------- library calls

    def names(self) -> tuple[dict, Any]:
        """Returns what sums and zeros have been named so far, for calls that are replayed."""
        return self.tape_names.state()

    def guard(self, objects: list) -> Any:
        """Returns a guard of the objects' state, or why there can be none."""
        return self.entry.guard_of(objects)

    def on_impure(self, name: str, difference: str) -> None:
        """A function declared pure has done something else than in a call that looked the same.

        Raises:
          ImpureError: Always.
        """
        raise failures.impure(name, difference, source_lines.current_user_line())

    # ---------------------------------------------------------------- forks

    def current_marker(self) -> tuple:
        """CO_EXECUTION: the forward ops whose gradient functions run on this thread."""
        return tuple(gradient_markers.thread_markers().stack)

    def on_fork(self) -> tuple[list[int], list[int]]:
        """CO_EXECUTION: which nodes are known where Python is now, and in other trips of a loop?"""
        if self._forks is None:
            self._forks = ForkLocator(self.built, self.native, self._stop_frame)
        location = self._forks.look(sys._getframe(1))
        return self.built.nodes_at.get(location, []), self.built.nodes_near(location)

    def on_waited(self, awaited: int, node: int, waited_s: float) -> str:
        """Python has waited for the graph. Returns the user's line that did."""
        if not budget.program.is_in_call:
            self.entry.account.note_wait(waited_s)
        return self.entry.stats.waits.add(awaited, self.built, node, waited_s)

    def on_log(self) -> None:
        """The native session has said something that the knob `log` asks for."""
        for category, line in self.native.take_log():
            self.entry.stats.log(category, line)

    def log_rest(self) -> None:
        """Logs what was said since the last op: the step ends, or leaves its graph."""
        if config.log:
            self.on_log()

    def log_divergence(self, reason: str, detail: str) -> None:
        """Logs that the step leaves its graph, behind everything that led there."""
        self.log_rest()
        what = f"leaves its graph after {self.native.position} ops"
        self.entry.stats.log("cursor", what, reason, detail)

    def on_stall(self, node: int, waited_s: float) -> None:
        """A wait takes longer than `stall_warning_s`."""
        what = "the end of the graph"
        if 0 <= node < len(self.built.trace_graph.nodes):
            what = f"op {node} {self.built.trace_graph.nodes[node].record.op_type}"
        _logger.warning(
            "Python has waited %.1f s for %s at %s; the graph has it not computed yet",
            waited_s,
            what,
            source_lines.current_user_line(),
        )

