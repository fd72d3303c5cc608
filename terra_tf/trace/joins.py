"""How a path decides what a joined input is.

Where an input has several producers, the graph has to hand on the right one whatever way
Python takes. Three rules, in the order in which they are tried; a rule holds if it gives the
right producer in every stored path:

    LATEST  the producer of a *web* that has run last. A web is what SSA would call a variable:
            all producers that inputs have in common, directly or through others. So an input
            that was `x` of layer 7 or 6 is known to be able to be that of layer 3 as well.
    SAME    whatever another joined input was. Gradient functions use what their forward ops
            used; for them this rule comes first.
    SELECT  Python says which, each time (ordinary aliasing: `if loss < best: best = h`).

An input that had one producer so far follows a rule too, where it shares a web.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from terra_tf.trace.location_tree import place_in_code
from terra_tf.trace.records import TensorSpec
from terra_tf.trace.trace_graph import (
    Feed,
    Joined,
    Node,
    NodeInput,
    Output,
    Path,
    TraceGraph,
    outputs_of,
)

_Key = tuple[int, int]  # node, position among its inputs


class Rule(enum.IntEnum):
    """How a joined input is decided; the numbers are the native plan's."""

    LATEST = 0
    SAME = 1
    SELECT = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Join:
    """A joined input.

    Attributes:
      number: In order of (node, position).
      node: The consumer.
      position: Which of its inputs.
      rule: How it is decided.
      web: LATEST: the number of the web, else -1.
      same: SAME: (node, position) of the other input, else None.
      alternatives: SELECT: the outputs to choose from.
      external: What it is where it comes from outside of the step, or None if it never does.
      spec: The type of everything that it can be.
    """

    number: int
    node: int
    position: int
    rule: Rule
    web: int
    same: _Key | None
    alternatives: tuple[Output, ...]
    external: Feed | None
    spec: TensorSpec

    @property
    def needs_message(self) -> bool:
        """Whether Python has to say something each time."""
        return self.rule is Rule.SELECT or self.external is not None


@dataclasses.dataclass(frozen=True, slots=True)
class Joins:
    """Every joined input of a graph's delegated nodes, and the webs."""

    of_input: dict[_Key, Join]
    webs: tuple[tuple[Output, ...], ...]


@dataclasses.dataclass(slots=True)
class _Query:
    """An input that needs a rule, or may have one."""

    sources: frozenset[Output]
    external: Feed | None
    is_optional: bool


def resolve_joins(graph: TraceGraph) -> Joins:
    """Finds a rule for every joined input of a graph."""
    return _Resolver(graph).run()


