"""What the benchmark's records say follows from the events of its workers."""

import dataclasses
import datetime
import json

import pytest

from benchmarks import bar_chart, names
from benchmarks.comparison import Comparison, summarize, to_table
from benchmarks.records import Measurement, Record, make_record, warmup_seconds

FIELDS = [
    *("program", "size", "mode", "status", "step_ms_median", "step_ms_p10", "step_ms_p90"),
    *("warmup_s", "first_step_s", "speedup_vs_eager", "loss_max_abs_diff", "co_executed_share"),
    *("delegated_share", "fallbacks", "graph_builds", "python_stall_ms", "graph_stall_ms"),
    *("peak_rss_mb", "error"),
]


def eager_counters(**others):
    return {"changes": 0, **others}


def terra_counters(steps, co_executed, *, builds=1, nodes=100, imperative=0, stall_s=0.0):
    return {
        "changes": steps - co_executed + builds,
        "steps": steps,
        "co_executed_steps": co_executed,
        "graph_builds": builds,
        "fallbacks": {"new_path": 1},
        "num_nodes": nodes,
        "num_imperative_ops": imperative,
        "python_stall_s": stall_s,
        "graph_stall_s": 2 * stall_s,
    }


def make_measurement(mode, steps):
    """Make a measurement from (phase, seconds, counters)."""
    measurement = Measurement("gpt2", "tiny", mode)
    for phase, seconds, counters in steps:
        event = {"event": "step", "phase": phase, "seconds": seconds, "counters": counters}
        measurement.add(event)
    measurement.add({"event": "checked", "loss_max_abs_diff": 0.0, "peak_rss_mb": 500.0})
    return measurement


def make_eager(timed_s):
    steps = [("check", 5.0, eager_counters())]
    return make_measurement("eager", steps + [("timed", s, eager_counters()) for s in timed_s])


def test_record_has_the_fields_that_readers_rely_on():
    assert [field.name for field in dataclasses.fields(Record)] == FIELDS


def test_median_and_spread_are_of_the_timed_steps_only():
    record = make_record(make_eager([0.1, 0.2, 0.3]), None, num_steps=3)
    assert record.step_ms_median == pytest.approx(200.0)
    assert record.step_ms_p10 == pytest.approx(120.0)
    assert record.step_ms_p90 == pytest.approx(280.0)
    assert record.first_step_s == 5.0
    assert record.error is None


def test_speedup_is_the_median_over_rounds_not_of_medians():
    eager = make_eager([1.0, 10.0, 100.0])
    terra = make_measurement(
        "terra",
        [("check", 1.0, terra_counters(1, 0))]
        + [("timed", s, terra_counters(i + 2, i + 1)) for i, s in enumerate([1.0, 2.0, 50.0])],
    )
    assert make_record(terra, eager, num_steps=3).speedup_vs_eager == pytest.approx(2.0)


def test_warmup_ends_with_the_last_step_that_traced_or_built():
    counts = [1, 2, 2, 3, 3, 3]
    steps = [("check", 1.0, {"changes": changes}) for changes in counts]
    assert warmup_seconds(make_measurement("tf_function", steps).steps) == 4.0
    assert warmup_seconds(make_eager([]).steps) == 5.0
    assert warmup_seconds([]) is None


def test_shares_and_stalls_are_of_the_timed_steps():
    terra = make_measurement(
        "terra",
        [
            ("check", 1.0, terra_counters(1, 0)),
            ("warmup", 1.0, terra_counters(2, 1, stall_s=7.0)),
            ("timed", 1.0, terra_counters(3, 2, imperative=10, stall_s=7.1)),
            ("timed", 1.0, terra_counters(4, 2, imperative=50, stall_s=7.1)),
            ("timed", 1.0, terra_counters(5, 3, imperative=30, stall_s=7.2)),
            ("timed", 1.0, terra_counters(6, 4, imperative=30, stall_s=7.2)),
        ],
    )
    record = make_record(terra, None, num_steps=4)
    assert record.co_executed_share == pytest.approx(0.75)
    assert record.delegated_share == pytest.approx((0.9 + 0.7 + 0.7) / 3)
    assert record.python_stall_ms == pytest.approx(50.0)
    assert record.graph_stall_ms == pytest.approx(100.0)
    assert (record.fallbacks, record.graph_builds) == ({"new_path": 1}, 1)


