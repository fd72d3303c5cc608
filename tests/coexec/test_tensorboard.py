"""The written graph, opened with TensorBoard itself: its HTTP API says what its page would show."""

import contextlib
import functools
import json
import logging
import pathlib
import re
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import tensorflow as tf
from tensorflow.python.framework import test_util

import terra_tf as terra
from terra_tf.errors import NotCallableError
from terra_tf.runtime import observation

pytestmark = pytest.mark.timeout(120)


def make_step():
    """Make a training step with two functions, a loop, a branch, a print and a gradient."""
    weights = [tf.Variable(tf.fill([8, 8], 0.1)) for _ in range(2)]

    def layer(x, weight):
        return tf.nn.relu(tf.matmul(x, weight))

    @terra.function
    def step(x, is_deep):
        with tf.GradientTape() as tape:
            for weight in weights:
                x = layer(x, weight)
                if is_deep:
                    x = tf.tanh(x)
            loss = tf.reduce_mean(x**2)
        for weight, gradient in zip(weights, tape.gradient(loss, weights)):
            weight.assign_sub(0.1 * gradient)
        tf.print(loss, output_stream="file:///dev/null")
        return loss

    return step


def train(step, num_steps=6):
    for i in range(num_steps):
        step(tf.ones([4, 8]), i % 2 == 0)


@pytest.fixture(scope="module")
def step():
    step = make_step()
    train(step, 8)
    assert step.stats().phase == "co-execution"
    return step