class _Resolver:
    def __init__(self, graph: TraceGraph) -> None:
        self._graph = graph
        self._paths = list(graph.paths)
        self._delegated = {
            number: node for number, node in enumerate(graph.nodes) if not node.is_imperative
        }
        self._web_of, self._externals_of = _find_webs(graph.nodes, self._delegated.values())
        self._queries = self._find_queries()
        self._chosen: dict[_Key, tuple[Rule, Any]] = {}

    def run(self) -> Joins:
        if not self._queries:
            return Joins({}, ())
        self._positions = [{n: i for i, n in enumerate(path.nodes)} for path in self._paths]
        self._paths_through: dict[int, list[int]] = {}
        for number, positions in enumerate(self._positions):
            for node in positions:
                self._paths_through.setdefault(node, []).append(number)
        self._index_joined()
        self._choose_latest(lambda query, key: self._shared_web(query, key, is_backward=False))
        self._choose_same(self._forward_candidates)
        self._choose_latest(lambda query, key: self._shared_web(query, key, is_backward=True))
        self._choose_latest(lambda query, _: None if query.is_optional else query.sources)
        self._choose_same(self._all_candidates)
        return self._collect()

    # ------------------------------------------------------------- queries

    def _find_queries(self) -> dict[_Key, _Query]:
        queries = {}
        for number, node in self._delegated.items():
            for position, source in enumerate(node.inputs):
                query = self._query_of(source)
                if query is not None:
                    queries[number, position] = query
        return queries

    def _query_of(self, source: NodeInput) -> _Query | None:
        if isinstance(source, Joined):
            return _Query(frozenset(source.sources), source.external, False)
        if isinstance(source, Output) and source in self._web_of:
            return _Query(frozenset({source}), None, True)
        if isinstance(source, Feed) and source.group in self._externals_of:
            return _Query(frozenset(), source, True)
        return None

    def _open(self) -> dict[_Key, _Query]:
        return {key: query for key, query in self._queries.items() if key not in self._chosen}

    # -------------------------------------------------------------- LATEST

    def _shared_web(
        self, query: _Query, key: _Key, is_backward: bool
    ) -> frozenset[Output] | None:
        if is_backward is not (self._delegated[key[0]].record.forward is not None):
            return None
        source = next(iter(query.sources), None)
        if source is not None:
            web = self._web_of.get(source)
        else:
            web = self._externals_of.get(query.external.group) if query.external else None
        if web is None:
            return None
        if query.is_optional and is_backward and not self._is_all_backward(web):
            return None
        spec = self._spec_of(query)
        return frozenset(output for output in web if spec.includes(self._output_spec(output)))

    def _output_spec(self, output: Output) -> TensorSpec:
        return self._graph.nodes[output.node].outputs[output.output]

    def _spec_of(self, query: _Query) -> TensorSpec:
        specs = [self._output_spec(source) for source in query.sources]
        if query.external is not None:
            specs.append(query.external.spec)
        return functools.reduce(TensorSpec.joined, specs)

    def _is_all_backward(self, web: Iterable[Output]) -> bool:
        return all(self._graph.nodes[o.node].record.forward is not None for o in web)

    def _choose_latest(self, web_for: Callable[[_Query, _Key], Any]) -> None:
        webs = {}
        for key, query in self._open().items():
            web = web_for(query, key)
            if web:
                webs[key] = web
        wrong = _where_latest_fails(self._paths, webs)
        for key, web in webs.items():
            if key not in wrong:
                self._chosen[key] = (Rule.LATEST, web)

    # ---------------------------------------------------------------- SAME

    def _forward_candidates(self, key: _Key) -> list[_Key]:
        forward = self._delegated[key[0]].record.forward
        if forward is None:
            return []
        known = self._at_marker.get(forward, [])
        return [k for k in known if k in self._chosen or not self._queries[k].is_optional]

    def _index_joined(self) -> None:
        """The joined inputs, in order, by their ops' markers and by what they may be."""
        self._at_marker: dict[object, list[_Key]] = {}
        self._with_source: dict[Output, list[_Key]] = {}
        for key, query in self._queries.items():
            marker = self._graph.nodes[key[0]].record.marker
            self._at_marker.setdefault(marker, []).append(key)
            if query.is_optional:
                continue
            for source in query.sources:
                self._with_source.setdefault(source, []).append(key)

    def _all_candidates(self, key: _Key) -> list[_Key]:
        if self._queries[key].is_optional:
            return []
        sources = self._queries[key].sources
        return sorted({k for source in sources for k in self._with_source[source]})

    def _choose_same(self, candidates_for: Callable[[_Key], Iterable[_Key]]) -> None:
        for key in self._open():
            for candidate in candidates_for(key):
                if candidate != key and self._is_same(key, candidate):
                    self._chosen[key] = (Rule.SAME, candidate)
                    break

    def _is_same(self, key: _Key, other: _Key) -> bool:
        external, other_external = self._queries[key].external, self._queries[other].external
        group = external and external.group
        other_group = other_external and other_external.group
        if group is not None and group != other_group:
            return False
        through = self._paths_through.get(key[0], ())
        for number in through:
            path, positions = self._paths[number], self._positions[number]
            at, at_other = positions[key[0]], positions.get(other[0])
            if at_other is None or at_other >= at:
                return False
            if path.sources[at][key[1]] != path.sources[at_other][other[1]]:
                return False
        return bool(through)  # if every path through it was forgotten, nothing is known

    # ------------------------------------------------------------- results

    def _collect(self) -> Joins:
        webs: dict[frozenset[Output], int] = {}
        needed = {key for key, query in self._queries.items() if not query.is_optional}
        for key in self._chosen:  # an optional one only where it has a rule
            needed.add(key)
        externals = self._externals_of_webs()
        of_input = {}
        for number, key in enumerate(sorted(needed)):
            query = self._queries[key]
            rule, what = self._chosen.get(key, (Rule.SELECT, None))
            external = query.external
            web = -1
            if rule is Rule.LATEST:
                web = webs.setdefault(what, len(webs))
                external = external or self._usable(externals.get(what), query)
            of_input[key] = Join(
                number,
                *key,
                rule,
                web,
                what if rule is Rule.SAME else None,
                tuple(sorted(query.sources)) if rule is Rule.SELECT else (),
                None if rule is Rule.SAME else external,
                self._spec_of(query),
            )
        return Joins(of_input, tuple(tuple(sorted(web)) for web in webs))

    def _externals_of_webs(self) -> dict[object, Feed]:
        """Where webs start outside of the step: what the first of their users takes there."""
        externals: dict[object, Feed] = {}
        for key, query in self._queries.items():
            rule, what = self._chosen.get(key, (None, None))
            if rule is Rule.LATEST and query.external is not None:
                externals.setdefault(what, query.external)
        return externals

    def _usable(self, external: Feed | None, query: _Query) -> Feed | None:
        """Who shares a web that starts outside may be the first to use it, if its type fits."""
        is_usable = external is not None and self._spec_of(query).includes(external.spec)
        return external if is_usable else None


