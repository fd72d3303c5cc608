"""Interrupt calls at random lines of Terra's own Python, and find eager's run that fits.

An interrupted call ends somewhere in the user's function. So the eager run is interrupted too: at
the same event of the program's text (a line begun, a frame left), but nobody can tell from outside
how far the line between two events had come. `find_eager_run` tries all that it may have done:
nothing, some of its ops, all of it. If no eager run agrees with Terra's in every call, the program
differs.

Events are those of the program's own functions on the thread that called, but for lambdas, which
ops may call, and for `mapped`: without a decorator AutoGraph may run a copy of it, in another file,
where `tf.map_fn` is given it (seed 40102).
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tensorflow.python import pywrap_tfe

from tests.coexec.interruption import raising_at

ERRORS = {
    error.__name__: error
    for error in (KeyboardInterrupt, TimeoutError, SystemExit, MemoryError, RecursionError)
}
AT_THE_EVENT, AFTER_THE_LINE, NOT_AT_ALL = -1, 1 << 20, None
MAX_EAGER_RUNS = 60
_UNCOUNTED = ("<lambda>", "mapped")
_OPS = ("TFE_Py_FastPathExecute", "TFE_Py_Execute", "TFE_Py_ExecuteCancelable")


@dataclasses.dataclass(frozen=True)
class Found:
    """An interruption that has happened: after which event of the program, and what was raised."""

    num_events: int
    error: type[BaseException]
    message: str
    where: str
    has_left: bool  # the call ended in it


class UnderTerra:
    """Interrupts one run, as the program says; `found` has what happened, by place.

    Places are numbered: calls are even, what is done between two of them is odd. An interruption
    counts Terra's lines from its place on, over others if need be.
    """

    def __init__(self, program: Any) -> None:
        self._starts = dict(program.interruptions)
        self._file = file_of(program)
        self._armed: tuple[int, str] | None = None
        self.found: dict[int, Found] = {}

    @contextlib.contextmanager
    def __call__(self, i: int) -> Iterator[None]:
        self._armed = self._starts.get(i, self._armed)
        if self._armed is None:
            yield
            return
        number, name = self._armed
        raised, count = None, _Counter()
        try:
            with raising_at(number, ERRORS[name]) as injection:
                sys.settrace(_watching(self._file, count, sys.gettrace()))
                yield
        except BaseException as error:
            raised = error
            raise
        finally:
            self._armed = (number - injection.num_lines, name)
            if injection.where is not None:
                self._armed = None
                message = f"at line {number}: {injection.where}"
                has_left = type(raised) is ERRORS[name] and str(raised) == message
                self.found[i] = Found(
                    count.events, ERRORS[name], message, injection.where, has_left
                )


class InEager:
    """Interrupts the same calls of an eager run; `places` says how far each line had come.

    A place is AT_THE_EVENT, the number of ops that the line has run by then, AFTER_THE_LINE, or
    NOT_AT_ALL. `num_ops` has how many ops the lines of calls interrupted after them have run.
    """

    def __init__(self, program: Any, found: dict[int, Found], places: dict[int, Any]) -> None:
        self._file = file_of(program)
        self._found, self._places = found, places
        self.num_ops: dict[int, int] = {}

    @contextlib.contextmanager
    def __call__(self, i: int) -> Iterator[None]:
        if self._places.get(i) is NOT_AT_ALL:
            yield
            return
        count = _Counter()
        found, place = self._found[i], self._places[i]
        ops = [getattr(pywrap_tfe, name) for name in _OPS]

        def stop():
            sys.settrace(None)
            sys.setprofile(None)
            self.num_ops[i] = count.ops
            raise found.error(found.message)

        def on_event():
            if count.events == found.num_events:
                sys.setprofile(on_profile)
            is_there = count.events == found.num_events and place == AT_THE_EVENT
            if is_there or count.events > found.num_events:
                stop()

        def on_profile(frame, event, what):
            if event == "c_call" and any(what is op for op in ops):
                if count.ops >= place:
                    stop()
                count.ops += 1

        before = sys.gettrace(), sys.getprofile()
        sys.settrace(_watching(self._file, count, lambda *_: None, on_event))
        try:
            yield
        finally:
            sys.settrace(before[0])
            sys.setprofile(before[1])


@dataclasses.dataclass
class _Counter:
    events: int = 0
    ops: int = 0


def file_of(program: Any) -> str:
    """Return the file name that tracebacks give for a program."""
    return f"/fuzz/program_{program.seed}.py"


def _watching(file, count, inner, on_event=lambda: None):
    def on_own_event(frame, event, what):
        if event in ("line", "return"):
            count.events += 1
            on_event()
        return on_own_event

    def on_call(frame, event, what):
        code = frame.f_code
        if code.co_filename != file:
            return inner(frame, event, what)
        return None if code.co_name in _UNCOUNTED else on_own_event

    return on_call


def find_eager_run(
    found: dict[int, Found],
    run: Callable[[dict[int, Any]], tuple[Any, dict[int, int]]],
    compare: Callable[[Any], tuple[int, str] | None],
) -> tuple[Any, str | None]:
    """Return an eager run that agrees with Terra's and None, or the first one and what differs.

    Args:
      found: the interruptions of Terra's run.
      run: makes an eager run with the interruptions at given places; it returns the run, and how
        many ops the interrupted lines have run.
      compare: returns where the runs first differ, and in what, or None.
    """
    calls = sorted(found)
    places = {i: AFTER_THE_LINE if found[i].has_left else NOT_AT_ALL for i in calls}
    untried: dict[int, list] = {}
    best = None
    for _ in range(MAX_EAGER_RUNS):
        eager, num_ops = run(places)
        differs = compare(eager)
        if differs is None:
            return eager, None
        if best is None or differs[0] > best[1][0]:
            best = (eager, differs)
        for i in calls:
            if i not in untried:
                rest = [0, AT_THE_EVENT, *range(num_ops.get(i, 0) - 1, 0, -1)]
                untried[i] = rest if found[i].has_left else [AFTER_THE_LINE, *rest]
        open_calls = [i for i in calls if i <= differs[0] and untried[i]]
        if not open_calls:
            break
        last = open_calls[-1]
        places[last] = untried[last].pop(0)
        for i in [i for i in calls if i > last]:  # once more, from the start
            untried.pop(i)
            places[i] = AFTER_THE_LINE if found[i].has_left else NOT_AT_ALL
    told = [f"call {i / 2}: {found[i].where}, event {found[i].num_events}" for i in calls]
    return best[0], f"{best[1][1]} (interrupted: {'; '.join(told)})"
