"""Programs as series of costs, and a runner that spends them with the policy of an entry.

Nothing is run: a `Call` says what eager, recording, merging, building and the graph would take, and
the clock goes on by what the policy decides on.
"""

import dataclasses
import types

from terra_tf.config import config
from terra_tf.errors import Reason
from terra_tf.runtime import budget
from terra_tf.runtime import entry as entry_module
from terra_tf.runtime.entry import Choice, Entry
from terra_tf.runtime.stats import Counters
from terra_tf.runtime.step_costs import OF_TRACED, StepCosts
from terra_tf.trace.trace_graph import MergeKind, MergeResult

_PARTS = 200  # in which a call is recorded, or a graph built


class Clock:
    """A clock that only a test moves."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s

    def work(self, seconds):
        self.now_s += seconds


@dataclasses.dataclass(frozen=True)
class Call:
    """What one call costs, in seconds, whichever way it is run."""

    eager_s: float
    num_ops: int = 100
    record_s: float = 0.0
    merge_s: float = 0.0
    brings: MergeKind = MergeKind.COVERED  # if it is traced
    build_s: float = 0.0  # if a graph is built after it
    graph_s: float = 0.0
    diverges: bool = False  # from whatever graph there is


class Graph:
    """Stands in for a TraceGraph: of any path it knows that it has one."""

    generation = 0

    def __init__(self):
        self.nodes, self.paths = [], []
        self.last_path = None

    @property
    def num_forks(self):
        return 5 * max(0, len(self.paths) - 1)

    def hold(self):
        return ()


class Built:
    """Stands in for a BuiltGraph."""

    def __init__(self, trace_graph):
        self.trace_graph = trace_graph
        self.plan = types.SimpleNamespace(counts=None, hold=lambda: ())

    def has_way(self, path):
        return True


class Machine:
    """Runs calls of one function by the policy, on a clock of its own.

    Attributes:
      eager_s: What eager would have taken for the calls so far.
      worst_s: The most that was ever lost beyond the share of eager's time.
    """

    def __init__(self, monkeypatch, clock=None):
        self.clock = clock or Clock()
        if clock is None:
            budget.begin_program(self.clock)
        monkeypatch.setattr(entry_module, "merge", self._merge)
        monkeypatch.setattr(entry_module, "build_graph", self._build)
        self.entry = Entry(Counters("f"))
        self.entry.trace_graph = Graph()
        self.choices = []
        self.num_stopped = 0
        self.eager_s = self.worst_s = 0.0
        self._begun_s = self.clock()
        self._call = None

    def run(self, calls):
        for call in calls:
            self.call(call)
        return self

    def call(self, call):
        self._call = call
        costs = StepCosts()
        choice = self.entry.choose()
        self.choices.append(choice)
        costs.is_sample = choice is Choice.SAMPLE and self.entry.account.needs_recorder
        if choice in (Choice.IMPERATIVE, Choice.SAMPLE) and not costs.is_sample:
            costs.enter()
            self.clock.work(call.eager_s)
            costs.leave()
            self.entry.account.add_eager(costs)
        else:
            built = self.entry.next_graph() if choice is Choice.CO_EXECUTION else None
            self._run_step(costs, built)
        self.eager_s += call.eager_s
        self.worst_s = max(self.worst_s, self.lost_s - config.budget_share * self.eager_s)

    @property
    def lost_s(self):
        return self.clock() - self._begun_s - self.eager_s

    def share(self, choice, last):
        """How many of the last calls were run so."""
        return self.choices[-last:].count(choice) / last

    def _run_step(self, costs, built):
        call, account = self._call, self.entry.account
        if built is not None and not call.diverges:
            self.clock.work(call.graph_s)
            self.entry.count_co_executed(built)
            costs.num_ops, costs.is_co_executed = call.num_ops, True
        else:
            costs.enter()
            if built is not None:
                self.clock.work(call.graph_s)
                self.entry.count_divergence(Reason.NEW_PATH, "", "")
            costs.limit_recording(account.allowance_s)
            if self._record(costs):
                costs.leave()
                costs.num_ops = call.num_ops
                account.add_recording(costs)
                trace = types.SimpleNamespace(ops=range(call.num_ops))
                if not costs.is_sample:
                    self.entry.add_trace(trace, diverged=built is not None)
            else:
                costs.leave()
                self.num_stopped += 1
                account.add_stopped_recording(costs, call.num_ops // 2)
        account.add(costs, with_graph=built is not None)

    def _record(self, costs):
        """Runs the call, recorded as far as the budget goes; says whether that was to its end."""
        is_recording = True
        for _ in range(_PARTS):
            self.clock.work(self._call.eager_s / (OF_TRACED if is_recording else 1.0) / _PARTS)
            begun_s = self.clock()
            if is_recording:
                self.clock.work(self._call.record_s / _PARTS)
                is_recording = not costs.add_recording(begun_s)
        return is_recording

    def _merge(self, graph, trace):
        self.clock.work(self._call.merge_s)
        graph.nodes = range(max(len(graph.nodes), len(trace.ops)))
        if self._call.brings is MergeKind.NEW_PATH:
            graph.paths.append(object())
        return MergeResult(self._call.brings, "")

    def _build(self, graph, keep_going):
        for _ in range(_PARTS):
            self.clock.work(self._call.build_s / _PARTS)
            keep_going()
        return Built(graph)
