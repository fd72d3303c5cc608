"""What one entry signature has cost and brought, and what it may do next (docs/design/0012).

    account.trace_cost_s(graph)         what it should cost to trace a step, and to build then
    account.merge_cost_s(num_ops)       to merge a trace
    account.build_cost_s(graph)         to build a graph
    account.risk_s                      if a step leaves the graph
    account.covers(cost_s)              may something be begun that costs so much?
    account.is_quiet                    may the graph simply serve?

Everything is counted for each op, since one call may be longer than another. What steps with a
graph take is added up over a stretch of them: Python returns early and the graph runs behind, so
that one step's time says nothing, and the waits for it may lie in other steps or between them.

Guarded by the co-execution lock, but for `note_wait`.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from terra_tf.config import config
from terra_tf.runtime import budget
from terra_tf.runtime.budget import Rate, Share
from terra_tf.runtime.step_costs import OF_TRACED, StepCosts

_STRETCH_STEPS, _STRETCH_S = 16, 0.25  # whichever is first
_SLOWER = 1.05  # a graph that takes more of eager's time than this is left
_DOUBT = 0.7  # one that takes more than this is compared with eager soon
_DOUBT_OF_TRACES = 0.5  # the same while only traces say what eager takes
_SAMPLES = 3  # of eager, beside the graph, before it is judged
_FIRST_TRACE_S = 0.02  # what must be left for a trace of unknown length
_OPS_OF_FORK = 20  # that a fork is as much work to build as: a switch-case, its branches, joins
_FRESH_STRETCHES = 2  # of a new graph: what it lost in fewer may be its first steps' waits
_FRESH_LOSS_S = 0.5  # and it may be judged sooner if it lost more than this
_SMALL = 8  # an attempt that lost less than an eighth of `budget_s` needs not be earned again


class Account:
    """The account of one entry.

    Args:
      counters: The function's, which add up the entries'.

    Attributes:
      eager_s: What eager would have taken for this entry's calls.
      num_ops: Of a step, usually.
      needs_cover: Whether the graph has lost more than it has won since it was built, and has
        served for some time, or a step has left it.
      is_losing: Whether it is slower than eager, both measured several times.
      wants_eager_sample: Whether the next step should run eagerly, not measured for long.
      is_quiet: Whether none of these is so, or costs are not weighed: the graph may simply serve.
    """

    def __init__(self, counters: Any) -> None:
        self._counters = counters
        self._share: Share = counters.share
        self.eager_s = 0.0
        self.num_ops = 0.0
        self._most_ops = 0
        self._stopped_trace_s = 0.0  # of a trace that was stopped: what it would have cost
        self._has_one_length = True
        self._while_traced = Rate()  # eager's time, roughly
        self._measured = Rate(size=15)
        self._graph = Rate(size=5)
        self._record, self._merge, self._build = Rate(100e-6), Rate(size=8), Rate(size=3)
        self._outside_waits: deque[float] = deque()
        self._balance_s = 0.0  # since the graph was built
        self._attempt_s = 0.0  # lost since the entry last gave up
        self._has_run_graph = False
        self._is_fresh = True  # the graph has served for no time worth speaking of
        self._num_stretches = 0  # of the graph
        self._risk_s = 0.0  # what leaving the graph has cost
        self._begin_stretch()
        self._begin_samples()
        self._look()

    def _begin_stretch(self) -> None:
        self._steps, self._ops, self._took_s = 0, 0, 0.0

    def _begin_samples(self) -> None:
        self._since_sample_s = self._sample_after_s = 0.0
        self._num_samples = 0
        self._num_surprises = 0  # samples until eager's time is taken for known again

    # ------------------------------------------------------------ deciding

    @property
    def allowance_s(self) -> float:
        """What may still be lost: of the program's budget, and of the function's share."""
        return min(budget.program.allowance_s, self._share.allowance_s)

    def covers(self, cost_s: float) -> bool:
        """Says whether something may be begun that costs so much, and may bring nothing."""
        return not config.weigh_costs or self.allowance_s >= cost_s

    @property
    def share(self) -> Share:
        """The function's share, which all its entries pay from."""
        return self._share

    @property
    def _eager(self) -> Rate:
        enough = len(self._measured) >= _SAMPLES or not len(self._while_traced)
        return self._measured if enough else self._while_traced

    @property
    def eager_step_s(self) -> float:
        """What eager takes for a step of usual length; 0 if that is not known."""
        return self.num_ops * _usual(self._eager)

    @property
    def graph_step_s(self) -> float | None:
        """What a step of usual length takes with the graph, all waiting included."""
        rate = self._graph.usual
        return None if rate is None else self.num_ops * rate

    def trace_cost_s(self, graph: Any) -> float:
        """What recording and merging one more trace should cost, and a graph if it may be built."""
        rate = _usual(self._record) + self._merge_rate
        trace_s = max(_FIRST_TRACE_S, self._stopped_trace_s, self.num_ops * rate)
        return trace_s if graph is None else trace_s + self.build_cost_s(graph)

    def merge_cost_s(self, num_ops: int) -> float:
        """What merging a trace should cost."""
        return num_ops * self._merge_rate

    @property
    def _merge_rate(self) -> float:
        return self._merge.most or _usual(budget.program.merge)

    def build_cost_s(self, graph: Any) -> float:
        """What building a graph should cost, and that the first step leaves it at once."""
        rate = self._build.most or _usual(budget.program.build)
        return rate * max(self.num_ops, _work_of(graph)) + self.risk_s

    def _look(self) -> None:
        """Sees whether the next step has to be thought about, when something has changed."""
        self._is_fresh = self._is_fresh and self._balance_s > -_FRESH_LOSS_S
        self.needs_cover = self._balance_s < 0.0 and not self._is_fresh
        rates = self._graph.usual, self._measured.usual
        enough = len(self._graph) >= 2 and self._num_samples >= _SAMPLES
        self.is_losing = bool(enough and rates[0] and rates[1] and rates[0] > _SLOWER * rates[1])
        self.wants_eager_sample = 0.0 < self._sample_after_s <= self._since_sample_s
        asks = self.needs_cover or self.is_losing or self.wants_eager_sample
        self.is_quiet = not (asks and config.weigh_costs)

    @property
    def risk_s(self) -> float:
        """What it should cost if a step leaves the graph: as last time, or a whole replay."""
        return max(self._risk_s, self._most_ops * _usual(self._eager))

    @property
    def comparison(self) -> str:
        """What a step takes with the graph, and eagerly; for a person."""
        graph_s = self.graph_step_s
        if graph_s is None or not self.eager_step_s:
            return ""
        eager = f"{1e3 * self.eager_step_s:.2f} ms eagerly"
        return f"a step takes {1e3 * graph_s:.2f} ms with the graph, {eager}"

    @property
    def needs_recorder(self) -> bool:
        """Whether an eager sample has to count its ops: steps have other lengths."""
        return not self._has_one_length

    def earned_after(self, times_given_up: int) -> float:
        """Returns up to which `eager_s` the entry stays imperative, having given up once more."""
        lost_s, self._attempt_s = max(0.0, self._attempt_s), 0.0
        if not config.weigh_costs or lost_s <= config.budget_s / _SMALL:
            return 0.0
        factor = 2.0 ** min(times_given_up - 1, 20)
        return self.eager_s + lost_s * factor / max(config.budget_share, 1e-3)

    # ------------------------------------------------------------ learning

    def add_eager(self, costs: StepCosts) -> None:
        """A call was run as eager runs it."""
        self._add_eager_time(costs.eager_s)
        budget.program.lose(costs.end() - costs.eager_s)
        self._since_sample_s = 0.0
        self._look()
        if self._has_one_length and self.num_ops:
            self._add_sample(costs.eager_s, self.num_ops)

    def _add_sample(self, took_s: float, num_ops: float) -> None:
        is_surprise = took_s < _DOUBT * num_ops * _usual(self._eager)
        self._num_surprises = _SAMPLES if is_surprise else max(0, self._num_surprises - 1)
        if self._has_one_length and len(self._while_traced):  # it may have been a longer one
            most_s = self._while_traced.most / OF_TRACED
            took_s = min(took_s, most_s * num_ops)
        self._measured.add(took_s, num_ops)
        self._num_samples += 1
        self._look()

    def add_recording(self, costs: StepCosts) -> None:
        """A step was recorded to its end, from the start or from where it left its graph."""
        self._stopped_trace_s = 0.0
        self.invest(costs.recorder_s, "recording")

    def add(self, costs: StepCosts, with_graph: bool) -> None:
        """A step is over that was traced or co-executed, or should have been."""
        took_s = costs.end()
        if costs.is_co_executed:
            self._add_co_executed(took_s, costs.num_ops)
        elif with_graph:
            self._add_diverged(costs)
        else:
            self._add_traced(costs)

    def _add_traced(self, costs: StepCosts) -> None:
        """A step was recorded from its start."""
        eager_s = costs.eager_s
        num_ops = costs.num_ops
        self._since_sample_s = 0.0
        if num_ops:
            self._note_length(num_ops)
            self._record.add(costs.recorder_s, num_ops)
            self._while_traced.add(eager_s, num_ops)
            if costs.is_sample:
                self._add_sample(eager_s, num_ops)
        self._add_other(costs, eager_s, "recording")

    def _add_diverged(self, costs: StepCosts) -> None:
        """A step has left its graph. It has waited for the graphs of the steps before."""
        self._end_stretch(is_whole=False)
        self._is_fresh = False
        self._share.begin_limit()
        rate = self._eager.low or 0.0
        before_s = self._attempt_s
        self._add_other(costs, (costs.num_ops or self.num_ops) * rate, "leaving graphs")
        self._risk_s = max(self._attempt_s - before_s, self._risk_s / 2)

    def _add_other(self, costs: StepCosts, eager_s: float, what: str) -> None:
        self._add_eager_time(eager_s)
        self.invest(max(0.0, costs.took_s - eager_s - costs.charged_s), what)

    def _add_eager_time(self, eager_s: float) -> None:
        budget.program.add_eager(eager_s)
        self._share.add_eager(eager_s)
        self.eager_s += eager_s

    def invest(self, cost_s: float, what: str) -> None:
        """Something was paid for that eager does not need."""
        budget.program.lose(cost_s)
        self._share.lose(cost_s)
        self._counters.invested_s[what] += cost_s
        self._attempt_s += cost_s
        self._balance_s -= cost_s
        self._look()

    def _note_length(self, num_ops: int) -> None:
        self._most_ops = max(self._most_ops, num_ops)
        is_other = self.num_ops > 0 and abs(num_ops - self.num_ops) > 0.05 * self.num_ops
        if is_other and self._has_one_length:
            self._has_one_length = False
            self._measured.clear()  # nobody counted ops there
            self._begin_samples()
        self.num_ops = num_ops if self._has_one_length else (self.num_ops + num_ops) / 2

    def add_stopped_recording(self, costs: StepCosts, num_ops: int) -> None:
        """A step was not recorded to its end: it has more ops than these, twice as many say."""
        self.add_recording(costs)
        self._stopped_trace_s = 2.0 * costs.recorder_s
        self._most_ops = max(self._most_ops, 2 * num_ops)

    def add_merge(self, cost_s: float, num_ops: int) -> None:
        """A trace was merged."""
        self._merge.add(cost_s, num_ops)
        budget.program.merge.add(cost_s, num_ops)
        self.invest(cost_s, "merging")

    def add_build(self, cost_s: float, graph: Any, is_done: bool = True) -> None:
        """A graph was built, or stopped in the middle: then it would have cost twice as much."""
        self.invest(cost_s, "building")
        if is_done:
            budget.program.build.add(cost_s, _work_of(graph))
        self._build.add(cost_s if is_done else 2.0 * cost_s, _work_of(graph))

    def begin_graph(self) -> None:
        """Another graph serves from now on."""
        self._end_stretch()
        self._has_run_graph = False
        self._is_fresh, self._num_stretches = True, 0
        self._balance_s = 0.0
        self._graph.clear()
        self._begin_samples()
        self._look()

    def begin_trial(self) -> None:
        """The graph is tried again: what it took before may be long ago, eager was measured."""
        self._end_stretch()
        self._balance_s = 0.0
        self._graph.clear()
        self._num_samples = min(self._num_samples, _SAMPLES)
        self._look()

    def _add_co_executed(self, took_s: float, num_ops: int) -> None:
        """A step was left to the graph, and matched to its end."""
        if not self._has_run_graph:
            self._has_run_graph = True
            took_s = self._without_first_run(took_s, num_ops)
            self._share.begin_limit()
        if num_ops != self.num_ops:
            self._note_length(num_ops)
        self._steps += 1
        self._ops += num_ops
        self._took_s += took_s
        if self._steps >= _STRETCH_STEPS or self._took_s >= _STRETCH_S:
            self._end_stretch()

    def _without_first_run(self, took_s: float, num_ops: int) -> float:
        """TensorFlow prepares a graph when it runs for the first time: that belongs to building."""
        eager_s = num_ops * _usual(self._eager)
        extra_s = max(0.0, took_s - eager_s)
        self.invest(extra_s, "building")
        self._balance_s += extra_s
        self._look()
        return took_s - extra_s

    def note_wait(self, waited_s: float) -> None:
        """Between two steps, some thread has waited for a graph of this entry."""
        self._outside_waits.append(waited_s)

    def _end_stretch(self, is_whole: bool = True) -> None:
        """Adds up the steps of the latest stretch; one that is not whole says little of the graph.

        Args:
          is_whole: Whether it says what the graph takes.
        """
        ops, took_s, steps = self._ops, self._took_s, self._steps
        self._begin_stretch()
        if steps == 0:
            return
        while self._outside_waits:
            took_s += self._outside_waits.popleft()
        rate = self._eager.low
        eager_s = took_s if rate is None else max(ops, steps) * rate
        budget.program.add_graph(eager_s, took_s)
        self._share.add_graph(eager_s, took_s, steps)
        self.eager_s += eager_s
        self._counters.saved_s += eager_s - took_s
        self._attempt_s -= eager_s - took_s
        self._balance_s += eager_s - took_s
        self._num_stretches += 1
        self._is_fresh = self._is_fresh and self._num_stretches < _FRESH_STRETCHES
        if is_whole:
            self._graph.add(took_s, max(ops, steps))
        self._since_sample_s += took_s
        self._plan_sample(max(ops, steps) / steps)
        self._look()

    def _plan_sample(self, num_ops: float) -> None:
        """Decides how long the graph runs before eager is measured again beside it.

        Sooner where it is in doubt which is faster, and ever more rarely as the program goes on: so
        often that little is lost before a change shows, and so rarely that the samples do not.
        """
        graph, eager = _usual(self._graph), _usual(self._eager)
        doubt = _DOUBT if self._eager is self._measured else _DOUBT_OF_TRACES
        is_in_doubt = graph > doubt * eager or self._num_surprises > 0
        least_s, share, of_all = (0.1, 0.05, 0.003) if is_in_doubt else (1.0, 0.01, 0.01)
        recorder = _usual(self._record) if self.needs_recorder else 0.0
        extra_s = max(0.0, eager - graph + recorder) * num_ops
        self._sample_after_s = max(least_s, extra_s / share, of_all * self.eager_s)


def _work_of(graph: Any) -> float:
    """How much there is to build: ops, and the forks between them."""
    return len(graph.nodes) + _OPS_OF_FORK * graph.num_forks


def _usual(rate: Rate) -> float:
    return rate.usual or 0.0
