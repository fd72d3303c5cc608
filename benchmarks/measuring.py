"""Measure one program in one size, all modes in this process; the supervisor runs it in its own.

First every mode runs the same few steps, one mode after the other, and its losses and Python state
are compared with eager's. Those that agree go on: they take turns, step by step, until none of them
traces or builds anything any more (the warm-up), and then for as many timed steps as are wanted.
Everything that happens is told at once as an *event*, a dict that JSON can hold, so that nothing is
lost when the process is killed:

    measure(Spec("gpt2", "tiny", ("eager", "terra")), emit=print)

| event | with | means |
|---|---|---|
| `begin` | mode, phase | a step of the mode begins, or its program is built |
| `step` | mode, phase, seconds, loss, counters | it has ended |
| `compared` | mode, loss_max_abs_diff | its losses have been compared with eager's |
| `checked` | mode, loss_max_abs_diff, peak_rss_mb | the mode agrees with eager, so far |
| `failed` | mode, status, error | it is `wrong`, or raised (`error`); it is not run any more |
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.modes import MODES
from benchmarks.programs.paper import PAPER_PROGRAMS
from benchmarks.timing import balanced_orders

Emit = Callable[[dict[str, Any]], None]

CHECK, WARMUP, TIMED = "check", "warmup", "timed"
_QUIET_STEPS = 10
_LARGEST_TOLERANCE = 1e-2
_STATUS = pathlib.Path("/proc/self/status")
_CLEAR_PEAK = pathlib.Path("/proc/self/clear_refs")


@dataclasses.dataclass(frozen=True)
class Spec:
    """What to measure.

    program, size, modes: names; "eager" is first among the modes.
    steps: timed steps per mode.
    check_steps: steps whose losses are compared with eager's.
    warmup_steps: the most steps of the warm-up.
    relative_tolerance: how far the first loss may be from eager's, relative to it. What is allowed
      doubles with every step, up to 1e-2, for training multiplies differences of rounding: DCGAN's
      grow from 1e-7 to 1e-3 within ten steps.
    absolute_tolerance: what losses may differ by in addition.
    """

    program: str
    size: str
    modes: tuple[str, ...]
    steps: int = 30
    check_steps: int = 15
    warmup_steps: int = 60
    relative_tolerance: float = 1e-5
    absolute_tolerance: float = 1e-5
    seed: int = 0


class WrongError(Exception):
    """A mode's losses or Python state are not eager's."""


class Contestant:
    """One mode with a program of its own: model, optimizer, data and generators are fresh."""

    def __init__(self, mode: str, spec: Spec, emit: Emit):
        self.mode, self._emit = mode, emit
        self._handlers = MODES[mode]
        self.losses: list[float] = []
        self.last_changes = 0
        self.num_quiet_steps = 0
        emit({"event": "begin", "mode": mode, "phase": CHECK})
        paper_program = PAPER_PROGRAMS[spec.program]
        self.program = paper_program.make(self._handlers.wrap, spec.size, spec.seed)

    def run_step(self, phase: str) -> None:
        """Run the next step until its loss is read and nothing of it is left running."""
        self._emit({"event": "begin", "mode": self.mode, "phase": phase})
        start_s = time.perf_counter()
        loss = float(self.program.step(len(self.losses)))
        self._handlers.settle()
        elapsed_s = time.perf_counter() - start_s
        self.losses.append(loss)
        counters = self._handlers.read_counters(self.program.function)
        is_quiet = counters["changes"] == self.last_changes
        self.num_quiet_steps = self.num_quiet_steps + 1 if is_quiet else 0
        self.last_changes = counters["changes"]
        event = {"event": "step", "mode": self.mode, "phase": phase, "seconds": elapsed_s}
        self._emit({**event, "loss": loss, "counters": counters})

    def python_state(self) -> Any:
        """Return what the program's Python has noted down."""
        return self.program.python_state()


def measure(spec: Spec, emit: Emit) -> None:
    """Check, warm up and time all modes of a spec, telling what happens as events."""
    contestants: dict[str, Contestant] = {}
    reference = None
    for mode in spec.modes:
        check = functools.partial(_check, mode, spec, reference, emit)
        contestant = _attempt(mode, emit, check)
        if contestant is None:
            if mode == "eager":
                _give_up(spec, emit)
                return
            continue
        contestants[mode] = contestant
        reference = reference or Reference(list(contestant.losses), contestant.python_state())
    _warm_up(contestants, spec, emit)
    for turn in range(spec.steps):
        _run_round(contestants, TIMED, turn, emit)
    _compare_states(contestants, emit)


@dataclasses.dataclass(frozen=True)
class Reference:
    """What eager did in the checked steps."""

    losses: list[float]
    python_state: Any


def _attempt(mode: str, emit: Emit, action: Callable[[], Any]) -> Any:
    """Return what the action returns, or None where it failed, which is told."""
    try:
        return action()
    except WrongError as error:
        emit({"event": "failed", "mode": mode, "status": "wrong", "error": str(error)})
    except Exception as error:  # Whatever it is, it is this mode's result.
        emit({"event": "failed", "mode": mode, "status": "error", "error": summarize(error)})
    return None


