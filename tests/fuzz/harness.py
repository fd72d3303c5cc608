"""Run a program eagerly and under `terra.function`, and compare call by call.

Compared are what a call returned or raised, the log of its Python side effects in order, and the
variables after it. Floats are compared bit for bit, unless the eager run vectorized a gradient:
then the run is compared within RTOL and ATOL, numbers inside of logged text included.

An op error may surface later than its op, at the latest when the call returns. In a program without
`has_synchronous_errors` the log of a call that an op error left is therefore not compared; nothing
else is let off.
"""

import contextlib
import dataclasses
import gc
import linecache
import re
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import tensorflow as tf
from tensorflow.python.ops.parallel_for import control_flow_ops as pfor_ops

import terra_tf as terra
from terra_tf.testing import Raised, describe_exception, find_difference, freeze, set_seeds
from tests.fuzz import interrupts
from tests.fuzz.tree import Program

RTOL, ATOL = 1e-5, 1e-6
BAD_PROGRAM = ("NameError", "UnboundLocalError", "SyntaxError", "AttributeError")
_NUMBER = re.compile(r"-?\d+\.\d*(?:e[-+]?\d+)?|-?\d+e[-+]?\d+")


@dataclasses.dataclass
class Call:
    """What one call left; `is_op_error` says that an op error of TensorFlow's left it.

    `between` is what an interruption raised between this call and the next.
    """

    outcome: Any
    log: Any
    variables: Any
    is_op_error: bool
    between: Raised | None = None


@dataclasses.dataclass
class ProgramRun:
    """The calls of one run, its wrapped functions, and whether it vectorized a gradient."""

    calls: list[Call]
    functions: list
    is_inexact: bool


@dataclasses.dataclass(frozen=True)
class Result:
    """What the comparison of one program found.

    Attributes:
      difference: None, or one line that says where and how eager and Terra differ.
      steps: calls of the program's decorated functions under Terra.
      co_executed_steps: how many of them were co-executed.
      bad_program: whether the program itself is nonsense, such as one that lacks a name.
      is_tolerant: whether floats were compared within a tolerance.
      raised: how many calls ended in an exception.
      is_repeatable: false if eager differs from eager (an op that returns memory nobody wrote, such
        as the Cholesky factor of a matrix that has none): then nothing can be said.
      calls_replayed: how many library calls were replayed under Terra.
      num_loops: how many loops were rolled in the last graph.
    """

    difference: str | None
    steps: int
    co_executed_steps: int
    bad_program: bool
    is_tolerant: bool
    raised: int
    is_repeatable: bool
    calls_replayed: int = 0
    num_loops: int = 0


def load(program: Program) -> Callable:
    """Compile a program and return its `make`; tracebacks show the source."""
    text, filename = program.text(), interrupts.file_of(program)
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    names: dict[str, Any] = {"__name__": f"fuzz_program_{program.seed}"}
    exec(compile(text, filename, "exec"), names)
    return names["make"]


@contextlib.contextmanager
def noting_inexact() -> Iterator[list]:
    """Yield a list that gets an entry for each thing that need not have eager's very bits.

    That is a vectorized gradient, of a jacobian (docs/limits.md); a vectorized map has them.
    """
    found: list = []
    vectorize = pfor_ops._pfor_impl

    def noting_vectorize(*args, **kwargs):
        callers = (caller.f_code.co_name for caller, _ in traceback.walk_stack(None))
        if "vectorized_map" not in callers:
            found.append(vectorize)
        return vectorize(*args, **kwargs)

    with mock.patch.object(pfor_ops, "_pfor_impl", noting_vectorize):
        yield found


def _undisturbed(i):
    return contextlib.nullcontext()


def run_program(
    program: Program, wrap: Callable, interrupting: Callable = _undisturbed
) -> ProgramRun:
    """Make the program afresh with `wrap`, all seeds set, and call it `num_calls` times.

    Call `i` runs in `interrupting(2 * i)`, which may raise at some of its lines, and what is done
    before the next in `interrupting(2 * i + 1)`.
    """
    functions = []

    def remembering_wrap(function):
        functions.append(wrap(function))
        return functions[-1]

    set_seeds(program.seed)
    make = load(program)
    with noting_inexact() as inexact:
        step, variables, log, between = make(remembering_wrap)
        calls = [
            _call_once(program, step, variables, log, between, i, interrupting)
            for i in range(program.num_calls)
        ]
        terra.synchronize()
        # Reading at the end is part of the run: nothing had to be ready before.
        calls = calls if program.reads_each_call else [_freeze_call(call) for call in calls]
        calls.append(Call(None, None, freeze(variables), False))
    if "data.Dataset" in program.text():
        gc.collect()  # Old iterators over datasets take long to destroy (tests/conftest.py).
    return ProgramRun(calls, functions, bool(inexact))


