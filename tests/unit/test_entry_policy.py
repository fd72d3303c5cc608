"""When a graph is built, which one a step gets, when an entry gives up, and when it tries again.

Graphs are stand-ins: what is built from a path is not looked at here.
"""

import logging

import pytest

from terra_tf.config import config
from terra_tf.errors import Reason, UnsupportedError
from terra_tf.runtime import entry as entry_module
from terra_tf.runtime.entry import Entry
from terra_tf.runtime.stats import Counters
from terra_tf.trace.verify import check_trace_graph
from tests.unit.synthetic_traces import TraceBuilder


class Built:
    """Stands in for a BuiltGraph."""

    def __init__(self, trace_graph):
        self.trace_graph = trace_graph.snapshot()


@pytest.fixture
def entry(monkeypatch):
    """An entry whose graphs are stand-ins, with the knobs that the tests count on."""
    monkeypatch.setattr(entry_module, "build_graph", Built)
    with config.override(
        traces_before_build=2, max_divergences=3, retry_after_steps=4, max_trace_ops=100
    ):
        yield Entry(Counters())


def trace(path="a", num_ops=1, constant=1.0, keep=False):
    """Make a trace of a path, which is its ops' type."""
    b = TraceBuilder()
    value = b.constant(constant)
    for _ in range(num_ops):
        y = b.op(f"Op{path}", value)
    if keep:
        b.keep(y)
    return b.trace


def learn(entry, *paths, diverged=False):
    for path in paths:
        entry.add_trace(trace(path), diverged=diverged)
        for known in entry._paths:
            check_trace_graph(known.trace_graph)


def path_of(built):
    return None if built is None else built.trace_graph.nodes[0].record.op_type


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
    assert (entry.current, entry.current_built) == (None, None)
    assert entry.stats.phase == "tracing"


def test_graph_is_built_from_the_second_trace(entry):
    learn(entry, "a")
    assert (entry.next_graph(), entry.stats.graph_builds) == (None, 0)
    assert entry.stats.phase == "tracing"
    learn(entry, "a")
    assert path_of(entry.next_graph()) == "Opa"
    assert (entry.stats.graph_builds, entry.stats.phase) == (1, "co-execution")
    assert entry.current_built is entry.next_graph()


@pytest.mark.parametrize("num_traces", [1, 3])
def test_number_of_traces_before_a_build_is_a_knob(entry, num_traces):
    with config.override(traces_before_build=num_traces):
        for count in range(1, num_traces + 1):
            learn(entry, "a")
            assert entry.stats.graph_builds == (count == num_traces)


def test_generalized_path_is_built_anew(entry):
    learn(entry, "a", "a")
    old = entry.next_graph()
    entry.add_trace(trace(constant=2.0), diverged=True)
    assert entry.next_graph() is not old
    assert entry.stats.graph_builds == 2
    assert "generalized" in [event.what for event in entry.stats.events]


def test_covered_trace_keeps_the_graph(entry):
    learn(entry, "a", "a")
    old = entry.next_graph()
    learn(entry, "a", diverged=True)
    assert entry.next_graph() is old
    assert entry.stats.graph_builds == 1


def test_fetches_that_were_missing_are_in_the_next_build(entry):
    learn(entry, "a", "a")
    old = entry.next_graph()
    entry.add_fetches(old, {(0, 0)})
    assert entry.next_graph() is None
    learn(entry, "a", diverged=True)
    assert entry.next_graph().trace_graph.fetches == {(0, 0)}
    assert old.trace_graph.fetches == set()


def test_dropped_graph_is_built_anew(entry):
    learn(entry, "a", "a")
    old = entry.next_graph()
    entry.drop_graph(old)
    assert entry.next_graph() is None
    learn(entry, "a", diverged=True)
    assert entry.next_graph() not in (None, old)


def test_raised_location_is_noted_in_every_path(entry):
    learn(entry, "a", "b")
    entry.note_raised_location(entry.current.nodes[0].key.location)
    assert all(path.trace_graph.nodes[0].forced for path in entry._paths)


# -------------------------------------------------------------------- points


def test_divergences_in_a_row_make_it_give_up(entry):
    learn(entry, "a", "a")
    diverge(entry, 2)
    assert not entry.is_imperative()
    diverge(entry, 1)
    assert entry.stats.phase == "imperative"
    assert run_imperative_steps(entry) == 4
    assert entry.stats.fallbacks == {"new_path": 3, "too_many_divergences": 4}


def test_co_executed_steps_win_points_back(entry):
    learn(entry, "a", "a")
    built = entry.next_graph()
    for _ in range(20):
        diverge(entry, 1)
        for _ in range(entry_module._STEPS_PER_POINT):
            entry.count_co_executed(built)
    assert not entry.is_imperative()
    assert Reason.TOO_MANY_DIVERGENCES not in entry.stats.fallbacks


