"""A TraceGraph as a neutral picture: nodes, edges and nested clusters, for any renderer.

    view_of(graph)               everything
    view_of(graph, depth=1)      what is deeper than one scope is one node, `layer: 37 ops`
    view_of(graph, max_nodes=80) the deepest picture that has at most 80 ops and groups

What becomes a node: an op; a tensor from outside (feed, captured tensor, constant, variable); a
value that Python fetches; a switch-case, where ways fork; a join, where they meet again and an
input is one of several values. Edges are data, or the way of control through a fork. Everything
is in the order of the case assignment, and named by it, so that equal programs give equal views.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from terra_tf.trace.dump import count
from terra_tf.viz.scopes import ScopePath

NodeKind = Literal[
    "op", "imperative", "group", "feed", "captured", "constant", "variable", "fetch",
    "switch_case", "join", "start",
]  # fmt: skip
EdgeKind = Literal["data", "control", "branch"]


@dataclasses.dataclass(frozen=True, slots=True)
class ViewNode:
    """Something to draw.

    Attributes:
      name: Unique in its view: `op3`, `feed0`, `case1`, `group2`.
      kind: What it is.
      title: Its first line.
      details: More lines.
      scopes: The clusters it is in, outermost first.
      hits: For an op, how many traces passed it.
    """

    name: str
    kind: NodeKind
    title: str
    details: tuple[str, ...] = ()
    scopes: ScopePath = ()
    hits: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class ViewEdge:
    """An arrow.

    Attributes:
      source: A node's name.
      target: A node's name.
      kind: "data", "control" (to a fork) or "branch" (from a fork).
      label: A tensor's type, or a branch; may be empty.
    """

    source: str
    target: str
    kind: EdgeKind = "data"
    label: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """A picture.

    Attributes:
      title: A line on the whole.
      nodes: In order.
      edges: In order, without repetitions.
    """

    title: str
    nodes: tuple[ViewNode, ...]
    edges: tuple[ViewEdge, ...]

    @property
    def num_ops(self) -> int:
        """How many ops and groups of ops are drawn."""
        return sum(node.kind in ("op", "imperative", "group") for node in self.nodes)


def collapse(view: View, depth: int) -> View:
    """Returns a view in which each scope of that depth that holds ops is one node."""
    groups = _Groups(view, depth)
    nodes: dict[str, ViewNode] = {}
    for node in view.nodes:
        shown = groups.shown(node)
        nodes.setdefault(shown.name, shown)
    edges = (
        dataclasses.replace(
            edge, source=groups.name_of[edge.source], target=groups.name_of[edge.target]
        )
        for edge in view.edges
    )
    kept = tuple(dict.fromkeys(edge for edge in edges if edge.source != edge.target))
    drawn = {name for edge in kept for name in (edge.source, edge.target)}
    # A constant that only ops inside of a group use is inside too.
    lone = ("constant", "captured", "variable", "feed", "join")
    left = (node for node in nodes.values() if node.name in drawn or node.kind not in lone)
    return View(view.title, tuple(left), kept)


class _Groups:
    """Which node of the collapsed view stands for one of the full view."""

    def __init__(self, view: View, depth: int) -> None:
        self._depth = depth
        self.name_of: dict[str, str] = {}
        self._group_of: dict[ScopePath, ViewNode] = {}
        self._users: dict[str, list[ScopePath]] = {}
        members: dict[ScopePath, list[ViewNode]] = {}
        for node in view.nodes:
            if len(node.scopes) > depth:
                members.setdefault(self._cut(node), []).append(node)
        for scopes, inside in members.items():
            self._group_of[scopes] = _group(len(self._group_of), scopes, inside)

    def _cut(self, node: ViewNode) -> ScopePath:
        return node.scopes[: self._depth + 1]

    def shown(self, node: ViewNode) -> ViewNode:
        """Returns the node that stands for this one."""
        shown = node if len(node.scopes) <= self._depth else self._group_of[self._cut(node)]
        self.name_of[node.name] = shown.name
        return shown


def _group(number: int, scopes: ScopePath, members: list[ViewNode]) -> ViewNode:
    ops = [node for node in members if node.kind in ("op", "imperative")]
    num_cases = sum(node.kind == "switch_case" for node in members)
    details = [count(len(ops), "op")]
    if num_cases:
        details.append(count(num_cases, "switch-case"))
    hits = max((node.hits for node in ops), default=0)
    return ViewNode(
        f"group{number}", "group", scopes[-1].label, tuple(details), scopes[:-1], hits
    )


def collapse_to(view: View, max_nodes: int) -> View:
    """Returns the deepest collapsed view of at most `max_nodes` ops and groups.

    Where even the outermost scopes are too many, they are returned: what is in no scope at all
    cannot be collapsed.
    """
    if view.num_ops <= max_nodes:
        return view
    deepest = max((len(node.scopes) for node in view.nodes), default=0)
    collapsed = view
    for depth in reversed(range(deepest)):
        collapsed = collapse(view, depth)
        if collapsed.num_ops <= max_nodes:
            break
    return collapsed
