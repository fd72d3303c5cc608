"""What one operation costs: with the hook off, and when co-execution matches it.

A generated op wrapper is a little Python around `pywrap_tfe.TFE_Py_FastPathExecute`, which the hook
replaces. Its own cost is found by putting a stand-in there that returns a ready tensor at once,
and taking the stand-in's cost away again; what a matched op costs beyond that is the hook's price.

A replayed call of the public API runs no Python of TensorFlow's but the line that hands it to
native code. The stand-in for that is the same line with a native function that does nothing.
All of it is CPU time of Python's thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import operator
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.ops import gen_math_ops

import terra_tf as terra
from benchmarks.report import Section
from benchmarks.timing import Sampler, interleave, per_step, speedups
from terra_tf.runtime import interception

_NUM_OPS_IN_LOOP = 200
_NUM_LOOP_TURNS = 500
_NUM_OPS_IN_CHAIN = 200
_NUM_CHAIN_TURNS = 60
_CHAINS_PER_TURN = 5
_MAX_STEPS_BEFORE_CO_EXECUTION = 40


def off_overhead() -> Section:
    """Compare an eager op with the hook installed but off to one without the hook."""
    x = tf.constant(np.ones((8, 8), np.float32))

    def run_loop(turn: int) -> None:
        del turn
        for _ in range(_NUM_OPS_IN_LOOP):
            gen_math_ops.add_v2(x, x)

    def after(change_hook: Callable[[], None]) -> Callable[[], None]:
        def prepare() -> None:
            change_hook()
            run_loop(0)  # CPython specializes the calls anew.

        return prepare

    was_installed = interception.is_installed()
    samplers = {
        "hook_absent": per_step(run_loop, _NUM_OPS_IN_LOOP, prepare=after(interception.uninstall)),
        "hook_off": per_step(run_loop, _NUM_OPS_IN_LOOP, prepare=after(interception.install)),
    }
    try:
        timings = interleave(samplers, num_turns=_NUM_LOOP_TURNS, num_warmup_turns=10)
    finally:
        (interception.install if was_installed else interception.uninstall)()
    return Section(
        name="off_overhead",
        what="one eager AddV2 of float32[8, 8]",
        unit="us",
        baseline="hook_absent",
        timings=timings,
        findings={"overhead_percent": 100 * (1 / speedups(timings, "hook_absent")["hook_off"] - 1)},
        notes=["target: under 3 percent"],
    )


def matched_op() -> Section:
    """Measure a matched op beyond its Python wrapper, without a tape."""
    return _matched_op("matched_op", use_tape=False)


def matched_op_with_tape() -> Section:
    """Measure a matched op beyond its Python wrapper, recorded on a tape."""
    return _matched_op("matched_op_with_tape", use_tape=True)


def replayed_call() -> Section:
    """Measure a replayed call of `tf.add` or `tf.tanh` beyond the line that hands it over."""
    return _replayed_call("replayed_call", use_tape=False)


def replayed_call_with_tape() -> Section:
    """Measure the same with a tape that records it."""
    return _replayed_call("replayed_call_with_tape", use_tape=True)


def _replayed_call(name: str, *, use_tape: bool) -> Section:
    what = f"one call of a chain of {_NUM_OPS_IN_CHAIN} tf.add and tf.tanh, Python side only"
    chains = {
        "eager": _TimedChain(use_tape, tf.add, tf.tanh),
        "stand_in": _TimedChain(False, _do_nothing_natively, _do_nothing_natively),
        "replayed": _TimedChain(use_tape, tf.add, tf.tanh),
    }
    function = terra.function(chains["replayed"])
    failure = _reach_co_execution(function)
    if failure is not None:
        return Section(name=name, what=what, unit="us", failure=failure)
    samplers = {
        "eager": chains["eager"].sampler(chains["eager"]),
        "stand_in": chains["stand_in"].sampler(chains["stand_in"]),
        "replayed": chains["replayed"].sampler(function),
    }
    timings = interleave(samplers, num_turns=_NUM_CHAIN_TURNS, num_warmup_turns=5)
    beyond_us = 1e6 * (timings["replayed"].median_s - timings["stand_in"].median_s)
    stats = function.stats()
    counts = {call: n for call, n in stats.calls_replayed.items() if n}
    is_replayed = set(counts) == {"tf.add", "tf.tanh"} and stats.phase == "co-execution"
    return Section(
        name=name,
        what=what,
        unit="us",
        timings=timings,
        findings={"replayed_beyond_wrapper_us": beyond_us},
        notes=["target: replayed_beyond_wrapper under 1 us"],
        details={"stats": dataclasses.asdict(stats)},
        failure=None if is_replayed else f"not replayed: {stats}",
    )


def _do_nothing_natively(*args: Any, **kwargs: Any) -> Any:
    target = operator.is_
    return target(args, kwargs)


def _matched_op(name: str, *, use_tape: bool) -> Section:
    what = f"one op of a chain of {_NUM_OPS_IN_CHAIN} AddV2 and Tanh, Python side only"
    functions = (gen_math_ops.add_v2, gen_math_ops.tanh)
    eager, delegated = _TimedChain(use_tape, *functions), _TimedChain(use_tape, *functions)
    function = terra.function(delegated)
    failure = _reach_co_execution(function)
    if failure is not None:
        return Section(name=name, what=what, unit="us", failure=failure)
    samplers = {
        "eager": eager.sampler(eager),
        "stand_in": _with_stand_in(eager.sampler(eager)),
        "co_execution": delegated.sampler(function),
    }
    timings = interleave(samplers, num_turns=_NUM_CHAIN_TURNS, num_warmup_turns=5)
    stand_in_us = 1e6 * _stand_in_cost_s()
    wrapper_us = 1e6 * timings["stand_in"].median_s - stand_in_us
    beyond = {
        f"{contestant}_beyond_wrapper_us": 1e6 * timings[contestant].median_s - wrapper_us
        for contestant in ("eager", "co_execution")
    }
    stats = function.stats()
    return Section(
        name=name,
        what=what,
        unit="us",
        timings=timings,
        findings={"stand_in_alone_us": stand_in_us, "wrapper_us": wrapper_us, **beyond},
        notes=[f"target: co_execution_beyond_wrapper under {2 if use_tape else 1} us"],
        details={"stats": dataclasses.asdict(stats)},
        failure=None if stats.phase == "co-execution" else f"left co-execution: {stats}",
    )


class _TimedChain:
    """A step that runs a straight chain of ops and notes how long Python took over it.

    In CPU time of Python's thread: nothing in the chain waits, and on two cores the kernels of a
    step that runs beside it would take turns with it.
    """

    def __init__(self, use_tape: bool, add: Callable, tanh: Callable):
        self._chain = _straight_chain(_NUM_OPS_IN_CHAIN, add, tanh)
        self._use_tape = use_tape
        self._elapsed_s: list[float] = []

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() if self._use_tape else contextlib.nullcontext() as tape:
            if tape is not None:
                tape.watch(x)
            start_s = time.thread_time()
            y = self._chain(x)
            self._elapsed_s.append(time.thread_time() - start_s)
        return y

    def sampler(self, step: Callable[[tf.Tensor], tf.Tensor]) -> Sampler:
        """Return a sampler that runs `step`, this chain or its decorated form, and reads it."""
        x = tf.constant(np.full((8, 8), 0.1, np.float32))

        def sample(turn: int) -> float:
            del turn
            self._elapsed_s.clear()
            for _ in range(_CHAINS_PER_TURN):
                result = step(x)
                if isinstance(result, tf.Tensor):
                    result.numpy()
            return float(np.median(self._elapsed_s)) / _NUM_OPS_IN_CHAIN

        return sample


def _straight_chain(
    num_ops: int, add: Callable, tanh: Callable
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a function of `num_ops` ops, one a line: a loop would add the price of its forks."""
    lines = ["def chain(x):", *["    x = add(x, x)", "    x = tanh(x)"] * (num_ops // 2)]
    source = "\n".join([*lines, "    return x"])
    namespace = {"add": add, "tanh": tanh}
    exec(compile(source, "<straight chain>", "exec"), namespace)
    return namespace["chain"]


def _reach_co_execution(function: Any) -> str | None:
    x = tf.constant(np.full((8, 8), 0.1, np.float32))
    for _ in range(_MAX_STEPS_BEFORE_CO_EXECUTION):
        function(x).numpy()
        if function.stats().phase == "co-execution":
            return None
    return f"no co-execution after {_MAX_STEPS_BEFORE_CO_EXECUTION} steps: {function.stats()}"


@contextlib.contextmanager
def _stand_in() -> Iterator[Callable]:
    """Replace fast-path execution by a function that returns the same ready tensor every time."""
    ready = tf.constant(np.ones((8, 8), np.float32))
    replaced = pywrap_tfe.TFE_Py_FastPathExecute
    pywrap_tfe.TFE_Py_FastPathExecute = lambda *args: ready
    try:
        yield pywrap_tfe.TFE_Py_FastPathExecute
    finally:
        pywrap_tfe.TFE_Py_FastPathExecute = replaced


def _with_stand_in(sampler: Sampler) -> Sampler:
    def sample(turn: int) -> float:
        with _stand_in():
            return sampler(turn)

    return sample


def _stand_in_cost_s() -> float:
    """Return the seconds that a call of the stand-in takes by itself."""
    with _stand_in() as stand_in:

        def call_it(turn: int) -> None:
            del turn
            for _ in range(_NUM_OPS_IN_LOOP):
                stand_in(None, "AddV2", None, None, None)

        def do_nothing(turn: int) -> None:
            del turn
            for _ in range(_NUM_OPS_IN_LOOP):
                pass

        samplers = {
            "call": per_step(call_it, _NUM_OPS_IN_LOOP),
            "nothing": per_step(do_nothing, _NUM_OPS_IN_LOOP),
        }
        timings = interleave(samplers, num_turns=50, num_warmup_turns=5)
    return timings["call"].median_s - timings["nothing"].median_s
