"""The state of one entry signature: what is known of it, and what to do next.

    choose()            how the next step runs: eagerly, traced, or with the graph
    next_graph()        the built graph to co-execute, or None: trace
    add_trace(trace)    after a traced or diverged step: merge, and build when it is time

Policy (docs/design/0012). Traced steps are merged into the TraceGraph until one is covered by
it, or brought new values and fetches only, or until `_MAX_TRACES` since the last build; then a
graph is built. A step that diverges is merged too. If the graph had served long enough to pay
for another, that is built at once; else tracing resumes. Nothing of this is begun that the
program's budget does not cover (`account`); the step runs eagerly then.

A divergence costs a point, or half a point where Python only needed one more value; a
co-executed step wins `1 / _STEPS_PER_POINT` back. At `max_divergences` points the entry gives up,
and also when its graph is slower than eager. It runs imperatively for `retry_after_steps` steps,
and until eager execution has earned what the attempt has lost; then it goes on with what it
knows. Each time it waits twice as long, and has half the points. A graph that serves for
`retry_after_steps` steps makes up for it.
"""

from __future__ import annotations

import enum
import logging
import weakref
from typing import Any

from terra_tf import _native
from terra_tf.config import config
from terra_tf.errors import ImperativeReason, Reason, TooCostlyError
from terra_tf.runtime import budget, object_state
from terra_tf.runtime.account import Account
from terra_tf.runtime.build_watch import BuildWatch
from terra_tf.runtime.built_graph import BuiltGraph, build_graph
from terra_tf.runtime.gc_pause import end_pause, without_gc
from terra_tf.runtime.plan_fit import check_built
from terra_tf.runtime.stats import Counters
from terra_tf.runtime.undisturbed import FailedCallError
from terra_tf.trace.merging import merge
from terra_tf.trace.records import TensorSpec, Trace
from terra_tf.trace.trace_graph import MergeKind, MergeResult, TraceGraph
from terra_tf.trace.verify import check_merged

_logger = logging.getLogger("terra_tf")

_STEPS_PER_POINT = 4
_STEPS_THAT_PAY = 8  # co-executed with one graph: then the next is built without waiting
# More values to fetch: the graph learns, and the set is finite.
_POINTS = {Reason.UNPLANNED_MATERIALIZATION: 0.5, Reason.LIVE_TENSOR_NOT_FETCHED: 0.5}
_MAX_GUARDED_OBJECTS = 2000
# Of a relaxed entry, until it is built although no other shape has come: maybe none will.
_TRACES_OF_ONE_SHAPE = 4
_MAX_TRACES = 16  # since the last build: then one is built of what is known, covered or not


Signature = tuple[TensorSpec, ...]  # of the argument tensors; -1 is an unknown dimension


class Choice(enum.Enum):
    """How a step runs."""

    IMPERATIVE = "eagerly"
    SAMPLE = "eagerly, to know what that takes"
    TRACING = "recorded"
    CO_EXECUTION = "with the graph"


def join_signatures(one: Signature, other: Signature) -> Signature:
    """Returns the narrowest signature that includes both, which have the same types and ranks."""
    return tuple(a.joined(b) for a, b in zip(one, other, strict=True))


