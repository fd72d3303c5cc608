"""What co-execution has lost and won in this process, in seconds, against eager execution.

A program may lose `budget_s` + `budget_share` of what eager would have taken, and no more
(docs/design/0012). All its functions pay from one `Budget`:

    budget.program.allowance_s        what may be begun that may be lost
    budget.program.lose(cost_s)       it was
    budget.program.add_eager(s)       a stretch of the program, as long as eager's
    budget.program.add_graph(eager_s, took_s)    a stretch that was co-executed

A function that has a graph has had its chance. What it then asks for, for other paths and shapes,
is paid from its own `Share`, which grows with what it brings: a function whose paths keep changing
stops long before the program's budget is used up.

Guarded by the co-execution lock.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from terra_tf.config import config

# What is won is an estimate: an eager step that was not run has no time. Half of it may be spent.
_TRUST = 0.5
# Something may cost more than was expected of it.
_RESERVE = 0.1
# What a function may lose in any case when it has a graph, in seconds, and in its own eager steps:
# a program that has come so far will go on for as long.
_FREE_S, _FREE_STEPS = 0.2, 20


class Rate:
    """What something takes for each op of it, in seconds: the latest few measurements.

    Args:
      default: What is thought of it before it was measured, or None. It counts as one measurement
        beside the first: that one is higher than all others, since nothing is cached then.
      size: How many are kept.
    """

    __slots__ = ("_default", "_measured")

    def __init__(self, default: float | None = None, size: int = 7) -> None:
        self._default = default
        self._measured: deque[float] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._measured)

    def add(self, took_s: float, num_ops: float) -> None:
        """Notes one measurement."""
        self._measured.append(took_s / max(num_ops, 1.0))

    def clear(self) -> None:
        """Forgets what was measured."""
        self._measured.clear()

    @property
    def usual(self) -> float | None:
        """The median (the lower one of two); a pause of the machine does not move it."""
        return self._quantile(2)

    @property
    def low(self) -> float | None:
        """What at most a third of the measurements were below: for what is to be won."""
        return self._quantile(3)

    def _quantile(self, part: int) -> float | None:
        known = [*self._measured]
        if self._default is not None and len(known) < 2:
            known.append(self._default)
        return sorted(known)[(len(known) - 1) // part] if known else None

    @property
    def most(self) -> float:
        """The highest, for what must not come as a surprise."""
        return max(self._measured, default=self._default or 0.0)


class Share:
    """What one function may lose, once it has a graph: of eager's time, and of what it has won.

    Attributes:
      eager_s: What eager would have taken for all its calls so far.
      num_steps: How many calls these were.
      lost_s: What was paid above that, since there was a graph.
      won_s: What graphs took less than eager would have.
    """

    def __init__(self) -> None:
        self.eager_s = 0.0
        self.num_steps = 0
        self.lost_s = 0.0
        self.won_s = 0.0
        self._is_limited = False

    def begin_limit(self) -> None:
        """There is a graph, and it has run; from now on it counts what is paid."""
        self._is_limited = True

    @property
    def allowance_s(self) -> float:
        """What may still be lost; without end before there is a graph."""
        if not self._is_limited:
            return math.inf
        granted_s = self.free_s + config.rebuild_share * self.eager_s
        return granted_s + _TRUST * self.won_s - self.lost_s

    @property
    def free_s(self) -> float:
        """What may be lost in any case."""
        return max(_FREE_S, _FREE_STEPS * self.eager_s / max(1, self.num_steps))

    def add_eager(self, eager_s: float) -> None:
        """Adds a call that ran eagerly, or was traced."""
        self.eager_s += eager_s
        self.num_steps += 1

    def lose(self, cost_s: float) -> None:
        """Adds what was paid beyond eager's time."""
        if self._is_limited:
            self.lost_s += cost_s

    def add_graph(self, eager_s: float, took_s: float, num_steps: int) -> None:
        """Adds a stretch that was co-executed."""
        self.eager_s += eager_s
        self.num_steps += num_steps
        self.won_s += max(0.0, eager_s - took_s)
        self.lost_s += max(0.0, took_s - eager_s)


class Budget:
    """The account of one program: everything from the first call in this process on.

    Args:
      now: The clock, in seconds.

    Attributes:
      is_in_call: Whether some function of this package is at work, and takes the time itself.
      eager_s: What eager would have taken for all calls so far.
      lost_s: What was paid above that: for recording, merging, building, diverging, and for graphs
        that are slower than eager.
      invested_s: The part of it that was not lost by graphs that are slower than eager.
      won_s: What graphs took less than eager would have.
      merge, build: What these take for each op, of all functions together. A build's ops are
        weighted, see `Account`.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self.is_in_call = False
        self.eager_s = 0.0
        self.lost_s = 0.0
        self.invested_s = 0.0
        self.won_s = 0.0
        self.merge = Rate(60e-6)
        self.build = Rate(200e-6)

    @property
    def allowance_s(self) -> float:
        """What may still be lost."""
        granted_s = config.budget_s + config.budget_share * self.eager_s
        return (1.0 - _RESERVE) * granted_s + _TRUST * self.won_s - self.lost_s

    def add_eager(self, eager_s: float) -> None:
        """Adds a stretch in which the program did what eager would have done."""
        self.eager_s += eager_s

    def lose(self, cost_s: float) -> None:
        """Adds what was paid beyond that."""
        self.lost_s += cost_s
        self.invested_s += cost_s

    def add_graph(self, eager_s: float, took_s: float) -> None:
        """Adds a stretch that was co-executed."""
        self.eager_s += eager_s
        if took_s > eager_s:
            self.lost_s += took_s - eager_s
        else:
            self.won_s += eager_s - took_s


program = Budget()


def begin_program(now: Callable[[], float] = time.perf_counter) -> Budget:
    """Starts a new account, as for a program that has just begun; returns it.

    For tests: one process runs many programs there, and a test has a clock of its own.
    """
    global program
    program = Budget(now)
    return program
