"""When a graph is built and dropped, when an entry gives up, and when it tries again.

Graphs are stand-ins: what is built is not looked at here, but for which paths it was made of.
"""

import logging
import types

import pytest

from terra_tf.config import config
from terra_tf.errors import ImperativeReason, Reason, UnsupportedError
from terra_tf.runtime import entry as entry_module
from terra_tf.runtime.entry import Entry
from terra_tf.runtime.stats import Counters
from terra_tf.runtime.undisturbed import FailedCallError
from terra_tf.trace.verify import check_trace_graph
from tests.unit.synthetic_traces import TraceBuilder


class Built:
    """Stands in for a BuiltGraph."""

    def __init__(self, trace_graph):
        self.trace_graph = trace_graph.snapshot()
        self.lacks = ()
        self.plan = types.SimpleNamespace(counts=None)

    def has_way(self, path):
        return path not in self.lacks


@pytest.fixture
def entry(monkeypatch):
    """An entry whose graphs are stand-ins, with the knobs that the tests count on."""
    monkeypatch.setattr(entry_module, "build_graph", lambda graph, keep_going: Built(graph))
    with config.override(
        traces_before_build=2,
        max_divergences=3,
        retry_after_steps=4,
        max_trace_ops=100,
        verify=False,
    ):
        yield Entry(Counters())


def trace(path="a", constant=1.0, keep=False):
    """Make a trace of a path, one op for each letter."""
    b = TraceBuilder()
    value = b.constant(constant)
    y = None
    for letter in path:
        y = b.op(f"Op{letter}", value)
    if keep:
        b.keep(y)
    return b.trace


def learn(entry, *paths, diverged=False):
    for path in paths:
        entry.add_trace(trace(path), diverged=diverged)
        check_trace_graph(entry.trace_graph)


def types_of(built):
    """Return the op types that a graph was built of, in order of discovery."""
    nodes = () if built is None else built.trace_graph.nodes
    return "".join(node.record.op_type[-1] for node in nodes)


def co_execute(entry, times):
    built = entry.next_graph()
    for _ in range(times):
        entry.count_co_executed(built)


def run_imperative_steps(entry):
    count = 0
    while entry.is_imperative():
        count += 1
        assert count < 10_000
    return count


def diverge(entry, times):
    for _ in range(times):
        entry.count_divergence(Reason.NEW_PATH, "", "")


# ------------------------------------------------------------- when to build


def test_entry_starts_by_tracing(entry):
    assert not entry.is_imperative()
    assert entry.next_graph() is None
    assert (entry.trace_graph, entry.current_built) == (None, None)
    assert entry.stats.phase == "tracing"


def test_graph_is_built_when_a_trace_is_covered(entry):
    learn(entry, "a")
    assert (entry.next_graph(), entry.stats.graph_builds) == (None, 0)
    assert entry.stats.phase == "tracing"
    learn(entry, "a")
    assert types_of(entry.next_graph()) == "a"
    assert (entry.stats.graph_builds, entry.stats.phase) == (1, "co-execution")
    assert entry.current_built is entry.next_graph()


def test_graph_is_built_of_every_path_seen_so_far(entry):
    learn(entry, "ab", "ac", "d")
    assert entry.next_graph() is None
    learn(entry, "ac")
    assert types_of(entry.next_graph()) == "abcd"
    assert entry.stats.graph_builds == 1


def test_tracing_goes_on_while_every_trace_is_new_but_not_forever(entry):
    paths = "abcdefghijklmnopqrst"
    limit = entry_module._MAX_TRACES
    learn(entry, *paths[: limit - 1])
    assert entry.next_graph() is None
    learn(entry, paths[limit - 1])
    assert types_of(entry.next_graph()) == paths[:limit]


def test_values_that_change_do_not_delay_a_graph(entry):
    learn(entry, "a")
    entry.add_trace(trace(constant=2.0), diverged=False)
    assert types_of(entry.next_graph()) == "a"


@pytest.mark.parametrize("num_traces", [1, 3])
def test_number_of_traces_before_a_build_is_a_knob(entry, num_traces):
    with config.override(traces_before_build=num_traces):
        for count in range(1, 4):
            learn(entry, "a")
            # The first trace is new, so a second is waited for whatever the knob says.
            assert entry.stats.graph_builds == (count >= max(num_traces, 2))


