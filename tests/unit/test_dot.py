"""The Graphviz text of a TraceGraph: golden, the same at every run, and honest without `dot`.

The expected texts are in golden/; TERRA_UPDATE_GOLDEN=1 writes them.
"""

import os
import pathlib
import shutil
import subprocess

import graphviz
import pytest

from terra_tf.errors import ConfigError, MissingProgramError, NothingToShowError
from terra_tf.viz.dot import to_graphviz
from tests.unit import test_dump
from tests.unit.synthetic_traces import make_trace_graph, merge_all

GOLDEN_FILES = pathlib.Path(__file__).parent / "golden"
PROGRAMS = (test_dump.if_else, test_dump.optional_block, test_dump.best_of_several)
needs_dot = pytest.mark.skipif(
    shutil.which("dot") is None, reason="Graphviz's program `dot` is not installed"
)


def graph_of(program):
    graph, _ = merge_all(*program())
    return graph


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_text_is_the_golden_one(program):
    text = to_graphviz(graph_of(program)).source
    path = GOLDEN_FILES / f"{program.__name__}.dot"
    if os.environ.get("TERRA_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("program", test_dump.PROGRAMS, ids=lambda program: program.__name__)
def test_equal_graphs_have_equal_texts(program):
    assert to_graphviz(graph_of(program)).source == to_graphviz(graph_of(program)).source


def test_kinds_of_nodes_are_told_apart():
    graph, _ = merge_all(test_dump.make_trace())
    text = graph_of_nodes(to_graphviz(graph).source)
    assert "shape=house" in text["feed0"]
    assert "shape=note" in text["captured0"]
    assert "shape=cylinder" in text["var0"]
    assert "shape=plaintext" in text["const4_1"]
    assert "shape=invhouse" in text["fetch2_0"]
    assert "run by Python: stateful_op" in text["op6"]
    assert "train.py:8 in step" in text["op2"]


def graph_of_nodes(source):
    lines = [line.strip() for line in source.splitlines() if "->" not in line]
    return {line.split(" ")[0]: line for line in lines if " [label=" in line}


def test_forks_and_joins_are_nodes():
    source = to_graphviz(graph_of(test_dump.if_else)).source
    assert 'case0 -> op1 [label="branch 0: 1 of 2 traces"' in source
    assert 'case0 -> op3 [label="branch 1: 1 of 2 traces"' in source
    assert "op0 -> case0 [" in source
    assert "op1 -> join0" in source
    assert "op3 -> join0" in source
    assert "join0 -> op2" in source


def test_branches_are_clusters_that_the_depth_closes():
    graph = graph_of(test_dump.if_else)
    assert 'subgraph "cluster_switch_case_0/branch_1"' in to_graphviz(graph, depth=2).source
    branches_closed = to_graphviz(graph, depth=1).source
    assert "op1" not in branches_closed
    assert "subgraph cluster_switch_case_0" in branches_closed
    all_closed = to_graphviz(graph, depth=0).source
    assert "subgraph" not in all_closed
    assert "2 ops" in all_closed


def test_large_graphs_are_collapsed_to_the_limit():
    graph = graph_of(test_dump.stochastic_depth)
    assert to_graphviz(graph, max_nodes=8).source == to_graphviz(graph, depth=2).source
    assert to_graphviz(graph, max_nodes=7).source != to_graphviz(graph, depth=2).source


def test_drawing_does_not_change_the_graph():
    graph = graph_of(test_dump.if_else)
    graph.structure = None
    to_graphviz(graph)
    assert graph.structure is None


def test_method_of_the_graph_draws_it():
    graph = graph_of(test_dump.if_else)
    picture = graph.to_graphviz(depth=1)
    assert isinstance(picture, graphviz.Digraph)
    assert picture.source == to_graphviz(graph, depth=1).source


BAD_OPTIONS = [{"depth": -1}, {"max_nodes": 0}, {"max_nodes": "many"}]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_options_that_make_no_sense_are_refused(options):
    (name,) = options
    with pytest.raises(ConfigError, match=rf"{name}=.*\[TERRA-VIEW-OPTION\]"):
        to_graphviz(graph_of(test_dump.straight), **options)


def test_without_the_program_the_text_comes_and_rendering_says_what_to_install(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("PATH", str(tmp_path))
    picture = to_graphviz(graph_of(test_dump.straight))
    assert "digraph" in picture.source
    with pytest.raises(MissingProgramError, match="apt-get install graphviz"):
        picture.render(tmp_path / "picture", format="svg")
    with pytest.raises(MissingProgramError, match=r"\[TERRA-NO-DOT\]"):
        picture.pipe(format="svg")
    shown = picture._repr_mimebundle_()
    assert "apt-get install graphviz" in shown["text/plain"]
    assert "digraph" in shown["text/plain"]


@needs_dot
def test_graphviz_takes_every_text(tmp_path):
    for program in test_dump.PROGRAMS:
        path = to_graphviz(graph_of(program)).render(tmp_path / program.__name__, format="svg")
        assert "Embed" in pathlib.Path(path).read_text() or program.__name__ in (
            "optional_block", "best_of_several", "variable_siblings"
        )  # fmt: skip


@needs_dot
def test_graphviz_reads_names_and_labels():
    drawn = subprocess.run(
        ["dot", "-Tplain"],
        input=to_graphviz(graph_of(test_dump.if_else)).source,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert drawn.stderr == ""
    assert "node case0" in drawn.stdout
    assert r"Embed\nf32[2]\ntrain.py:1 in step" in drawn.stdout


def test_a_graph_without_a_trace_says_what_to_do():
    with pytest.raises(NothingToShowError, match="call the function first"):
        make_trace_graph().to_graphviz()
