"""The timeline of real steps: two tracks, arrows, stalls by the user's line, and what it cost."""

import inspect
import json
import time

import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf.runtime import observation

pytestmark = pytest.mark.timeout(60)


@terra.function
def step(x, is_deep):
    y = x @ x
    if is_deep:
        y = tf.tanh(y)
    total = tf.reduce_sum(y)
    if float(total) < 0:
        raise ValueError("negative")
    time.sleep(0.002)
    return y + 1.0


def run(num_steps):
    for i in range(num_steps):
        step(tf.ones([300, 300]) / 300, i % 2 == 0)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """Profile four steps; return the profile, the file's events, and the counters' change."""
    folder = tmp_path_factory.mktemp("profile")
    step.reset()
    run(8)
    assert step.stats().phase == "co-execution"
    before = step.stats()
    with terra.profile(folder / "steps.json", tensorboard=folder / "logs") as profile:
        run(4)
    trace = json.loads((folder / "steps.json").read_text())
    return profile, trace, (before, step.stats()), folder


def slices(trace, category):
    return [e for e in trace["traceEvents"] if e["ph"] == "X" and e["cat"] == category]


def test_profiling_changes_nothing_the_program_does(profiled):
    _, _, (before, after), _ = profiled
    assert after.co_executed_steps == before.co_executed_steps + 4
    assert after.fallbacks == before.fallbacks == {}
    assert observation.observer is None


def test_file_has_the_two_tracks_and_the_ops_below(profiled):
    _, trace, _, _ = profiled
    names = {
        e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"
    }
    assert names[1] == "PythonRunner"
    assert names[2] == "GraphRunner"
    assert all(name.startswith("ops of the graph") for tid, name in names.items() if tid > 2)
    steps, graphs = slices(trace, "step"), slices(trace, "graph")
    assert [s["name"] for s in steps] == ["step 9", "step 10", "step 11", "step 12"]
    assert len(graphs) == 4
    assert {e["tid"] for e in steps} == {1}
    assert {e["tid"] for e in graphs} == {2}


def test_ops_have_the_users_names_and_lines(profiled):
    _, trace, _, _ = profiled
    ops = slices(trace, "op")
    (first, *others) = (e for e in ops if e["name"] == "MatMul")
    assert len(others) == 3
    assert first["args"]["at"].startswith(line_of("y = x @ x"))
    tanhs = [e for e in ops if e["name"] == "switch_case_0/branch_0/Tanh"]
    assert len(tanhs) == 2


def line_of(text):
    lines, first = inspect.getsourcelines(step.python_function)
    offset = next(index for index, line in enumerate(lines) if text in line)
    return f"test_profile.py:{first + offset}"


def test_arrows_go_forward_from_sending_to_receiving(profiled):
    profile, trace, _, _ = profiled
    starts = {e["id"]: e for e in trace["traceEvents"] if e["ph"] == "s"}
    ends = {e["id"]: e for e in trace["traceEvents"] if e["ph"] == "f"}
    assert starts.keys() == ends.keys()
    assert all(starts[i]["ts"] <= ends[i]["ts"] for i in starts)
    kinds = [arrow.kind for arrow in profile.timeline.arrows]
    assert kinds.count("case") == 4
    assert kinds.count("feed") == 4
    assert kinds.count("commit") == 4
    for i, sent in starts.items():
        tracks = (sent["tid"], ends[i]["tid"])
        assert tracks == ((2, 1) if sent["cat"] == "fetch" else (1, 2))


def test_arrows_start_and_end_inside_of_slices_or_viewers_drop_them(profiled):
    _, trace, _, _ = profiled
    on = {1: slices(trace, "step") + slices(trace, "stall"), 2: slices(trace, "graph")}
    for event in trace["traceEvents"]:
        if event["ph"] in ("s", "f"):
            around = on[event["tid"]]
            assert any(s["ts"] <= event["ts"] <= s["ts"] + s["dur"] for s in around), event


def test_stalls_are_named_by_the_line_that_reads(profiled):
    _, trace, _, _ = profiled
    stalls = slices(trace, "stall")
    assert stalls
    assert all(stall["name"].startswith("stall: test_profile.py:") for stall in stalls)
    reads = [s for s in stalls if s["name"].startswith(f"stall: {line_of('float(total)')}")]
    assert reads
    assert all(stall["cname"] == "terrible" for stall in stalls)
    fetches = [e for e in trace["traceEvents"] if e["ph"] == "s" and e["cat"] == "fetch"]
    assert fetches


def test_graph_that_waits_for_python_says_for_what(profiled):
    """Python sleeps before it commits."""
    _, trace, _, _ = profiled
    starved = slices(trace, "starved")
    longest = max(starved, key=lambda event: event["dur"])
    assert longest["dur"] > 1500
    assert longest["name"] == "waits for Python: commit commit_0/commit"


def test_profile_says_what_it_cost(profiled):
    profile, trace, _, _ = profiled
    cost = profile.cost
    assert cost.num_spans > 100
    assert 0 < cost.span_s < 1e-4
    assert cost.start_s >= 0
    assert cost.stop_s > 0
    assert "profiling itself" in str(profile)
    assert trace["otherData"]["profiling"] == str(cost)


def test_same_run_is_kept_for_tensorboards_profile_plugin(profiled):
    _, _, _, folder = profiled
    (xplane,) = (folder / "logs").glob("plugins/profile/*/*.xplane.pb")
    assert b"TerraGraph" in xplane.read_bytes()


def test_overlap_is_within_what_ran(profiled):
    timeline = profiled[0].timeline
    kernels_us = sum(op.end_us - op.start_us for op in timeline.ops)
    assert 0 <= timeline.overlap_us <= kernels_us


# --------------------------------------------------------------------- bad input


def test_file_that_cannot_be_written_is_found_before_the_block_runs(tmp_path):
    ran = []
    with (
        pytest.raises(terra.UnwritableError, match=r"absent/steps.json.*TERRA-UNWRITABLE"),
        terra.profile(tmp_path / "absent" / "steps.json"),
    ):
        ran.append(True)
    assert ran == []


def test_second_profile_inside_of_one_is_refused(tmp_path):
    with (
        terra.profile(tmp_path / "a.json"),
        pytest.raises(terra.ProfilerBusyError, match="TERRA-PROFILER-BUSY"),
        terra.profile(tmp_path / "b.json"),
    ):
        pass
    assert observation.observer is None


def test_profiler_of_somebody_else_is_left_alone(tmp_path):
    tf.profiler.experimental.start(str(tmp_path / "theirs"))
    try:
        with (
            pytest.raises(terra.ProfilerBusyError, match="one profiler in a process"),
            terra.profile(tmp_path / "steps.json"),
        ):
            pass
        assert observation.observer is None
    finally:
        tf.profiler.experimental.stop()


def test_exception_in_the_block_passes_and_the_profiler_is_free_again(tmp_path):
    with pytest.raises(KeyError, match="mine"), terra.profile(tmp_path / "a.json"):
        raise KeyError("mine")
    with terra.profile(tmp_path / "b.json") as profile:
        pass
    assert profile.timeline.steps == []
    assert json.loads((tmp_path / "b.json").read_text())["traceEvents"]
    assert "0 steps" in str(profile)