def test_too_few_co_executed_steps_do_not_save_it(entry):
    learn(entry, "a", "a")
    built = entry.next_graph()
    for _ in range(20):
        diverge(entry, 1)
        for _ in range(entry_module._STEPS_PER_POINT // 2):
            entry.count_co_executed(built)
    assert entry.is_imperative()


def test_good_steps_are_not_saved_up(entry):
    learn(entry, "a", "a")
    built = entry.next_graph()
    for _ in range(1000):
        entry.count_co_executed(built)
    diverge(entry, 3)
    assert entry.is_imperative()


def test_traced_steps_on_new_paths_cost_points(entry):
    learn(entry, "a", "b", "c")
    assert not entry.is_imperative()
    learn(entry, "d")
    assert entry.is_imperative()
    assert entry.stats.fallbacks == {"too_many_divergences": 1}


def test_new_path_after_a_divergence_costs_no_second_point(entry):
    learn(entry, "a", "a")
    for path in "bc":
        diverge(entry, 1)
        learn(entry, path, diverged=True)
    assert not entry.is_imperative()
    diverge(entry, 1)
    assert entry.is_imperative()


def test_known_paths_cost_nothing(entry):
    learn(entry, *"abababab")
    assert not entry.is_imperative()


# ------------------------------------------------------- giving up and retrying


def test_it_waits_twice_as_long_each_time(entry):
    waits = []
    for _ in range(5):
        diverge(entry, 3)
        waits.append(run_imperative_steps(entry))
    assert waits == [4, 8, 16, 32, 64]


def test_waiting_time_has_a_bound(entry):
    entry._num_given_up = 1000
    diverge(entry, 3)
    assert run_imperative_steps(entry) == 4 << 10


def test_it_starts_anew_after_waiting(entry):
    learn(entry, "a", "a")
    diverge(entry, 3)
    run_imperative_steps(entry)
    assert entry.stats.phase == "tracing"
    diverge(entry, 2)
    assert not entry.is_imperative()
    assert path_of(entry.next_graph()) == "Opa"


def test_phase_stays_imperative_when_the_trace_that_made_it_give_up_comes_in(entry):
    learn(entry, "a", "a")
    diverge(entry, 3)
    learn(entry, "b", diverged=True)
    assert entry.stats.phase == "imperative"


def test_trace_that_is_too_long_makes_it_give_up(entry):
    entry.add_trace(trace(num_ops=101), diverged=False)
    assert entry.stats.fallbacks == {"trace_too_long": 1}
    assert entry.current is None
    assert run_imperative_steps(entry) == 4


def test_longest_trace_that_is_allowed_is_merged(entry):
    entry.add_trace(trace(num_ops=100), diverged=False)
    assert len(entry.current.nodes) == 100
    assert entry.stats.fallbacks == {}


def test_graph_that_cannot_be_built_makes_it_give_up_and_is_logged(entry, monkeypatch, caplog):
    def refuse(trace_graph):
        raise UnsupportedError("no such op")

    monkeypatch.setattr(entry_module, "build_graph", refuse)
    with caplog.at_level(logging.WARNING, logger="terra_tf"):
        learn(entry, "a", "a")
    assert "no graph could be built" in caplog.text
    assert entry.stats.fallbacks == {"graph_build_failed": 1}
    assert (entry.stats.phase, entry.stats.graph_builds) == ("imperative", 0)
    assert "UnsupportedError: no such op" in [event.detail for event in entry.stats.events]
    assert run_imperative_steps(entry) == 4


# --------------------------------------------------------------------- paths


def co_execute(entry):
    """Let the next step be co-executed to its end; return its path."""
    built = entry.next_graph()
    entry.count_co_executed(built)
    return path_of(built)


def test_each_path_has_its_graph(entry):
    with config.override(max_divergences=100):
        learn(entry, *"abab")
    assert entry.stats.graph_builds == 2
    assert [path_of(path.built) for path in entry._paths] == ["Opa", "Opb"]


@pytest.mark.parametrize("cycle", ["ab", "abc", "abcd"])
def test_paths_that_take_turns_are_predicted(entry, cycle):
    with config.override(max_divergences=100):
        learn(entry, *cycle * 2)
        seen = "".join(co_execute(entry)[-1] for _ in range(3 * len(cycle)))
    assert seen == cycle * 3


def test_path_is_predicted_that_followed_most_often(entry):
    with config.override(max_divergences=100):
        learn(entry, *"aabbacacacac")
    assert [path_of(entry.next_graph()), co_execute(entry)] == ["Opa", "Opa"]
    assert co_execute(entry) == "Opc"


def test_likeliest_path_without_a_graph_means_tracing(entry):
    with config.override(max_divergences=100):
        learn(entry, *"abababab")
        entry.drop_graph(entry.current_built)
        learn(entry, "a")
    assert [path_of(path.built) for path in entry._paths] == ["Opa", None]
    assert entry.next_graph() is None


def test_least_used_path_is_forgotten(entry):
    with config.override(max_divergences=100):
        learn(entry, *"aabbccd", "e")
        assert len(entry._paths) == 4
        types = [path.trace_graph.nodes[0].record.op_type for path in entry._paths]
    assert types == ["Opa", "Opb", "Opc", "Ope"]


def test_last_path_is_the_current_one(entry):
    with config.override(max_divergences=100):
        learn(entry, *"aabb")
    assert entry.current.nodes[0].record.op_type == "Opb"
    first = entry._paths[0].built
    entry.count_co_executed(first)
    assert entry.current.nodes[0].record.op_type == "Opa"
    assert entry.current_built is first


def test_co_executed_steps_are_counted(entry):
    learn(entry, "a", "a")
    for _ in range(5):
        co_execute(entry)
    assert entry.stats.co_executed_steps == 5
    assert entry.stats.transitions == 1