def summarize(error: BaseException) -> str:
    """Return an exception's type and message in one line.

    AutoGraph puts the user's stack before the message and the original type into its last line.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    is_converted = "in user code:" in lines[0]
    message = next((line for line in lines if "Error:" in line), lines[0]) if is_converted else ""
    return message or f"{type(error).__name__}: {lines[0]}"


def _check(mode: str, spec: Spec, reference: Reference | None, emit: Emit) -> Contestant:
    memory = PeakMemory()
    contestant = Contestant(mode, spec, emit)
    for _ in range(spec.check_steps):
        contestant.run_step(CHECK)
    difference = 0.0
    if reference is not None:
        difference = max_difference(reference.losses, contestant.losses)
        emit({"event": "compared", "mode": mode, "loss_max_abs_diff": difference})
        check_losses(reference.losses, contestant.losses, spec)
        _check_state(reference.python_state, contestant.python_state())
    event = {"event": "checked", "mode": mode, "loss_max_abs_diff": difference}
    emit({**event, "peak_rss_mb": memory.peak_mb()})
    return contestant


def max_difference(reference: Sequence[float], losses: Sequence[float]) -> float:
    """Return the largest absolute difference; infinite where only one of two is finite."""
    return max((_difference(r, x) for r, x in zip(reference, losses, strict=True)), default=0.0)


def _difference(reference: float, loss: float) -> float:
    if reference == loss or (math.isnan(reference) and math.isnan(loss)):
        return 0.0
    return abs(reference - loss) if math.isfinite(reference) and math.isfinite(loss) else math.inf


def check_losses(reference: Sequence[float], losses: Sequence[float], spec: Spec) -> None:
    """Raise a WrongError at the first loss outside the tolerance."""
    for i, (expected, loss) in enumerate(zip(reference, losses, strict=True)):
        relative = min(spec.relative_tolerance * 2.0**i, _LARGEST_TOLERANCE)
        allowed = spec.absolute_tolerance + relative * abs(expected)
        if _difference(expected, loss) > allowed:
            raise WrongError(f"the loss of step {i} is {loss:.7g}; eager's is {expected:.7g}")


def _check_state(reference: Any, state: Any) -> None:
    if state != reference:
        raise WrongError(f"Python's state is {_shorten(state)}; eager's is {_shorten(reference)}")


def _check_state_of(reference: Any, contestant: Contestant) -> None:
    _check_state(reference, contestant.python_state())


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _give_up(spec: Spec, emit: Emit) -> None:
    for mode in spec.modes[1:]:
        error = "not run: there is nothing to compare with, for eager failed"
        emit({"event": "failed", "mode": mode, "status": "error", "error": error})


def _warm_up(contestants: dict[str, Contestant], spec: Spec, emit: Emit) -> None:
    for turn in range(spec.warmup_steps):
        if all(each.num_quiet_steps >= _QUIET_STEPS for each in contestants.values()):
            return
        _run_round(contestants, WARMUP, turn, emit)


def _run_round(contestants: dict[str, Contestant], phase: str, turn: int, emit: Emit) -> None:
    """Let each mode run one step, in balanced orders. A mode that raises drops out."""
    modes = list(contestants)
    orders = balanced_orders(len(modes))
    for position in orders[turn % len(orders)]:
        mode = modes[position]
        contestant = contestants[mode]
        done = _attempt(mode, emit, functools.partial(_run_step, contestant, phase))
        if done is None:
            del contestants[mode]


def _run_step(contestant: Contestant, phase: str) -> bool:
    contestant.run_step(phase)
    return True


def _compare_states(contestants: dict[str, Contestant], emit: Emit) -> None:
    """Compare Python states once more, after the timed steps."""
    if "eager" not in contestants:
        return
    reference = contestants["eager"].python_state()
    for mode, contestant in contestants.items():
        _attempt(mode, emit, functools.partial(_check_state_of, reference, contestant))


class PeakMemory:
    """How much memory a mode needs beyond what this process had when the mode began.

    The kernel's mark of the peak is reset where it allows that; else the mark of the whole process
    so far is the answer.
    """

    def __init__(self) -> None:
        self._at_import_mb = _IMPORTED_MB
        self._before_mb = _read_status_mb("VmRSS")
        self._is_reset = _reset_peak()

    def peak_mb(self) -> float:
        """Return megabytes, as if the mode had the process to itself."""
        if self._before_mb is None or self._at_import_mb is None or not self._is_reset:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
        peak_mb = _read_status_mb("VmHWM") or self._before_mb
        return self._at_import_mb + max(0.0, peak_mb - self._before_mb)


def _reset_peak() -> bool:
    try:
        _CLEAR_PEAK.write_text("5")
    except OSError:  # No such file, or a container that forbids it: the caller has another way.
        return False
    return True


def _read_status_mb(key: str) -> float | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(key + ":"):
            return float(line.split()[1]) / 1024.0
    return None


_IMPORTED_MB = _read_status_mb("VmRSS")