# ----------------------------------------------------------- when to build again


def test_generalized_graph_is_built_anew_at_once(entry):
    learn(entry, "a", "a")
    old = entry.next_graph()
    entry.add_trace(trace(constant=2.0), diverged=True)
    assert entry.next_graph() not in (None, old)
    assert entry.stats.graph_builds == 2
    assert "generalized" in [event.what for event in entry.stats.events]


def test_covered_trace_keeps_the_graph(entry):
    learn(entry, "a", "a")
    old = entry.next_graph()
    learn(entry, "a", diverged=True)
    assert entry.next_graph() is old
    assert entry.stats.graph_builds == 1


def test_covered_way_that_the_graph_lacks_is_in_the_next_one(entry):
    """Where an epoch cuts a block, levels move: a graph can have fewer ways than were merged."""
    learn(entry, "ab", "ab")
    built = entry.next_graph()
    learn(entry, "ab", diverged=True)
    assert entry.next_graph() is built
    built.lacks = (entry.trace_graph.last_path,)
    learn(entry, "ab", diverged=True)
    assert entry.next_graph() not in (built, None)


@pytest.mark.parametrize("is_paid_for", [False, True])
def test_new_path_is_built_at_once_if_the_graph_has_served_long_enough(entry, is_paid_for):
    learn(entry, "a", "a")
    co_execute(entry, entry_module._STEPS_THAT_PAY - (not is_paid_for))
    learn(entry, "b", diverged=True)
    assert types_of(entry.next_graph()) == ("ab" if is_paid_for else "")
    assert entry.stats.phase == ("co-execution" if is_paid_for else "tracing")
    learn(entry, "b")
    assert types_of(entry.next_graph()) == "ab"
    assert entry.stats.graph_builds == 2


def test_steps_with_an_earlier_graph_do_not_pay_for_the_next(entry):
    learn(entry, "a", "a")
    co_execute(entry, entry_module._STEPS_THAT_PAY)
    learn(entry, "b", diverged=True)
    learn(entry, "c", diverged=True)
    assert entry.next_graph() is None


def test_replaced_graph_is_current_until_its_successor_is_built(entry):
    learn(entry, "a", "a")
    old = entry.next_graph()
    learn(entry, "b", diverged=True)
    assert entry.next_graph() is None
    assert entry.current_built is old
    learn(entry, "b")
    assert entry.current_built is entry.next_graph() is not old


def test_fetches_that_were_missing_are_in_the_next_build(entry):
    learn(entry, "a", "a")
    old = entry.next_graph()
    entry.add_fetches(old, {(0, 0)})
    assert entry.next_graph() is None
    learn(entry, "a", diverged=True)
    assert entry.next_graph().trace_graph.fetches == {(0, 0)}
    assert old.trace_graph.fetches == set()


def test_fetches_of_an_older_graph_are_for_the_next_one(entry):
    learn(entry, "a", "a")
    old = entry.next_graph()
    entry.add_trace(trace(constant=2.0), diverged=True)
    entry.add_fetches(old, {(0, 0)})
    assert entry.trace_graph.fetches == {(0, 0)}
    assert entry.next_graph() is not None


def test_dropped_graph_is_built_anew(entry):
    learn(entry, "a", "a")
    old = entry.next_graph()
    entry.drop_graph(old)
    assert entry.next_graph() is None
    learn(entry, "a", diverged=True)
    assert entry.next_graph() not in (None, old)


def test_raised_location_is_noted(entry):
    entry.note_raised_location("before any trace")
    learn(entry, "a", "b")
    entry.note_raised_location(entry.trace_graph.nodes[0].key.location)
    forced = [node.forced for node in entry.trace_graph.nodes]
    assert forced == [ImperativeReason.RAISED_BEFORE] * 2  # both are at the same line


# -------------------------------------------------------------------- points


def test_divergences_in_a_row_make_it_give_up(entry):
    learn(entry, "a", "a")
    diverge(entry, 2)
    assert not entry.is_imperative()
    diverge(entry, 1)
    assert entry.stats.phase == "imperative"
    assert run_imperative_steps(entry) == 4
    assert entry.stats.fallbacks == {"new_path": 3, "too_many_divergences": 4}