def _find_webs(
    nodes: list[Node], delegated: Iterable[Node]
) -> tuple[dict[Output, list[Output]], dict[int, list]]:
    """Returns the producers that share a web with each output, or with each feed group."""
    webs: dict[Output, list[Output]] = {}
    of_group: dict[int, list[Output]] = {}
    externals: list[tuple[int, Output]] = []
    for node in delegated:
        for source in node.inputs:
            if not isinstance(source, Joined):
                continue
            _unite(webs, outputs_of(source))
            if source.external is not None and source.sources:
                externals.append((source.external.group, source.sources[0]))
    first_of_group: dict[int, Output] = {}
    for group, output in externals:  # who starts from one tensor outside is of one web
        _unite(webs, (first_of_group.setdefault(group, output), output))
    _add_other_trips(nodes, webs)
    for group, output in externals:
        of_group[group] = webs[output]
    return webs, of_group


def _add_other_trips(nodes: list[Node], webs: dict[Output, list[Output]]) -> None:
    """What a loop hands on after 3 trips or after 7 it may hand on after 5."""
    trips: dict[Hashable, list[int]] = {}
    for number, node in enumerate(nodes):
        place = _place_in_code(node)
        if place is not None:
            trips.setdefault(place, []).append(number)
    for web in {id(members): members for members in webs.values()}.values():
        count = collections.Counter(
            (_place_in_code(nodes[o.node]), o.output) for o in web
        )
        for (place, output), times in count.items():
            if place is not None and times >= 2:
                _unite(webs, (web[0], *(Output(n, output) for n in trips[place])))


def _place_in_code(node: Node) -> Hashable | None:
    """Returns a node's key without the trips of the loops around it, or None if there are none."""
    place = place_in_code(node.key.location)
    return None if place is None else (node.key.op_type, node.key.attributes, place)


def _unite(webs: dict[Output, list[Output]], outputs: tuple[Output, ...]) -> None:
    merged = list(dict.fromkeys(o for output in outputs for o in webs.get(output, (output,))))
    for member in merged:
        webs[member] = merged


def _where_latest_fails(paths: list[Path], webs: dict[_Key, frozenset[Output]]) -> set[_Key]:
    """Returns the inputs that in some path were not what their web's latest producer gave."""
    numbers: dict[frozenset[Output], int] = {}
    web_of = {key: numbers.setdefault(web, len(numbers)) for key, web in webs.items()}
    positions_of: dict[int, list[_Key]] = {}
    for key in webs:
        positions_of.setdefault(key[0], []).append(key)
    produced_by: dict[int, list[tuple[Output, int]]] = {}
    for web, number in numbers.items():
        for output in sorted(web):
            produced_by.setdefault(output.node, []).append((output, number))
    wrong: set[_Key] = set()
    for path in paths:
        latest: dict[int, Output] = {}
        for node, sources in zip(path.nodes, path.sources):
            for key in positions_of.get(node, ()):
                if sources[key[1]] != latest.get(web_of[key]):
                    wrong.add(key)
            for output, number in produced_by.get(node, ()):
                latest[number] = output
    return wrong