def test_wrong_mode_has_its_reason_and_no_times():
    wrong = make_eager([0.1])
    wrong.add({"event": "failed", "status": "wrong", "error": "the loss of step 3 is 1"})
    record = make_record(wrong, make_eager([0.1]), num_steps=1)
    assert (record.status, record.error) == ("wrong", "the loss of step 3 is 1")
    assert record.step_ms_median is record.speedup_vs_eager is None


def test_interrupted_mode_keeps_its_times_and_says_so():
    eager, terra = make_eager([0.2, 0.2, 0.2]), make_eager([0.1, 0.1])
    record = make_record(terra, eager, num_steps=30)
    assert record.status == "ok"
    assert record.error == "interrupted after 2 of 30 timed steps"
    assert record.speedup_vs_eager == pytest.approx(2.0)


def test_mode_that_was_not_yet_checked_is_not_called_right():
    begun = Measurement("gpt2", "tiny", "terra")
    step = {"event": "step", "phase": "check", "seconds": 1.0, "counters": eager_counters()}
    begun.add(step)
    record = make_record(begun, None, num_steps=30)
    assert (record.status, record.first_step_s) == ("error", 1.0)
    assert record.error == "interrupted before it was compared with eager"


def make_comparison():
    eager = make_eager([0.2, 0.2])
    wrong = make_measurement("tf_function", [("check", 1.0, {"changes": 1})])
    wrong.add({"event": "compared", "loss_max_abs_diff": float("inf")})
    wrong.add({"event": "failed", "status": "wrong", "error": "the loss of step 0 is nan"})
    return Comparison({"steps": 2, "size": "tiny"}, [eager, wrong])


def test_json_has_records_samples_versions_and_machine():
    content = json.loads(make_comparison().to_json(datetime.datetime(2026, 1, 2)))
    assert list(content["records"][0]) == FIELDS
    assert content["samples"][0]["step_ms"] == [200.0, 200.0]
    assert content["samples"][0]["untimed_ms"] == [5000.0]
    assert content["records"][1]["loss_max_abs_diff"] is None
    assert {"python", "numpy"} <= set(content["versions"])
    assert content["machine"]["num_cpus"] >= 1
    assert content["date"] == "2026-01-02T00:00:00"
    assert content["interrupted"] is False


def test_table_shouts_what_is_wrong_and_says_why():
    lines = to_table(make_comparison().records()).splitlines()
    assert "200.0 ms" in lines[1] and "1.00x" in lines[1]
    assert "WRONG" in lines[2] and "ms" not in lines[2]
    assert lines[3].strip() == "the loss of step 0 is nan"


def test_summary_counts_what_is_right_and_faster():
    records = [
        Record("a", "tiny", "terra", "ok", speedup_vs_eager=2.0),
        Record("b", "tiny", "terra", "ok", speedup_vs_eager=0.5),
        Record("c", "tiny", "terra", "timeout"),
    ]
    expected = "terra: 2 of 3 ok, 1 faster than eager, geometric mean of speedups 1.00"
    assert summarize(records) == expected


def test_chart_is_a_picture(tmp_path):
    assert bar_chart.explain_absence() is None
    path = tmp_path / "folder" / "chart.png"
    bar_chart.draw(make_comparison().records(), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_chart_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setattr(bar_chart.importlib.util, "find_spec", lambda name: None)
    assert "pip install matplotlib" in bar_chart.explain_absence()


def test_names_of_flags_are_those_of_the_programs_and_modes():
    modes = pytest.importorskip("benchmarks.modes")
    paper = pytest.importorskip("benchmarks.programs.paper")
    assert tuple(modes.MODES) == names.MODE_NAMES
    assert tuple(paper.PAPER_PROGRAMS) == names.PROGRAM_NAMES
    assert paper.SIZE_NAMES == names.SIZE_NAMES
    for program in paper.PAPER_PROGRAMS.values():
        assert tuple(program.module.SIZES) == names.SIZE_NAMES
        assert program.feature and program.data