@pytest.fixture(scope="module")
def log(step, tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs") / "step"
    terra.tensorboard.write_graph(step, folder, step=7, run=lambda: train(step, 2))
    return folder


@pytest.fixture(scope="module")
def tensorboard(log):
    """Start TensorBoard on the log's folder; return a function that asks it."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    program = "from tensorboard.main import run_main; run_main()"
    command = [sys.executable, "-c", program, f"--logdir={log.parent}", f"--port={port}",
               "--load_fast=false", "--reload_interval=1"]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(path):
        with urllib.request.urlopen(f"http://localhost:{port}/data/{path}", timeout=10) as answer:
            return answer.read().decode()

    try:
        wait_for(lambda: "step" in ask("runs") and "run_graph" in ask("plugin/graphs/info"))
        yield ask
    finally:
        server.terminate()
        server.wait(timeout=20)


def wait_for(is_ready, limit_s=60):
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if is_ready():
                return
        time.sleep(0.3)
    pytest.fail("TensorBoard did not come up")


def test_run_and_its_graph_are_listed(tensorboard):
    assert json.loads(tensorboard("runs")) == ["step"]
    info = json.loads(tensorboard("plugin/graphs/info"))["step"]
    assert info["run_graph"]
    assert info["tags"]["step 7"]["profile"]


def test_graph_is_grouped_by_the_users_program(tensorboard):
    names = names_in(tensorboard("plugin/graphs/graph?run=step"))
    assert "loop/trip_1/layer/MatMul" in names
    assert "loop/trip_0/switch_case_0/select" in names
    assert "loop/trip_0/switch_case_0/branch_0/Tanh" in names
    assert "gradients/loop/trip_1/layer/MatMul" in names
    assert "loop/trip_0/layer/feed" in names
    assert "commit_0/commit" in names
    assert {"fetch", "PrintV2"} <= names


def names_in(pbtxt):
    return set(re.findall(r'^node \{\n  name: "([^"]+)"', pbtxt, re.MULTILINE))


def test_nodes_have_the_users_line_and_hits_as_small_attributes(tensorboard):
    answer = tensorboard(
        "plugin/graphs/graph?run=step&limit_attr_size=1024&large_attrs_key=_too_large"
    )
    assert "test_tensorboard.py:" in answer
    assert 'key: "traces"' in answer
    assert "in Python: stateful_op" in answer
    assert "_too_large" not in answer


def test_costs_are_of_nodes_of_the_graph(tensorboard):
    metadata = tensorboard("plugin/graphs/run_metadata?run=step&tag=step%207")
    measured = set(re.findall(r'node_name: "([^"]+)"', metadata))
    graph = names_in(tensorboard("plugin/graphs/graph?run=step"))
    assert measured <= graph
    assert {"loop/trip_0/layer/MatMul", "loop/trip_0/switch_case_0/branch_0/Tanh"} <= measured
    times = re.findall(r"all_end_rel_micros: (\d+)", metadata)
    assert len(times) == len(measured)
    assert all(int(time_us) >= 1 for time_us in times)
    # float32[4, 8]; oneDNN's allocator tells TensorFlow's profiler nothing.
    assert ("total_bytes: 128" in metadata) != test_util.IsMklEnabled()
    assert ("total_bytes" in metadata) != test_util.IsMklEnabled()


def test_graph_of_the_costs_has_the_same_names(tensorboard):
    """TensorBoard colours the graph that comes with the costs."""
    profiled = tensorboard("plugin/graphs/graph?run=step&tag=step%207")
    assert names_in(profiled) == names_in(tensorboard("plugin/graphs/graph?run=step"))


# ------------------------------------------------------------- without TensorBoard


def read_events(folder):
    """Return the graph and the costs in the one event file of a folder."""
    (path,) = pathlib.Path(folder).glob("events.out.tfevents.*")
    graph, costs = None, None
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        if event.WhichOneof("what") == "graph_def":
            graph = tf.compat.v1.GraphDef.FromString(event.graph_def)
        for value in event.summary.value:
            costs = tf.compat.v1.RunMetadata.FromString(tf.make_ndarray(value.tensor).item())
    return graph, costs


def test_graph_is_whole(log):
    graph, _ = read_events(log)
    names = [node.name for node in graph.node]
    assert len(names) == len(set(names))
    scopes = {name.rpartition("/")[0] for name in names}
    assert not scopes & set(names)
    sources = {text.lstrip("^").partition(":")[0] for node in graph.node for text in node.input}
    assert sources <= set(names)


def test_equal_programs_have_equal_graphs(tmp_path):
    graphs = []
    for name in ("a", "b"):
        step = make_step()
        train(step)
        terra.tensorboard.write_graph(step, tmp_path / name, run=lambda step=step: train(step, 1))
        graphs.append(read_events(tmp_path / name)[0])
    assert [n.name for n in graphs[0].node] == [n.name for n in graphs[1].node]


def test_without_a_run_the_next_step_is_measured(tmp_path):
    step = make_step()
    train(step)
    terra.tensorboard.write_graph(step, tmp_path)
    assert read_events(tmp_path)[1] is None
    assert observation.observer is not None
    train(step, 1)
    assert observation.observer is None
    assert len(read_events(tmp_path)[1].step_stats.dev_stats[0].node_stats) > 10
    assert step.stats().fallbacks == {}


def test_step_that_cannot_be_measured_runs_all_the_same(tmp_path, caplog):
    step = make_step()
    train(step)
    before = step.stats()
    terra.tensorboard.write_graph(step, tmp_path / "logs")
    tf.profiler.experimental.start(str(tmp_path / "theirs"))
    try:
        train(step, 1)
    finally:
        tf.profiler.experimental.stop()
    assert "TERRA-PROFILER-BUSY" in caplog.text
    assert observation.observer is None
    assert step.stats().co_executed_steps == before.co_executed_steps + 1
    assert read_events(tmp_path / "logs")[1] is None


def test_measuring_does_not_change_what_a_step_does(tmp_path):
    plain, measured = make_step(), make_step()
    train(plain)
    train(measured)
    terra.tensorboard.write_graph(measured, tmp_path, run=lambda: train(measured, 2))
    train(plain, 2)
    assert measured.stats().fallbacks == plain.stats().fallbacks == {}
    x = tf.ones([4, 8])
    assert float(plain(x, True)) == float(measured(x, True))


def test_run_that_does_not_call_the_function_is_reported(step, tmp_path, caplog):
    other = make_step()
    train(other)
    with caplog.at_level(logging.WARNING, "terra_tf"):
        terra.tensorboard.write_graph(other, tmp_path, run=lambda: train(step, 1))
    assert "no co-executed step" in caplog.text
    assert read_events(tmp_path)[0] is not None


def test_callable_object_and_method_can_be_shown(tmp_path):
    class Model:
        def __call__(self, x):
            return tf.tanh(x)

        @terra.function
        def step(self, x):
            return tf.sin(x)

    model = Model()
    as_object = terra.function(model)
    for _ in range(4):
        as_object(tf.ones([2]))
        model.step(tf.ones([2]))
    for name, function in (("object", as_object), ("method", model.step)):
        run = functools.partial(function, tf.ones([2]))
        terra.tensorboard.write_graph(function, tmp_path / name, run=run)
        assert read_events(tmp_path / name)[1] is not None


def test_function_that_has_not_run_has_nothing_to_show(tmp_path):
    with pytest.raises(terra.NothingToShowError, match=r"has not run yet \[TERRA-NOTHING"):
        terra.tensorboard.write_graph(make_step(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_function_that_never_co_executed_says_why(tmp_path):
    step = make_step()
    with terra.set_stance("imperative"):
        train(step, 3)
    with pytest.raises(terra.NothingToShowError, match=r"no graph after 3 steps: stance \(3x\)"):
        terra.tensorboard.write_graph(step, tmp_path)


def test_function_that_is_still_traced_says_so(tmp_path):
    step = make_step()
    train(step, 1)
    with pytest.raises(terra.NothingToShowError, match="no graph yet, after 1 traced"):
        terra.tensorboard.write_graph(step, tmp_path)


def test_folder_that_cannot_be_written_is_named(step, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(terra.UnwritableError, match=r"file.*cannot be written.*TERRA-UNWRITABLE"):
        terra.tensorboard.write_graph(step, tmp_path / "file" / "logs")


def test_what_is_no_terra_function_is_refused(tmp_path):
    with pytest.raises(NotCallableError, match="no terra function"):
        terra.tensorboard.write_graph(len, tmp_path)
