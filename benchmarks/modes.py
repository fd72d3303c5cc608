"""The ways of running a program that `python -m benchmarks` compares.

    wrap = MODES["terra"].wrap
    program = PAPER_PROGRAMS["gpt2"].make(wrap, "tiny")
    MODES["terra"].read_counters(program.function)    # {"steps": 0, ...}
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

import terra_tf as terra


@dataclasses.dataclass(frozen=True)
class Mode:
    """One way of running a program.

    wrap: the decorator.
    read_counters: returns what a wrapped function counts about itself, as JSON can hold it. While
      `changes` in it is the same from step to step, the mode is not tracing or building anything.
    settle: waits for what a step has left running.
    """

    wrap: Callable[[Callable], Callable]
    read_counters: Callable[[Any], dict[str, Any]]
    settle: Callable[[], None]


def _run_eagerly(function: Callable) -> Callable:
    return function


def _count_nothing(function: Any) -> dict[str, Any]:
    return {"changes": 0}


def _count_traces(function: Any) -> dict[str, Any]:
    return {"changes": function.experimental_get_tracing_count()}


def _count_terra(function: Any) -> dict[str, Any]:
    stats = function.stats()
    left_graph = stats.steps - stats.co_executed_steps
    return {
        "changes": left_graph + stats.graph_builds,
        "steps": stats.steps,
        "co_executed_steps": stats.co_executed_steps,
        "graph_builds": stats.graph_builds,
        "fallbacks": stats.fallbacks,
        "num_nodes": stats.num_nodes,
        "num_imperative_ops": sum(stats.imperative_ops.values()),
        "python_stall_s": stats.python_stall_s,
        "graph_stall_s": stats.graph_stall_s,
    }


def _settle_nothing() -> None:
    """Eager steps and `tf.function`s on the CPU are over when they return."""


MODES = {
    "eager": Mode(_run_eagerly, _count_nothing, _settle_nothing),
    "tf_function": Mode(tf.function, _count_traces, _settle_nothing),
    "tf_function_xla": Mode(
        functools.partial(tf.function, jit_compile=True), _count_traces, _settle_nothing
    ),
    "terra": Mode(terra.function, _count_terra, terra.synchronize),
}
