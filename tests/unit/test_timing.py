"""Timing and report logic, with clocks that only move when a contestant runs."""

import collections
import datetime
import itertools
import json
import math

import pytest

from benchmarks import report, timing

_NOW = datetime.datetime(2026, 1, 2, 3, 4, 5)


class _FakeClock:
    """A clock that stands still until someone works."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s

    def work(self, seconds):
        self.now_s += seconds


def _constant(seconds):
    return timing.Timing((seconds,) * 3)


def test_per_step_divides_the_time_of_the_turn():
    clock = _FakeClock()
    sample = timing.per_step(lambda turn: clock.work(5.0 + turn), 10, clock=clock)
    assert sample(0) == pytest.approx(0.5)
    assert sample(1) == pytest.approx(0.6)


def test_per_step_keeps_preparation_out_of_the_clock():
    clock = _FakeClock()
    sample = timing.per_step(
        lambda turn: clock.work(1.0), 1, prepare=lambda: clock.work(100.0), clock=clock
    )
    assert sample(0) == pytest.approx(1.0)
    assert clock.now_s == pytest.approx(101.0)


@pytest.mark.parametrize("num_contestants", range(1, 8))
def test_balanced_orders_let_everybody_run_behind_every_other_one_equally_often(num_contestants):
    orders = timing.balanced_orders(num_contestants)
    everybody = list(range(num_contestants))
    assert all(sorted(order) == everybody for order in orders)
    behind = collections.Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert set(behind) == {(a, b) for a in everybody for b in everybody if a != b}
    assert len(set(behind.values())) <= 1
    first = collections.Counter(order[0] for order in orders)
    assert len(set(first.values())) == 1 and set(first) == set(everybody)


def test_interleave_gives_everyone_one_turn_a_round_in_balanced_orders():
    order = []

    def sampler(name):
        return lambda turn: order.append(f"{name}{turn}") or 1.0

    timing.interleave({n: sampler(n) for n in "abc"}, num_turns=3, num_warmup_turns=0)
    assert order == ["a0", "b0", "c0", "b1", "c1", "a1", "c2", "a2", "b2"]
    order.clear()
    timing.interleave({n: sampler(n) for n in "abcd"}, num_turns=2, num_warmup_turns=1)
    assert order == ["a0", "b0", "d0", "c0", "b1", "c1", "a1", "d1", "c2", "d2", "b2", "a2"]


def test_interleave_does_not_count_warmup_turns():
    timings = timing.interleave(
        {"a": lambda turn: 100.0 if turn < 2 else 1.0}, num_turns=4, num_warmup_turns=2
    )
    assert timings["a"] == timing.Timing((1.0, 1.0, 1.0, 1.0))


def test_interleave_refuses_to_measure_nothing():
    with pytest.raises(ValueError, match="num_turns must be at least 1, not 0"):
        timing.interleave({"a": lambda turn: 1.0}, num_turns=0, num_warmup_turns=0)


def test_timing_has_median_and_percentiles():
    samples = timing.Timing(tuple(float(i) for i in range(11)))
    assert samples.median_s == 5.0
    assert samples.percentile_s(10) == 1.0
    assert samples.percentile_s(90) == 9.0


def test_one_stalled_turn_does_not_move_the_median():
    assert timing.Timing((1.0, 1.0, 1.0, 50.0, 1.0)).median_s == 1.0


def test_speedup_is_taken_round_by_round_when_the_machine_slows_down():
    eager, terra = timing.Timing((2.0, 4.0, 40.0)), timing.Timing((1.0, 2.0, 20.0))
    assert timing.speedups({"eager": eager, "terra": terra}, "eager")["terra"] == 2.0


def test_speedup_is_baseline_over_contestant():
    ratios = timing.speedups({"eager": _constant(4.0), "terra": _constant(1.6)}, "eager")
    assert ratios == {"eager": 1.0, "terra": 2.5}


def test_equal_outputs_are_identical():
    comparison = timing.compare([1.0, math.nan, math.inf], [1.0, math.nan, math.inf])
    assert comparison == timing.Comparison(True, True, 0.0, None)


def test_outputs_within_the_tolerance_agree_without_being_identical():
    comparison = timing.compare([1.0, 2.0], [1.0, 2.0 + 1e-6])
    assert comparison.agrees and not comparison.identical
    assert comparison.max_relative_difference == pytest.approx(5e-7, rel=1e-3)


def test_first_difference_is_where_outputs_leave_the_tolerance():
    comparison = timing.compare([1.0, 2.0, 3.0, 4.0], [1.0, 2.0 + 1e-6, 3.5, 9.0])
    assert not comparison.agrees
    assert comparison.first_difference == 2


@pytest.mark.parametrize("output", [math.nan, math.inf])
def test_an_output_that_is_not_finite_never_agrees_with_one_that_is(output):
    comparison = timing.compare([1.0], [output])
    assert comparison == timing.Comparison(False, False, math.inf, 0)


def test_outputs_of_different_number_are_refused():
    with pytest.raises(ValueError, match="2 reference outputs, but 1 to compare"):
        timing.compare([1.0, 2.0], [1.0])


def _section(**changes):
    fields = {
        "name": "mlp",
        "what": "a training step",
        "timings": {"eager": timing.Timing((3e-3, 4e-3, 5e-3)), "terra": _constant(2e-3)},
        "comparisons": {"terra": timing.compare([1.0, 2.0], [1.0, 2.0])},
        "findings": {"overhead_us": 0.25},
        "notes": ["read every step"],
    }
    return report.Section(**{**fields, **changes})


def test_table_shows_medians_spread_speedups_and_verdicts():
    assert report.to_table([_section()]) == (
        "mlp: a training step\n"
        "  ms per step            median      p10      p90  speedup  outputs\n"
        "  eager                   4.000    3.200    4.800    1.00x\n"
        "  terra                   2.000    2.000    2.000    2.00x  identical\n"
        "  overhead_us = 0.250\n"
        "  note: read every step"
    )


@pytest.mark.parametrize(
    ("outputs", "verdict"),
    [([1.0, 2.00001], "agree (5.0e-06)"), ([1.0, 4.0], "DIFFER from step 1 (5.0e-01)")],
)
def test_table_says_how_outputs_differ(outputs, verdict):
    section = _section(comparisons={"terra": timing.compare([1.0, 2.0], outputs)})
    assert verdict in report.to_table([section])


def test_a_section_that_failed_is_shown_with_its_reason():
    section = _section(timings={}, findings={}, notes=(), failure="ValueError: no luck")
    assert report.to_table([section]) == "mlp: a training step\n  FAILED: ValueError: no luck"


def test_json_keeps_versions_machine_date_and_seconds():
    document = json.loads(report.to_json([_section()], _NOW))
    assert document["date"] == "2026-01-02T03:04:05"
    assert {"python", "numpy"} <= set(document["versions"])
    assert document["machine"]["num_cpus"] >= 1
    (section,) = document["sections"]
    assert section["timings"]["terra"] == {
        "num_turns": 3,
        "median_s": 2e-3,
        "p10_s": 2e-3,
        "p90_s": 2e-3,
    }
    assert section["speedups"] == {"eager": 1.0, "terra": 2.0}


def test_report_is_written_into_a_new_folder(tmp_path):
    path = tmp_path / "results" / "micro.json"
    report.write(path, "{}\n")
    assert path.read_text() == "{}\n"
