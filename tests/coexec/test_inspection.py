"""The command line, run as a user runs it."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest
import tensorflow as tf

from terra_tf import inspection

pytestmark = pytest.mark.timeout(120)

SCRIPT = """
import sys
import tensorflow as tf
import terra_tf as terra

def main():
    def layer(x):
        return tf.tanh(x)

    @terra.function
    def train(x, is_deep=True):
        for _ in range(2):
            x = layer(x)
        if is_deep:
            x = tf.exp(x)
        return x * 2.0

    for i in range(int(sys.argv[1])):
        train(tf.ones([2]), i % 2 == 0)
    print("trained", sys.argv[2:])
    sys.exit(int(sys.argv[2]))

main()
"""


@pytest.fixture
def inspect(tmp_path, monkeypatch, capsys):
    """Return a function that runs the command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, script=SCRIPT):
        (tmp_path / "train.py").write_text(textwrap.dedent(script))
        status = inspection.main(["inspect", *arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def in_a_process_of_its_own(folder, *arguments, **environment):
    """Run the command line as a user does."""
    (folder / "train.py").write_text(textwrap.dedent(SCRIPT))
    root = pathlib.Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-m", "terra_tf", "inspect", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=100,
        env={**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def inspected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspected")
    arguments = ("--out=seen", "--profile-steps=2", "train.py", "9", "3", "--x")
    environment = {"PYTHONHASHSEED": "1", "TERRA_LOGS": "phases"}
    return folder, in_a_process_of_its_own(folder, *arguments, **environment)


def test_script_runs_as_by_itself_and_is_explained(inspected):
    _, done = inspected
    assert done.returncode == 3, done.stderr
    assert "trained ['3', '--x']" in done.stdout
    assert "main.<locals>.train (train.py:10): co-execution" in done.stdout
    assert "train.py:12 in main.<locals>.train: up to 2 trips" in done.stdout
    assert "2 steps, 2 of them with a graph: seen/timeline.json" in done.stdout


def test_variable_of_the_environment_logs_to_standard_error(inspected):
    _, done = inspected
    assert "main.<locals>.train: step 3: tracing -> co-execution" in done.stderr.splitlines()


def test_folder_has_every_view(inspected):
    folder, _ = inspected
    seen = folder / "seen"
    assert "co-execution" in (seen / "train.txt").read_text()
    assert (seen / "train.html").read_text().startswith("<div")
    assert json.loads((seen / "train.json").read_text())["stats"]["steps"] == 9
    assert "loop at train.py:12" in (seen / "train.dot").read_text()
    assert list((seen / "tensorboard" / "train").glob("events.out.tfevents.*"))
    events = json.loads((seen / "timeline.json").read_text())["traceEvents"]
    assert [e["name"] for e in events if e.get("cat") == "step"] == ["train 7", "train 8"]


def test_pictures_do_not_depend_on_process_and_hash_seed(inspected, inspect, tmp_path):
    folder, _ = inspected
    status, _, _ = inspect("--out=seen", "--profile-steps=0", "train.py", "9", "0")
    assert status == 0
    assert (tmp_path / "seen/train.dot").read_text() == (folder / "seen/train.dot").read_text()
    (here,) = (tmp_path / "seen/tensorboard/train").iterdir()
    (there,) = (folder / "seen/tensorboard/train").iterdir()
    assert graph_in(here) == graph_in(there)


@pytest.mark.parametrize("view", ["train.dot", "train.graph.txt", "train.plan.txt"])
def test_pictures_are_the_golden_ones(inspected, view):
    """TERRA_UPDATE_GOLDEN=1 writes what is expected."""
    folder, _ = inspected
    (log,) = (folder / "seen/tensorboard/train").iterdir()
    (folder / "seen/train.graph.txt").write_text(text_of_graph(log))
    text = (folder / "seen" / view).read_text()
    path = pathlib.Path(__file__).parent / "golden" / view
    if os.environ.get("TERRA_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def text_of_graph(path):
    """Return the names, ops, inputs and lines of a written graph."""
    lines = []
    for node in last_graph(path).node:
        source = node.attr["source"].s.decode() if "source" in node.attr else ""
        lines.append(f"{node.name} = {node.op}({', '.join(node.input)})  {source}".rstrip())
    return "\n".join(lines) + "\n"


def graph_in(path):
    """Return the last graph in an event file as text, whole."""
    return str(last_graph(path))


def last_graph(path):
    """Return the last graph in an event file."""
    graphs = [
        tf.compat.v1.Event.FromString(record.numpy()).graph_def
        for record in tf.data.TFRecordDataset(str(path))
    ]
    return tf.compat.v1.GraphDef.FromString([graph for graph in graphs if graph][-1])


def test_script_that_raises_is_explained_too(inspect):
    script = SCRIPT.replace('print("trained"', 'raise KeyError("mine")\n    print("trained"')
    status, out, err = inspect("train.py", "5", "0", script=script)
    assert status == 1
    assert "KeyError: 'mine'" in err
    assert "5 steps: 2 co-executed" in out


def test_script_that_leaves_with_a_text_prints_it(inspect):
    status, _, err = inspect("train.py", script="raise SystemExit('enough')")
    assert (status, err) == (1, "enough\n")


def test_script_that_is_not_there_is_named(inspect):
    status, _, err = inspect("absent.py")
    assert status == 2
    assert "there is no script 'absent.py' [TERRA-NO-SCRIPT]" in err


def test_folder_that_cannot_be_written_is_found_before_the_script_runs(inspect, tmp_path):
    (tmp_path / "file").write_text("")
    status, out, err = inspect("--out=file/seen", "train.py", "3", "0")
    assert status == 2
    assert "TERRA-UNWRITABLE" in err
    assert "trained" not in out


def test_script_without_terra_functions_is_told_to_decorate_one(inspect):
    status, out, _ = inspect("train.py", script="print('nothing here')")
    assert status == 0
    assert "made no terra function" in out


def test_script_that_never_co_executed_says_what_is_left_out_and_why(inspect):
    status, out, _ = inspect("--out=seen", "train.py", "1", "0")
    assert status == 0
    assert "no timeline: no function co-executed more than 3 steps" in out
    assert "tensorboard/train is left out" in out
    assert "no graph yet, after 1 traced steps" in out
