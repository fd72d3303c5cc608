"""No conformance case runs less in the graph than `benchmarks/coverage.csv` says."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import coverage_report
from benchmarks.coverage_report import Row

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECORDED = ROOT / "benchmarks" / "coverage.csv"
SUITE = pathlib.Path(os.environ.get("TERRA_CONFORMANCE", ROOT / "../shared/conformance")).resolve()
# A constant that grows, a local variable, exceptions, random draws, dtypes, a Python callback.
FAST_CASES = [11, 13, 33, 39, 41, 95]

needs_suite = pytest.mark.skipif(
    not (SUITE / "run.py").exists(),
    reason=f"no conformance suite in {SUITE}; set TERRA_CONFORMANCE to its directory",
)

ROW = Row(
    case=33,
    name="python_exception_to_caller",
    verdict="OK",
    calls=24,
    steps=12,
    co_executed=9,
    co_executed_share=0.75,
    delegated_share=0.9,
    traced=0,
    graph_builds=1,
    num_switch_cases=0,
    late_fallbacks="new_path:3",
    fallbacks="new_path:6",
    imperative_ops="PyFunc:1",
)


def run_coverage(out, cases, timeout_s):
    """Measure cases (all, if none are named); return their rows by number, and the output."""
    arguments = [f"--conformance={SUITE}", f"--out={out}", f"--cases={','.join(map(str, cases))}"]
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.coverage", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert out.exists(), process.stdout + process.stderr
    return coverage_report.read_rows(out), process.stdout + process.stderr


def assert_none_got_worse(recorded, fresh, output):
    # Eager itself fails where a third-party library of a case is not installed.
    runnable = {case: row for case, row in fresh.items() if row.verdict != "NO_REFERENCE"}
    assert runnable, output
    assert set(runnable) <= set(recorded), "a case has no line: run benchmarks.coverage"
    worse = {
        f"{case} {row.name}": complaints
        for case, row in sorted(runnable.items())
        if (complaints := coverage_report.regressions(recorded[case], row))
    }
    assert not worse, f"{worse}\n{output}"


@needs_suite
@pytest.mark.timeout(630)
def test_chosen_cases_are_covered_as_recorded(tmp_path):
    fresh, output = run_coverage(tmp_path / "coverage.csv", FAST_CASES, timeout_s=600)
    assert sorted(fresh) == FAST_CASES
    assert_none_got_worse(coverage_report.read_rows(RECORDED), fresh, output)


@pytest.mark.slow
@needs_suite
@pytest.mark.timeout(3630)
def test_every_case_is_covered_as_recorded(tmp_path):
    recorded = coverage_report.read_rows(RECORDED)
    fresh, output = run_coverage(tmp_path / "coverage.csv", [], timeout_s=3600)
    assert set(recorded) <= set(fresh), "a recorded case is gone"
    assert_none_got_worse(recorded, fresh, output)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (dict(verdict="WRONG"), "verdict WRONG, recorded OK"),
        (dict(calls=12), "12 calls, recorded 24: not comparable"),
        (dict(co_executed_share=7 / 12), "co-executed share 0.58"),
        (dict(co_executed_share=0.25, late_fallbacks="concurrent:4"), "co-executed share 0.25"),
        (dict(co_executed_share=None, steps=0), "co-executed share None"),
        (dict(delegated_share=0.897), "delegated share 0.897, recorded 0.9"),
        (dict(delegated_share=None), "delegated share None"),
        (dict(graph_builds=3), "3 graph builds, recorded 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_worse_line_is_detected(changes, complaint):
    complaints = coverage_report.regressions(ROW, dataclasses.replace(ROW, **changes))
    assert len(complaints) == 1
    assert complaint in complaints[0]
    with pytest.raises(AssertionError, match=complaint):
        assert_none_got_worse({33: ROW}, {33: dataclasses.replace(ROW, **changes)}, "")


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(co_executed_share=8 / 12, co_executed=8),
        dict(co_executed_share=1.0, delegated_share=1.0, late_fallbacks="", fallbacks=""),
        dict(
            co_executed_share=0.25,
            late_fallbacks="concurrent:4;new_path:3;seized_by_other_thread:1",
        ),
        dict(graph_builds=2),
        dict(traced=4, num_switch_cases=2, imperative_ops=""),
    ],
    ids=["equal", "one step fewer", "better", "other threads", "one graph more", "not compared"],
)
def test_an_equal_or_better_line_is_none(changes):
    assert coverage_report.regressions(ROW, dataclasses.replace(ROW, **changes)) == []


def test_rows_are_written_in_order_and_read_back(tmp_path):
    path = tmp_path / "coverage.csv"
    bare = Row(case=5, name="bare", verdict="TIMEOUT", calls=24)
    coverage_report.write_rows(path, [ROW, bare])
    assert list(coverage_report.read_rows(path).items()) == [(5, bare), (33, ROW)]
    assert path.read_text().splitlines()[1:] == [
        "5,bare,TIMEOUT,24,0,0,,,0,0,0,,,",
        "33,python_exception_to_caller,OK,24,12,9,0.750,0.900,0,1,0,new_path:3,new_path:6,PyFunc:1",
    ]


def counters(steps, co_executed, nodes=10, **others):
    """Return what one function has counted, as a snapshot has it."""
    return {
        "steps": steps,
        "co_executed_steps": co_executed,
        "num_nodes": nodes,
        "traced_steps": 0,
        "graph_builds": 1,
        "num_switch_cases": 0,
        "fallbacks": {},
        "imperative_ops": {},
        **others,
    }


def test_shares_are_those_of_the_second_half():
    warmup = [[counters(1, 0)], [counters(2, 0, traced_steps=2, fallbacks={"new_path": 1})]]
    late = {"traced_steps": 3, "fallbacks": {"new_path": 2}, "imperative_ops": {"PyFunc": 5}}
    end = [[counters(3, 0, **late)], [counters(4, 1, **late)]]
    measured = coverage_report.measure(warmup + end)
    assert (measured["steps"], measured["co_executed"], measured["traced"]) == (2, 1, 1)
    assert measured["co_executed_share"] == 0.5
    assert measured["delegated_share"] == 0.5
    assert measured["late_fallbacks"] == "new_path:1"
    assert measured["fallbacks"] == "new_path:2"
    assert measured["imperative_ops"] == "PyFunc:5"


def test_functions_weigh_as_many_steps_as_they_co_execute():
    all_delegated, none_delegated = {}, {"imperative_ops": {"PyFunc": 10}}
    start = [counters(0, 0), counters(0, 0, **none_delegated)]
    end = [counters(3, 3, **all_delegated), counters(1, 1, **none_delegated)]
    measured = coverage_report.measure([start, end])
    assert measured["co_executed_share"] == 1.0
    assert measured["delegated_share"] == 0.75


def test_a_graph_that_was_dropped_after_its_step_still_counts():
    graph = {"imperative_ops": {"PyFunc": 5}}
    snapshots = [[counters(1, 1, **graph)], [counters(2, 2, nodes=0)]]
    measured = coverage_report.measure(snapshots)
    assert measured["delegated_share"] == 0.5
    assert measured["imperative_ops"] == "PyFunc:5"


def test_a_case_without_terra_steps_has_no_shares():
    measured = coverage_report.measure([[], []])
    assert measured["steps"] == 0
    assert measured["co_executed_share"] is None
    assert measured["delegated_share"] is None