def _call_once(program, step, variables, log, between, i, interrupting):
    is_op_error = False
    try:
        with interrupting(2 * i):
            outcome = step(i)
    except BaseException as error:  # An exception is an outcome like any other.
        if isinstance(error, (KeyboardInterrupt, SystemExit)) and not program.interruptions:
            raise
        outcome = describe_exception(error)
        is_op_error = isinstance(error, tf.errors.OpError)
    call = Call(outcome, list(log), None, is_op_error)
    log.clear()
    if program.reads_each_call:
        call = _freeze_call(dataclasses.replace(call, variables=list(variables)))
    try:
        with interrupting(2 * i + 1):
            between(i)
    except BaseException as error:
        if not program.interruptions:
            raise
        call.between = describe_exception(error)
    return call


def _freeze_call(call):
    frozen = {name: freeze(getattr(call, name)) for name in ("outcome", "log", "variables")}
    return dataclasses.replace(call, **frozen)


def compare_runs(program: Program, eager: ProgramRun, other: ProgramRun) -> str | None:
    """Return None, or where and how two runs of a program differ."""
    found = _first_difference(program, eager, other)
    return found[1] if found else None


def _first_difference(program, eager, other):
    """Return None, or where the runs first differ, as for `interrupting`, and in what."""
    for i, (x, y) in enumerate(zip(eager.calls, other.calls, strict=True)):
        names = ["outcome", "log", "variables", "between"]
        if x.is_op_error and not program.has_synchronous_errors:
            names.remove("log")
        for name in names:
            pair = getattr(x, name), getattr(y, name)
            found = _compare(*pair, path=f"call {i} {name}", is_exact=not eager.is_inexact)
            if found:
                return 2 * i + (name == "between"), found
    return None


def _compare(eager, other, path, is_exact):
    if not is_exact:
        eager, other = _split_text(eager), _split_text(other)
    return find_difference(eager, other, exact=is_exact, rtol=RTOL, atol=ATOL, path=path)


def _split_text(value):
    """Return `value` with each text as its numbers and the rest, so that a tolerance can apply."""
    if isinstance(value, str) and _NUMBER.search(value):
        return [_NUMBER.sub("#", value), [float(number) for number in _NUMBER.findall(value)]]
    if isinstance(value, (list, tuple)):
        return type(value)(_split_text(item) for item in value)
    return value


def _leave_alone(function):
    return function


def _run_reference(program, wrap, reference):
    if reference == "eager":
        return run_program(program, _leave_alone)
    with terra.config.override(replay_calls=False):
        return run_program(program, wrap)


def _run_both(program, wrap, reference):
    """Return the reference's run, the other, what differs, and how to run the reference again."""
    if not program.interruptions:
        eager = _run_reference(program, wrap, reference)
        other = run_program(program, wrap)
        return eager, other, compare_runs(program, eager, other)
    under_terra = interrupts.UnderTerra(program)
    other = run_program(program, wrap, under_terra)

    def run(places):
        in_eager = interrupts.InEager(program, under_terra.found, places)
        return run_program(program, _leave_alone, in_eager), in_eager.num_ops

    def compare(eager):
        return _first_difference(program, eager, other)

    eager, difference = interrupts.find_eager_run(under_terra.found, run, compare)
    return eager, other, difference


def _is_repeatable(program, eager, wrap, reference, num_repeats=2):
    if program.interruptions:
        eager = _run_reference(program, wrap, "eager")
    repeats = (_run_reference(program, wrap, reference) for _ in range(num_repeats))
    return all(compare_runs(program, eager, repeat) is None for repeat in repeats)


def check(
    program: Program, wrap: Callable = terra.function, reference: str = "eager"
) -> Result:
    """Run a program both ways and compare.

    Args:
      program: from `profiles.generate`, or what a shrinker left of it.
      wrap: what decorates the program's functions in the run under test.
      reference: what it is compared with: "eager", or "no_replay", the same without call replay.
    """
    knobs: dict[str, Any] = {"synchronous_errors": program.has_synchronous_errors, "verify": True}
    if program.roll_loops_from is not None:
        names = ("roll_loops_from", "roll_constant_loops_from")
        knobs |= dict.fromkeys(names, program.roll_loops_from)
    with terra.config.override(**knobs):
        eager, other, difference = _run_both(program, wrap, reference)
        outcomes = [call.outcome for call in eager.calls if isinstance(call.outcome, Raised)]
        is_bad = any(outcome.type_name in BAD_PROGRAM for outcome in outcomes)
        is_repeatable = difference is None or _is_repeatable(
            program, eager, wrap, reference
        )
    stats = [function.stats() for function in other.functions if hasattr(function, "stats")]
    return Result(
        difference=difference if is_repeatable else None,
        steps=sum(found.steps for found in stats),
        co_executed_steps=sum(found.co_executed_steps for found in stats),
        bad_program=is_bad,
        is_tolerant=eager.is_inexact,
        raised=len(outcomes),
        is_repeatable=is_repeatable,
        calls_replayed=sum(sum(found.calls_replayed.values()) for found in stats),
        num_loops=stats[-1].num_loops if stats else 0,
    )
