"""What a terra function counts about itself."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

from terra_tf.runtime import logs
from terra_tf.runtime.budget import Share
from terra_tf.runtime.built_graph import BuiltGraph
from terra_tf.runtime.waits import Waits

PHASES = ("tracing", "co-execution", "imperative")


@dataclasses.dataclass(frozen=True)
class Stats:
    """A snapshot of one function's counters.

    A *step* is one call. Times are in seconds, sizes in bytes; nothing is ever reset but by
    `reset()`.

    Attributes:
      phase: "tracing", "co-execution" or "imperative": what the next step will be.
      steps: Calls that this function ran itself (not those that joined an outer step).
      traced_steps: Steps that were recorded from their start.
      co_executed_steps: Steps whose every op was matched and committed.
      graph_builds: Graphs generated.
      transitions: Changes of phase.
      fallbacks: Reason -> how often a step, or the rest of it, ran outside the graph.
      imperative_ops: Op type -> how many of the current graph's ops Python runs itself.
      num_nodes: Ops of the current graph.
      num_feeds: Tensors that Python feeds in a step.
      num_fetches: Tensors that Python gets in a step.
      num_switch_cases: Switch-Cases of the current graph.
      num_loops: Loops of the current graph.
      calls_replayed: Library function -> how often it was replayed without its Python.
      calls_not_replayed: "function: why" -> how often it was not.
      tape_ops_recorded: Ops that gradient tapes were told of in steps that began in co-execution.
      tape_ops_unrecorded: Ops that they never were told of: their gradients were replayed.
      python_stall_s: Time in which Python waited for the graph.
      graph_stall_s: Time in which some feed of the graph waited for Python.
      invested_s: What was paid that eager does not need: for recording, merging, building, and for
        leaving graphs.
      saved_s: What steps with a graph took less than eager would have; negative if more.
      python_shares: Whose Python ran in the steps that `terra.profile` saw last, as shares of the
        time in them: "program", "tensorflow", "keras", "terra_tf", "waiting". Empty before that.
    """

    phase: str
    steps: int
    traced_steps: int
    co_executed_steps: int
    graph_builds: int
    transitions: int
    fallbacks: dict[str, int]
    imperative_ops: dict[str, int]
    num_nodes: int
    num_feeds: int
    num_fetches: int
    num_switch_cases: int
    num_loops: int
    calls_replayed: dict[str, int]
    calls_not_replayed: dict[str, int]
    tape_ops_recorded: int
    tape_ops_unrecorded: int
    python_stall_s: float
    graph_stall_s: float
    invested_s: float = 0.0
    saved_s: float = 0.0
    python_shares: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happened to a function's execution, for `explain()`."""

    step: int
    what: str
    detail: str
    where: str


class Counters:
    """The mutable counters of one function, shared by its entry signatures."""

    MAX_EVENTS = 200

    def __init__(self, name: str = "a function") -> None:
        self.name = name
        self.steps = 0
        self.traced_steps = 0
        self.co_executed_steps = 0
        self.graph_builds = 0
        self.transitions = 0
        self.tape_ops_recorded = 0
        self.tape_ops_unrecorded = 0
        self.python_stall_s = 0.0
        self.graph_stall_s = 0.0
        self.invested_s: collections.Counter[str] = collections.Counter()  # by what it went to
        self.saved_s = 0.0
        self.share = Share()
        self.fallbacks: collections.Counter[str] = collections.Counter()
        self.events: collections.deque[Event] = collections.deque(maxlen=self.MAX_EVENTS)
        self._call_counts: Any = None  # native, from the first plan
        self.phase = "tracing"
        self.waits = Waits()

    def set_phase(self, phase: str, why: str = "") -> None:
        """Notes the phase the next step will be in."""
        if phase != self.phase:
            self.transitions += 1
            self.note(f"{self.phase} -> {phase}", why, "")
            self.log("phases", f"{self.phase} -> {phase}", why)
            self.phase = phase

    def count_fallback(self, reason: str, detail: str = "", where: str = "") -> None:
        """Counts that a step, or the rest of it, ran outside the graph."""
        self.fallbacks[str(reason)] += 1
        self.note(str(reason), detail, where)
        self.log("fallbacks", str(reason), detail, where and f"at {where}")

    def note(self, what: str, detail: str, where: str) -> None:
        """Adds to the story that `explain()` tells."""
        self.events.append(Event(self.steps, what, detail, where))

    def log(self, category: str, *parts: str) -> None:
        """Logs what has happened, if that category is asked for."""
        text = "; ".join(part for part in parts if part)
        logs.emit(category, "%s: step %d: %s", self.name, self.steps, text)

    def add_session(self, session: Any) -> None:
        """Adds the waiting of one co-executed step, and what its tapes were told."""
        if session.plan_is_set:
            self.tape_ops_recorded += session.num_recorded
            self.tape_ops_unrecorded += session.num_unrecorded
            self.python_stall_s += session.python_stall_s
            self.graph_stall_s += session.graph_stall_s

    def share_call_counts(self, plan: Any) -> None:
        """Lets a new plan count library calls where this function's others do."""
        self._call_counts = self._call_counts or plan.counts
        plan.counts = self._call_counts

    def _calls_replayed(self) -> dict[str, int]:
        counts = self._call_counts
        return {} if counts is None else {name: times for name, times in counts.replayed if times}

    def _calls_not_replayed(self) -> dict[str, int]:
        if self._call_counts is None:
            return {}
        return {f"{name}: {why}": times for name, why, times in self._call_counts.not_replayed}

    def snapshot(self, built: BuiltGraph | None) -> Stats:
        """Returns the counters, with the sizes of the graph in use."""
        return Stats(
            phase=self.phase,
            steps=self.steps,
            traced_steps=self.traced_steps,
            co_executed_steps=self.co_executed_steps,
            graph_builds=self.graph_builds,
            transitions=self.transitions,
            fallbacks=dict(self.fallbacks),
            imperative_ops={} if built is None else built.imperative_ops(),
            num_nodes=0 if built is None else len(built.trace_graph.nodes),
            num_feeds=0 if built is None else built.num_feeds,
            num_fetches=0 if built is None else len(built.generated.fetch_channels),
            num_switch_cases=0 if built is None else built.generated.num_switch_cases,
            num_loops=0 if built is None else len(built.generated.loops),
            calls_replayed=self._calls_replayed(),
            calls_not_replayed=self._calls_not_replayed(),
            tape_ops_recorded=self.tape_ops_recorded,
            tape_ops_unrecorded=self.tape_ops_unrecorded,
            python_stall_s=self.python_stall_s,
            graph_stall_s=self.graph_stall_s,
            invested_s=float(sum(self.invested_s.values())),
            saved_s=self.saved_s,
        )