class Entry:
    """One entry signature of one function. Guarded by the co-execution lock.

    Args:
      stats: Where to count.
      pattern: For a relaxed entry: the argument tensors' types, with the dimensions that vary
        unknown. It serves every call whose tensors are of these types.
      settled: How many ops a step had when such an entry of other objects had learned all that it
        does. A step that has as many is taken for known at once.
    """

    def __init__(
        self,
        stats: Counters,
        pattern: Signature | None = None,
        settled: set[int] | None = None,
    ) -> None:
        self.stats = stats
        self.pattern = pattern
        self._settled = set() if settled is None else settled
        self._has_built = False
        self._signature: Signature = ()
        self._signatures_traced: set[Signature] = set()
        self.trace_graph: TraceGraph | None = None
        self.built: BuiltGraph | None = None
        self._last_built: BuiltGraph | None = None
        # By their ids, objects whose calls may be replayed.
        self._guarded: dict[int, weakref.ref] = {}
        self.vectorized: dict[bytes, dict] = {}  # functions that were mapped (`vectorized_maps`)
        self._num_traces = 0
        self._num_traces_since_build = 0
        self._steps_with_graph = 0
        self._points = 0.0
        self._imperative_steps_left = 0
        self._num_given_up = 0
        self._why_imperative: Reason = Reason.TOO_MANY_DIVERGENCES
        self._is_merging = False
        self._has_given_up = False
        self._resumes_at_s = 0.0  # of the account's `eager_s`
        self._is_slow = False  # the graph was left for it
        self._awaits_build = False  # of what is known; the budget does not cover it yet
        self.account = Account(stats)

    # ------------------------------------------------------------ deciding

    def accept(self, signature: Signature) -> None:
        """Tells a relaxed entry of which types the next step's argument tensors are.

        If another dimension varies now, the pattern is widened, and the graph has to be.
        """
        assert self.pattern is not None
        self._signature = signature
        pattern = join_signatures(self.pattern, signature)
        if pattern != self.pattern:
            if self.built is not None:
                self.drop_graph(self.built)
            self.pattern = pattern  # last: with the graph of the old one nothing could follow

    def choose(self) -> Choice:
        """Says how the next step runs; counts it if that is not what it would like."""
        end_pause()
        if self._is_merging:
            self._forget()
        if self._has_given_up:
            return self._give_up_now()
        if self.built is not None:
            return self._choose_with_graph()
        if self._awaits_build and self._is_covered():
            self._build()
            if self._has_given_up:  # it could not be built
                return self._give_up_now()
            if self.built is not None:
                return Choice.CO_EXECUTION
        if not self._is_covered():
            return self._stay_eager()
        if self.stats.phase == "imperative":
            self.stats.set_phase("tracing", "the budget covers it")
        return Choice.TRACING

    def next_cost(self) -> tuple[str, float]:
        """Returns what would be begun next, for a person, and what it may cost in seconds."""
        account = self.account
        if self._awaits_build:
            return "building a graph", account.build_cost_s(self.trace_graph)
        if self.built is not None:
            return "another divergence", account.risk_s if account.needs_cover else 0.0
        if self._num_traces + 1 < config.traces_before_build or self.trace_graph is None:
            return "tracing", account.trace_cost_s(None)
        return "tracing and building", account.trace_cost_s(self.trace_graph)

    def _is_covered(self) -> bool:
        return self.account.covers(self.next_cost()[1])

    def _choose_with_graph(self) -> Choice:
        account = self.account
        if account.is_quiet or not config.weigh_costs:
            return Choice.CO_EXECUTION
        if account.is_losing:
            self.stats.note(str(Reason.SLOWER_THAN_EAGER), account.comparison, "")
            self._give_up(Reason.SLOWER_THAN_EAGER)
            return self._give_up_now()
        if account.needs_cover and not self._is_covered():
            return self._stay_eager()
        if account.wants_eager_sample:
            self.stats.fallbacks[str(Reason.EAGER_MEASURED)] += 1
            return Choice.SAMPLE
        return Choice.CO_EXECUTION

    def _give_up_now(self) -> Choice:
        self.is_imperative()
        return Choice.IMPERATIVE

    def _stay_eager(self) -> Choice:
        """Runs a step eagerly, because the budget does not cover what would have to be done."""
        self.stats.fallbacks[str(Reason.OVER_BUDGET)] += 1
        if self.stats.phase != "imperative":
            what, cost_s = self.next_cost()
            left_s = self.account.allowance_s
            why = f"{what} may cost {cost_s:.2f} s, and the budget has {left_s:.2f} s for it"
            self.stats.set_phase("imperative", why)
        return Choice.IMPERATIVE

    def is_imperative(self) -> bool:
        """Says whether the next step must not even be traced; counts it if so."""
        if not self._has_given_up:
            return False
        self._imperative_steps_left = max(0, self._imperative_steps_left - 1)
        self.stats.fallbacks[str(self._why_imperative)] += 1
        if self._imperative_steps_left == 0 and self.account.eager_s >= self._resumes_at_s:
            self._has_given_up = False
            self._points = 0.0
            self.account.begin_trial()
            self.stats.set_phase("tracing", "co-execution is tried again")
        return True

    def next_graph(self) -> BuiltGraph | None:
        """Returns the graph to co-execute the next step with, or None to trace it."""
        if self._is_merging:
            self._forget()
        return self.built

    def _forget(self) -> None:
        """A merge was interrupted: half of a trace is in the TraceGraph."""
        self.trace_graph = self.built = self._last_built = None
        self._awaits_build = False
        self._num_traces = self._num_traces_since_build = 0
        self._signatures_traced.clear()
        self._is_merging = False

    def hold(self, built: BuiltGraph | None) -> tuple | None:
        """Returns the tensors from outside that a step of the graph takes, so that they live on.

        None if some are gone: then the program has others in their places, and the graph is
        dropped.
        """
        held = None if built is None else built.plan.hold()
        if built is not None and held is None:
            self.drop_graph(built)
            assert self.trace_graph is not None
            self.trace_graph.hold()
            self.stats.log("graphs", "a variable or tensor that the graph took is gone")
        return held

    @property
    def imperative_for(self) -> tuple[int, float] | None:
        """For how many steps, and how many seconds of eager execution, it has given up; or None."""
        if not self._has_given_up:
            return None
        return self._imperative_steps_left, max(0.0, self._resumes_at_s - self.account.eager_s)

    @property
    def current_built(self) -> BuiltGraph | None:
        """The graph built last, which may wait for its successor; or None."""
        return self.built or self._last_built

    # ------------------------------------------------------------ learning

    def count_co_executed(self, built: BuiltGraph) -> None:
        """A step was matched to its end."""
        self.stats.co_executed_steps += 1
        self._points = max(0.0, self._points - 1 / _STEPS_PER_POINT)
        if self.built is built:
            self._steps_with_graph += 1
            if self._steps_with_graph >= config.retry_after_steps and not self._is_slow:
                self._num_given_up = 0  # that was long ago
        self.stats.set_phase("co-execution")

    def count_divergence(self, reason: Reason, detail: str, where: str) -> None:
        """A step left its graph."""
        self.stats.count_fallback(reason, detail, where)
        self._points += _POINTS.get(reason, 1.0)
        self._give_up_if_hopeless()

    def add_fetches(self, built: BuiltGraph, outputs: set[tuple[int, int]]) -> None:
        """Python needs more values than the graph delivers: the next build has them."""
        if self._is_current(built):
            assert self.trace_graph is not None
            self.trace_graph.add_fetches(outputs)
        self.drop_graph(built)

    def force(self, built: BuiltGraph, node: int, reason: ImperativeReason) -> None:
        """A node has to be imperative from the next build on."""
        if self._is_current(built):
            assert self.trace_graph is not None
            self.trace_graph.force(node, reason)
        self.drop_graph(built)

    def note_index_out_of_range(self, built: BuiltGraph, feed_slot: int) -> None:
        """A feed has held indices out of range; once that is usual, its ops can fail."""
        if not self._is_current(built):
            return
        assert self.trace_graph is not None
        for (feed, _), slot in built.feed_slots.items():
            if slot == feed_slot:
                counts = self.trace_graph.out_of_range
                counts[feed.group] = counts.get(feed.group, 0) + 1
                if not self.trace_graph.has_range(feed):
                    self.drop_graph(built)

    def _is_current(self, built: BuiltGraph) -> bool:
        """Says whether a built graph's nodes have the TraceGraph's numbers."""
        graph = self.trace_graph
        return graph is not None and graph.generation == built.trace_graph.generation

    def guard_of(self, objects: list) -> Any:
        """Returns a native guard of the objects' state, or why there can be none."""
        try:
            guard = object_state.guard_of(objects)
        except object_state.UnseenStateError as error:
            return f"changes would go unseen: {error}"
        known = {**self._guarded, **{id(thing): weakref.ref(thing) for thing in objects}}
        if len(known) > _MAX_GUARDED_OBJECTS:
            known = {i: reference for i, reference in known.items() if reference() is not None}
        if len(known) > _MAX_GUARDED_OBJECTS:
            return "too many different objects have been given to it"
        self._guarded = known
        return guard

    def drop_graph(self, built: BuiltGraph) -> None:
        """The graph must be built anew."""
        if self.built is built:
            self._last_built, self.built = self.built, None

    def note_raised_location(self, location: object) -> None:
        """An op has raised there: it runs imperatively from now on."""
        if self.trace_graph is None:
            return
        self.trace_graph.note_raised(location)
        if self.built is not None and not self.built.is_imperative_at(location):
            self.drop_graph(self.built)

    def add_trace(self, trace: Trace, diverged: bool) -> None:
        """Merges the trace of a step that was not co-executed to its end.

        Args:
          trace: The whole step, the co-executed prefix too.
          diverged: Whether it has such a prefix; its divergence has been counted.
        """
        if len(trace.ops) > config.max_trace_ops:
            self.stats.count_fallback(Reason.TRACE_TOO_LONG, f"{len(trace.ops)} ops")
            self._give_up(Reason.TRACE_TOO_LONG)
            return
        if self.trace_graph is None:
            handle_id = _native.load().module.handle_id
            self.trace_graph = TraceGraph(handle_id, self.pattern is not None)
        if not self.account.covers(self.account.merge_cost_s(len(trace.ops))):
            self.stats.note(str(Reason.OVER_BUDGET), "a trace was not merged", "")
            return
        built = self.built
        self._is_merging = True
        result = self._merge(trace)
        if built is not None and (result.kind is not MergeKind.COVERED or self._lacks_way(built)):
            self.drop_graph(built)
        self._is_merging = False  # not before the graph of what was known has gone
        self._num_traces += 1
        self._num_traces_since_build += 1
        self._signatures_traced.add(self._signature)
        if result.kind is not MergeKind.COVERED:
            self.stats.note(result.kind.value, result.detail, "")
        is_known = not self._has_built and len(trace.ops) in self._settled
        if self.built is None and (is_known or self._is_time_to_build(result.kind, diverged)):
            if result.kind is MergeKind.COVERED:
                self._settled.add(len(trace.ops))
            self._awaits_build = True
            if self._is_covered():
                self._build()
        if not self._has_given_up:
            self.stats.set_phase("tracing" if self.built is None else "co-execution")

    def _merge(self, trace: Trace) -> MergeResult:
        assert self.trace_graph is not None
        begun_s = budget.program.now()
        with without_gc():
            result = merge(self.trace_graph, trace)
        self.account.add_merge(budget.program.now() - begun_s, len(trace.ops))
        if config.verify:
            with without_gc():
                check_merged(self.trace_graph, trace)
        return result

    def _lacks_way(self, built: BuiltGraph) -> bool:
        """Says whether the graph cannot go the way of the trace just merged."""
        assert self.trace_graph is not None
        return self._is_current(built) and not built.has_way(self.trace_graph.last_path)

    def _is_time_to_build(self, kind: MergeKind, diverged: bool) -> bool:
        if self._has_given_up or self._num_traces < config.traces_before_build:
            return False
        if self._num_traces_since_build >= _MAX_TRACES:
            return True
        has_one_shape = self.pattern is not None and len(self._signatures_traced) < 2
        if has_one_shape and self._num_traces_since_build < _TRACES_OF_ONE_SHAPE:
            return False  # what depends on the shapes in Python looks as if it were constant
        if kind is MergeKind.COVERED:
            return True
        only_values = kind is MergeKind.GENERALIZED
        return only_values or (diverged and self._steps_with_graph >= _STEPS_THAT_PAY)

    def _build(self) -> None:
        assert self.trace_graph is not None
        held = self.trace_graph.hold()
        try:
            built = self._timed_build(self.trace_graph)
        except TooCostlyError as error:
            self.stats.count_fallback(Reason.OVER_BUDGET, str(error))
            return
        except FailedCallError as failed:
            _logger.warning("no graph could be built", exc_info=failed.error)
            self.stats.count_fallback(Reason.GRAPH_BUILD_FAILED, str(failed))
            self._awaits_build = False
            self._give_up(Reason.GRAPH_BUILD_FAILED)
            return
        if config.verify:
            with without_gc():
                check_built(built)
        self.built = built
        del held
        self._note_built()

    def _timed_build(self, graph: TraceGraph) -> BuiltGraph:
        """Builds a graph as long as the budget goes; notes what it has cost.

        Raises:
          TooCostlyError: It went no further.
          FailedCallError: It cannot be built.
        """
        watch = BuildWatch(self.stats.name, len(graph.nodes), self.account.allowance_s)
        is_done = False
        try:
            with without_gc():
                built = build_graph(graph, watch.check)
            is_done = True
            return built
        finally:
            self.account.add_build(watch.end(), graph, is_done)

    def _note_built(self) -> None:
        assert self.trace_graph is not None and self.built is not None
        self._awaits_build = self._is_slow = False
        self._has_built = True
        self.account.begin_graph()
        self.stats.share_call_counts(self.built.plan)
        self._num_traces_since_build = self._steps_with_graph = 0
        self.stats.graph_builds += 1
        num_ops = len(self.trace_graph.nodes)
        self.stats.log("graphs", f"a graph of {num_ops} ops was built")

    def _give_up_if_hopeless(self) -> None:
        if self._points >= max(1, config.max_divergences >> self._num_given_up):
            self._give_up(Reason.TOO_MANY_DIVERGENCES)

    def _give_up(self, reason: Reason) -> None:
        self._why_imperative = reason
        self._has_given_up = True
        self._is_slow = reason is Reason.SLOWER_THAN_EAGER
        self._imperative_steps_left = config.retry_after_steps << min(self._num_given_up, 10)
        self._num_given_up += 1
        self._resumes_at_s = self.account.earned_after(self._num_given_up)
        self._points = 0.0
        wait_s = self._resumes_at_s - self.account.eager_s
        earning = f", and until eager has run for {wait_s:.0f} s more" if wait_s > 0 else ""
        self.stats.set_phase(
            "imperative",
            f"for {self._imperative_steps_left} steps{earning}: {reason.explanation}",
        )
