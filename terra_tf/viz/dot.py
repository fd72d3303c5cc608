"""Draws a neutral picture with Graphviz.

    picture = to_graphviz(graph)              a graphviz.Digraph: a notebook shows it
    print(picture.source)                     the text, which needs no program
    picture.render("step", format="svg")      writes step.svg, with the program `dot`

Shapes tell kinds apart: boxes are ops (with a bold red border where Python runs them itself),
folders are groups of ops, houses are feeds, inverted houses are fetches, cylinders are variables,
notes are captured tensors, plain text is a constant, diamonds are forks, ellipses are joins.
Dashed arrows are the ways through a fork. The output is a function of the picture alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import graphviz

from terra_tf.errors import ConfigError, MissingProgramError, format_message
from terra_tf.trace.dump import count
from terra_tf.trace.trace_graph import TraceGraph
from terra_tf.viz.scopes import ScopePath
from terra_tf.viz.trace_view import view_of
from terra_tf.viz.view import View, ViewEdge, ViewNode, collapse, collapse_to

MAX_NODES = 150

_STYLES: dict[str, dict[str, str]] = {
    "op": {"shape": "box", "style": "rounded,filled", "fillcolor": "#ffffff"},
    "imperative": {
        "shape": "box", "style": "rounded,filled,bold", "fillcolor": "#fdecea", "color": "#c5221f",
    },
    "group": {"shape": "folder", "style": "filled", "fillcolor": "#eef3fb"},
    "feed": {"shape": "house", "style": "filled", "fillcolor": "#ceead6"},
    "fetch": {"shape": "invhouse", "style": "filled", "fillcolor": "#fde293"},
    "captured": {"shape": "note", "style": "filled", "fillcolor": "#e6f4ea"},
    "constant": {"shape": "plaintext", "fontcolor": "#5f6368"},
    "variable": {"shape": "cylinder", "style": "filled", "fillcolor": "#d2e3fc"},
    "switch_case": {"shape": "diamond", "style": "filled", "fillcolor": "#f3e8fd"},
    "join": {"shape": "ellipse", "style": "filled", "fillcolor": "#f3e8fd"},
    "start": {"shape": "circle", "style": "filled", "fillcolor": "#202124", "fontcolor": "#ffffff"},
}  # fmt: skip
_EDGE_STYLES: dict[str, dict[str, str]] = {
    "data": {},
    "control": {"style": "dashed", "color": "#9334e6"},
    "branch": {"style": "dashed", "color": "#9334e6", "fontcolor": "#9334e6", "penwidth": "1.5"},
}
_CLUSTER_COLORS = {
    "call": "#f8f9fa", "loop": "#fef7e0", "trip": "#fffdf5", "gradients": "#fce8e6",
    "switch_case": "#f8f0fe", "branch": "#fdfaff",
}  # fmt: skip


class Picture(graphviz.Digraph):
    """A `graphviz.Digraph` that says what to install where the program `dot` is missing."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        """As `graphviz.Digraph.render`.

        Raises:
          MissingProgramError: There is no program `dot`.
        """
        return _with_program(super().render, *args, **kwargs)

    def pipe(self, *args: Any, **kwargs: Any) -> Any:
        """As `graphviz.Digraph.pipe`.

        Raises:
          MissingProgramError: There is no program `dot`.
        """
        return _with_program(super().pipe, *args, **kwargs)

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> dict[str, str]:
        """What a notebook shows: the picture, or without `dot` what to install, and the source."""
        try:
            return _with_program(super()._repr_mimebundle_, *args, **kwargs)
        except MissingProgramError as error:
            return {"text/plain": f"{error}\n\n{self.source}"}


def _with_program(call: Callable, *args: Any, **kwargs: Any) -> Any:
    try:
        return call(*args, **kwargs)
    except graphviz.ExecutableNotFound as error:
        raise MissingProgramError(
            format_message(
                "the picture cannot be drawn: there is no program `dot`",
                "TERRA-NO-DOT",
                why="the Python package graphviz writes the text; Graphviz itself draws it.",
                suggestions=[
                    "apt-get install graphviz, brew install graphviz or"
                    " conda install graphviz, and look that `dot -V` runs",
                    "picture.source is the text, which any Graphviz viewer draws",
                ],
            )
        ) from error


def to_graphviz(
    graph: TraceGraph, *, depth: int | None = None, max_nodes: int = MAX_NODES
) -> Picture:
    """Draws a TraceGraph; see the module's docstring.

    Args:
      graph: What to draw; it is not changed. Not while another thread may merge into it.
      depth: How many levels of scopes (calls of the user's functions, loops, branches) to open;
        what is deeper is drawn as one node. None: as many as `max_nodes` allows.
      max_nodes: How many ops and groups to draw at most, as far as the scopes allow.

    Raises:
      ConfigError: `depth` is negative, or `max_nodes` is not positive.
    """
    _check("depth", depth, 0)
    _check("max_nodes", max_nodes, 1)
    view = view_of(graph)
    return render(collapse_to(view, max_nodes) if depth is None else collapse(view, depth))


def _check(name: str, value: int | None, minimum: int) -> None:
    if value is None or (isinstance(value, int) and value >= minimum):
        return
    raise ConfigError(
        format_message(
            f"to_graphviz cannot draw with {name}={value!r}",
            "TERRA-VIEW-OPTION",
            why=f"{name} takes an int of at least {minimum}.",
            suggestions=[f"leave {name} out"],
        )
    )


def render(view: View) -> Picture:
    """Returns the Graphviz text of a picture."""
    picture = Picture("terra", graph_attr={"label": view.title, "rankdir": "TB"})
    picture.attr("graph", fontname="Helvetica", labelloc="t", compound="true", newrank="true")
    picture.attr("node", fontname="Helvetica", fontsize="10")
    picture.attr("edge", fontname="Helvetica", fontsize="8", color="#5f6368")
    _add_scope(picture, (), list(view.nodes))
    for edge in view.edges:
        _add_edge(picture, edge)
    return picture


def _add_scope(picture: Any, scopes: ScopePath, nodes: list[ViewNode]) -> None:
    """Adds the nodes of one cluster, and those of the clusters in it, in order."""
    depth = len(scopes)
    inner: dict[ScopePath, list[ViewNode]] = {}
    for node in nodes:
        if len(node.scopes) == depth:
            _add_node(picture, node)
        else:
            inner.setdefault(node.scopes[: depth + 1], []).append(node)
    for path, members in inner.items():
        name = "cluster_" + "/".join(scope.name for scope in path)
        with picture.subgraph(name=name) as cluster:
            color = _CLUSTER_COLORS[path[-1].kind]
            label = graphviz.escape(path[-1].label)
            cluster.attr(label=label, style="filled,rounded", fillcolor=color, color="#9aa0a6")
            _add_scope(cluster, path, members)


def _add_node(picture: Any, node: ViewNode) -> None:
    lines = [node.title, *node.details] if node.kind != "start" else [""]
    tooltip = f"in {count(node.hits, 'trace')}" if node.hits else node.title
    label = "\\n".join(map(graphviz.escape, lines))
    picture.node(node.name, label, tooltip=graphviz.escape(tooltip), **_STYLES[node.kind])


def _add_edge(picture: Any, edge: ViewEdge) -> None:
    label = {"label": graphviz.escape(edge.label)} if edge.label else {}
    picture.edge(edge.source, edge.target, **label, **_EDGE_STYLES[edge.kind])
