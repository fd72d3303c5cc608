"""Where the time of one call went, by the budget's clock.

    begun          entered   function's own time, and the recorder's   returned       ended
      |-- look up, settle --|----------------------------------------------|-- merge, build --|

In a step that is traced, eager's own time is what lies between `enter` and `leave`, without the
recorder's. A step with a graph has no such part: Python returns early.
"""

from __future__ import annotations

import math

from terra_tf.config import config
from terra_tf.runtime import budget

# Eager's part of what a traced call takes beside the recorder: C++ reads each op's call for that.
OF_TRACED = 0.6


class StepCosts:
    """The times of one call; begins when it is made.

    Attributes:
      begun_s: When it began.
      took_s: What the call took, once it is over.
      recorder_s: What recording has taken so far.
      num_ops: Of the whole step, if that is known in the end; else 0.
      is_co_executed: Whether the step went with the graph to its end.
      is_sample: Whether the step is traced only to know what eager takes.
    """

    recorder_s = took_s = 0.0
    num_ops = 0
    is_co_executed = is_sample = False
    _entered_s = _left_s = _limit_s = _recorded_since_s = _recorder_before_s = 0.0

    def __init__(self) -> None:
        program = budget.program
        self.begun_s = program.now()
        self._invested_before_s = program.invested_s
        program.is_in_call = True

    def enter(self) -> None:
        """The function begins to run."""
        self._entered_s = budget.program.now()

    def limit_recording(self, allowance_s: float) -> None:
        """Recording begins: it may cost what is left, in seconds."""
        self._limit_s = max(0.0, allowance_s) if config.weigh_costs else math.inf
        self._recorded_since_s = budget.program.now()
        self._recorder_before_s = self.recorder_s

    def leave(self) -> None:
        """The function has returned or raised."""
        if self._left_s == 0.0:
            self._left_s = budget.program.now()

    def end(self) -> float:
        """The call is over. Returns what it took."""
        program = budget.program
        self.took_s = took_s = program.now() - self.begun_s
        program.is_in_call = False
        return took_s

    def add_recording(self, since_s: float) -> bool:
        """Adds what recording took since then; says whether the budget is used up by it."""
        now_s = budget.program.now()
        self.recorder_s += now_s - since_s
        took_s = now_s - self._recorded_since_s
        beside_s = took_s - (self.recorder_s - self._recorder_before_s)
        return took_s - OF_TRACED * beside_s > self._limit_s

    @property
    def eager_s(self) -> float:
        """What eager has taken, or would have for a step that was traced."""
        beside_s = max(0.0, self._left_s - self._entered_s - self.recorder_s)
        return OF_TRACED * beside_s if self.recorder_s else beside_s

    @property
    def charged_s(self) -> float:
        """What was paid from the budget already, for merging and building."""
        return budget.program.invested_s - self._invested_before_s