@pytest.mark.parametrize("is_enough", [False, True])
def test_co_executed_steps_win_points_back(entry, is_enough):
    learn(entry, "a", "a")
    steps_between = entry_module._STEPS_PER_POINT // (1 if is_enough else 2)
    for _ in range(20):
        diverge(entry, 1)
        co_execute(entry, steps_between)
    assert entry.is_imperative() is not is_enough


def test_good_steps_are_not_saved_up(entry):
    learn(entry, "a", "a")
    co_execute(entry, 1000)
    diverge(entry, 3)
    assert entry.is_imperative()


def test_traces_cost_nothing(entry):
    learn(entry, *"abcdefg", diverged=True)
    assert not entry.is_imperative()
    assert entry.stats.fallbacks == {}


# ------------------------------------------------------- giving up and retrying


def test_it_waits_twice_as_long_each_time(entry):
    waits = []
    for num_given_up in range(5):
        diverge(entry, max(1, 3 >> num_given_up))
        waits.append(run_imperative_steps(entry))
    assert waits == [4, 8, 16, 32, 64]


def test_waiting_time_has_a_bound(entry):
    entry._num_given_up = 1000
    diverge(entry, 3)
    assert run_imperative_steps(entry) == 4 << 10


def test_it_goes_on_after_waiting_with_half_the_points(entry):
    learn(entry, "a", "a")
    diverge(entry, 3)
    run_imperative_steps(entry)
    assert entry.stats.phase == "tracing"
    assert not entry.is_imperative()
    assert types_of(entry.next_graph()) == "a"
    diverge(entry, 1)
    assert entry.is_imperative()


def test_a_graph_that_serves_long_makes_up_for_giving_up(entry):
    learn(entry, "a", "a")
    diverge(entry, 3)
    run_imperative_steps(entry)
    co_execute(entry, 1000)
    diverge(entry, 2)
    assert not entry.is_imperative()


def test_phase_stays_imperative_when_the_trace_that_made_it_give_up_comes_in(entry):
    learn(entry, "a", "a")
    diverge(entry, 3)
    learn(entry, "b", diverged=True)
    assert entry.stats.phase == "imperative"


def test_trace_that_is_too_long_makes_it_give_up(entry):
    entry.add_trace(trace("a" * 101), diverged=False)
    assert entry.stats.fallbacks == {"trace_too_long": 1}
    assert entry.trace_graph is None
    assert run_imperative_steps(entry) == 4


def test_longest_trace_that_is_allowed_is_merged(entry):
    entry.add_trace(trace("a" * 100), diverged=False)
    assert len(entry.trace_graph.nodes) == 100
    assert entry.stats.fallbacks == {}


def test_graph_that_cannot_be_built_makes_it_give_up_and_is_logged(entry, monkeypatch, caplog):
    def refuse(trace_graph, keep_going):
        raise FailedCallError(UnsupportedError("no such op"))

    monkeypatch.setattr(entry_module, "build_graph", refuse)
    with caplog.at_level(logging.WARNING, logger="terra_tf"):
        learn(entry, "a", "a")
    assert "no graph could be built" in caplog.text
    assert entry.stats.fallbacks == {"graph_build_failed": 1}
    assert (entry.stats.phase, entry.stats.graph_builds) == ("imperative", 0)
    assert "UnsupportedError: no such op" in [event.detail for event in entry.stats.events]
    assert run_imperative_steps(entry) == 4


# ------------------------------------------------------------------- counting


def test_co_executed_steps_are_counted(entry):
    learn(entry, "a", "a")
    co_execute(entry, 5)
    assert entry.stats.co_executed_steps == 5
    assert entry.stats.transitions == 1


def test_what_happened_is_noted(entry):
    learn(entry, "ab", "ac", "ac")
    entry.add_trace(trace("ac", keep=True), diverged=True)
    story = [(event.what, event.detail) for event in entry.stats.events]
    assert story == [
        ("new path", "2 ops where none were known"),
        ("new path", "op 1 was not known there"),
        ("tracing -> co-execution", ""),
        ("generalized", "a new fetch of op 2"),
    ]
