"""The checker of plans: states every invariant, and says exactly which one broke.

    check_plan(tables)      what must hold of any plan; `plan_fit` goes on

Beside `trace.verify`, for tests, after every build (the knob `verify`); nothing is repaired or
changed. What is checked is what the native half has, not what it was given. The invariants, by the
names that messages begin with:

    range       what is named exists: nodes, outputs, slots, levels, branches, webs
    block       a block is a chain of one level and branch from its head; each node is in one
    case        where ways part there is a decision, with a branch for each block and the skip
    epoch       epochs come in order, one after another, and an op that begins one is a head
    loop        trips begin inside of their loop, inner loops end before outer ones, trips are alike
    input       what an op takes was made before it, and the graph has it
    join        how a joined input is decided: by what is there, and told where it has to be
    variable    a slot is one way to a variable: captured, or bound and fed
    node        what a node says of itself fits how it runs
    channel     every channel has one use, and one of those that there are
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import NoReturn

from terra_tf._tf_internals import dtypes
from terra_tf.errors import broken_invariant
from terra_tf.runtime.plan_tables import (
    InputKind,
    NodeKind,
    PlanInput,
    PlanLevel,
    PlanNode,
    PlanTables,
)
from terra_tf.trace.joins import Rule

_OF_PYTHON = (InputKind.ANY, InputKind.RESOURCE)
_RESOURCE = dtypes.resource.as_datatype_enum
_IN_PLACE = 2


def check_plan(tables: PlanTables) -> None:
    """Checks what must hold of any plan.

    Raises:
      InternalError: Naming the invariant that broke, and where it did first.
    """
    _check_ranges(tables)
    _check_blocks(tables)
    _check_cases(tables)
    _check_epochs(tables)
    _check_loops(tables)
    _check_joins(tables)
    places = _places_in_blocks(tables)
    for number, node in enumerate(tables.nodes):
        _check_node(number, node)
        for position, source in enumerate(node.inputs):
            _check_input(tables, places, number, position, source)
    _check_variables(tables)
    _check_channels(tables)


def broken(invariant: str, what: str) -> NoReturn:
    """Raises what says that an invariant does not hold."""
    rule = "building a plan must keep the invariants that runtime/plan_verify.py states."
    raise broken_invariant("a plan", invariant, what, "TERRA-PLAN", rule=rule)


def name_of(number: int, node: PlanNode) -> str:
    """Returns what messages call an op."""
    return f"op {number} {node.name}"


# -------------------------------------------------------------------- ranges


def _check_ranges(tables: PlanTables) -> None:
    for what, number, limit in _numbers(tables):
        if not 0 <= number < limit:
            broken("range", f"{what} is {number} of {limit}")


def _numbers(tables: PlanTables) -> Iterator[tuple[str, int, int]]:
    """Yields every number that names something: what it is, and how many of these there are."""
    num_nodes, num_levels = len(tables.nodes), len(tables.levels)
    for number in tables.first_nodes:
        yield "a first op", number, num_nodes
    for number, node in enumerate(tables.nodes):
        name = name_of(number, node)
        yield f"the level of {name}", node.level, num_levels
        yield f"the branch of {name}", node.branch, num_nodes
        for successor in node.successors:
            yield f"what follows {name}", successor, num_nodes
        if node.next != -1:
            yield f"what comes next to {name}", node.next, num_nodes
        for result in node.outputs:
            for web in result.webs:
                yield f"a web of {name}", web, tables.num_webs
            if result.same_as_input != -1:
                yield f"the input that {name} returns", result.same_as_input, len(node.inputs)
        yield from _input_numbers(tables, name, node)
    for number, join in enumerate(tables.joins):
        name = f"join {number}"
        if join.rule is Rule.LATEST:
            yield f"the web of {name}", join.web, tables.num_webs
        if join.rule is Rule.SAME:
            yield f"what {name} is the same as", join.same, len(tables.joins)
        for output in join.alternatives:
            yield from _output_numbers(tables, f"an alternative of {name}", *output)
    for number, variable in enumerate(tables.variables):
        yield f"the number of variable {number}", variable.variable, len(tables.variables)
    for number, level in enumerate(tables.levels):
        yield f"the epoch of level {number}", level.epoch, len(tables.epochs)


def _input_numbers(
    tables: PlanTables, name: str, node: PlanNode
) -> Iterator[tuple[str, int, int]]:
    limits = {
        InputKind.VARIABLE: len(tables.variables),
        InputKind.RESOURCE: len(tables.variables),
        InputKind.CONSTANT: len(tables.constants),
        InputKind.CAPTURED: tables.num_captured,
        InputKind.FEED: len(tables.feeds),
        InputKind.JOIN: len(tables.joins),
    }
    for position, (kind, a, b) in enumerate(node.inputs):
        what = f"input {position} of {name}"
        if kind is InputKind.OUTPUT:
            yield from _output_numbers(tables, what, a, b)
        elif kind in limits:
            yield f"{what}, {kind.name.lower()},", a, limits[kind]


def _output_numbers(
    tables: PlanTables, what: str, node: int, output: int
) -> Iterator[tuple[str, int, int]]:
    yield f"{what}, an op,", node, len(tables.nodes)
    if 0 <= node < len(tables.nodes):
        yield f"{what}, an output of op {node},", output, len(tables.nodes[node].outputs)


# ------------------------------------------------------------ blocks and cases


def _check_blocks(tables: PlanTables) -> None:
    before = collections.Counter(node.next for node in tables.nodes if node.next >= 0)
    heads: dict[tuple[int, int], int] = {}
    for number, node in enumerate(tables.nodes):
        name = name_of(number, node)
        if before[number] != int(not node.is_head):
            what = "the head of a block" if node.is_head else "inside of a block"
            broken("block", f"{name} is {what}, and comes next to {before[number]} ops")
        if node.is_head:
            first = heads.setdefault((node.level, node.branch), number)
            if first != number:
                broken("block", f"op {first} and {name} begin one branch of level {node.level}")
        if node.next >= 0:
            following = tables.nodes[node.next]
            if (node.level, node.branch) != (following.level, following.branch):
                broken("block", f"op {node.next}, next to {name}, is elsewhere")
    # Chains whose nodes have one before them each and no head are rings.
    reached = sum(1 for head in heads.values() for _ in chain_from(tables, head))
    if reached != len(tables.nodes):
        broken("block", f"{len(tables.nodes) - reached} ops are in no block that has a head")


def _places_in_blocks(tables: PlanTables) -> list[int]:
    """Returns how many nodes come before each node in its block."""
    places = [0] * len(tables.nodes)
    for number, node in enumerate(tables.nodes):
        if node.is_head:
            for place, inside in enumerate(chain_from(tables, number)):
                places[inside] = place
    return places


def chain_from(tables: PlanTables, head: int) -> Iterator[int]:
    """Yields the nodes of a block."""
    while head >= 0:
        yield head
        head = tables.nodes[head].next


def _check_cases(tables: PlanTables) -> None:
    branches: dict[int, list[int]] = {}
    for node in tables.nodes:
        if node.is_head:
            branches.setdefault(node.level, []).append(node.branch)
    for number, level in enumerate(tables.levels):
        here = sorted(branches.get(number, ()))
        if not here or here != list(range(len(here))):
            broken("case", f"the branches of level {number} are {here}")
        if level.skip_index not in (-1, len(here)):
            broken("case", f"branch {level.skip_index} of {len(here)} skips level {number}")
        if (len(here) > 1 or level.skip_index >= 0) != (level.channel >= 0):
            ways = f"{len(here)} branches, skip {level.skip_index}, channel {level.channel}"
            broken("case", f"level {number} has {ways}")


def _check_epochs(tables: PlanTables) -> None:
    epoch = 0
    for number, level in enumerate(tables.levels):
        if level.epoch not in (epoch, epoch + 1):
            broken("epoch", f"level {number} is of epoch {level.epoch}, behind epoch {epoch}")
        epoch = level.epoch
    if epoch + 1 != len(tables.epochs):
        broken("epoch", f"{len(tables.epochs)} epochs can be closed, and {epoch + 1} are there")
    for number, closing in enumerate(tables.epochs):
        starts = [n for n, level in enumerate(tables.levels) if level.epoch == number]
        if starts and starts[0] != closing.start:
            broken("epoch", f"epoch {number} begins at level {starts[0]}, not {closing.start}")
        is_last = number + 1 == len(tables.epochs)
        closed = [channel >= 0 for channel in (closing.done, closing.resume)]
        if closing.commit < 0 or closed != [not is_last] * 2:
            broken("epoch", f"epoch {number} of {len(tables.epochs)} is closed by {closing}")


# --------------------------------------------------------------------- loops


def _check_loops(tables: PlanTables) -> None:
    begins: dict[int, list[int]] = {}  # end of a loop -> levels where its trips begin
    for number, level in enumerate(tables.levels):
        ends = [end for _, end in level.turns]
        if any(not number < end <= len(tables.levels) for end in ends):
            broken("loop", f"trips of loops that end before levels {ends} begin at {number}")
        if ends != sorted(ends, reverse=True):
            broken("loop", f"of the loops at level {number}, inner ones end before {ends}")
        for end in ends:
            begins.setdefault(end, []).append(number)
        if level.loop_end >= 0:
            _check_kept(tables, number, level)
    for end, levels in begins.items():
        epochs = {level.epoch for level in tables.levels[levels[0] : end]}
        if len(epochs) != 1:
            broken("loop", f"epochs {sorted(epochs)} are in the loop at level {levels[0]}")


def _check_kept(tables: PlanTables, number: int, level: PlanLevel) -> None:
    if not 0 <= level.trip_begin <= number < level.loop_end:
        where = f"a trip from level {level.trip_begin} of a loop to {level.loop_end}"
        broken("loop", f"level {number} is passed by {where}")
    turns = [end for channel, end in tables.levels[level.trip_begin].turns if channel >= 0]
    if level.loop_end not in turns:
        where = f"the trip that begins at level {level.trip_begin}"
        broken("loop", f"level {number} is passed by {where}, which nobody decides on")
    if level.skip_index >= 0:
        broken("loop", f"level {number} is passed by each trip, and has a branch that skips it")


# --------------------------------------------------------------------- joins


def _check_joins(tables: PlanTables) -> None:
    uses = collections.Counter(
        source.a
        for node in tables.nodes
        for source in node.inputs
        if source.kind is InputKind.JOIN
    )
    producers: collections.Counter[int] = collections.Counter(
        web for node in tables.nodes for output in node.outputs for web in output.webs
    )
    for web in range(tables.num_webs):
        if not producers[web]:
            broken("join", f"nothing adds to web {web}")
    for number, join in enumerate(tables.joins):
        name = f"join {number}"
        if uses[number] != 1:
            broken("join", f"{name} is {uses[number]} inputs")
        is_told = join.rule is Rule.SELECT or join.allows_external
        if is_told != (join.channel >= 0):
            broken("join", f"{name} of rule {join.rule.name} has channel {join.channel}")
        if bool(join.alternatives) != (join.rule is Rule.SELECT):
            broken("join", f"{name} of rule {join.rule.name} is one of {join.alternatives}")
        for node, output in join.alternatives:
            dtype = tables.nodes[node].outputs[output].dtype
            if dtype != join.dtype:
                broken("join", f"{name} of type {join.dtype} may be %{node}.{output}, a {dtype}")
        if join.rule is Rule.SAME:
            _check_same(tables, number)


def _check_same(tables: PlanTables, number: int) -> None:
    seen, at = {number}, number
    while tables.joins[at].rule is Rule.SAME:
        at = tables.joins[at].same
        if at in seen:
            broken("join", f"join {number} is the same as itself in the end")
        seen.add(at)


# --------------------------------------------------------------------- nodes


def _check_node(number: int, node: PlanNode) -> None:
    name = name_of(number, node)
    is_imperative = node.kind is NodeKind.IMPERATIVE
    if bool(node.folded) != (node.kind is NodeKind.FOLDED):
        broken("node", f"{name}, {node.kind.name}, has {len(node.folded)} results ready")
    if node.folded and len(node.folded) != len(node.outputs):
        broken("node", f"{len(node.folded)} of {len(node.outputs)} results of {name} are ready")
    if node.seed_channel >= 0 and node.is_real:
        broken("node", f"{name} is not the graph's to run, and is sent seeds")
    only_imperative = {
        "is awaited before it": node.check_channel >= 0,
        "has siblings": node.has_siblings,
    }
    for what, is_so in only_imperative.items():
        if is_so and not is_imperative:
            broken("node", f"{name} {what}, and Python does not run it")
    if node.num_input_specs not in (0, len(node.inputs)):
        broken("node", f"{name} has {len(node.inputs)} inputs and knows {node.num_input_specs}")
    if is_imperative and node.exit_channel >= 0:
        broken("node", f"{name} is awaited behind it, and Python runs it")
    for position, output in enumerate(node.outputs):
        if output.fetch_channel >= 0 and node.is_real:
            broken("node", f"output {position} of {name} is fetched, and Python has it")
        if output.feed_channel >= 0 and not is_imperative:
            broken("node", f"output {position} of {name} is fed, and Python does not run it")
        if output.same_as_input >= 0 and output.dtype != _RESOURCE:
            broken("node", f"output {position} of {name} is its input, and no handle")
    num_counted = sum(1 if count < 0 else count for count in node.counts)
    if list(node.counts) != [-2] and num_counted != len(node.inputs):
        broken("node", f"{name} has {len(node.inputs)} inputs, and its counts make {num_counted}")


def _check_input(
    tables: PlanTables, places: list[int], number: int, position: int, source: PlanInput
) -> None:
    node = tables.nodes[number]
    name = f"input {position} of {name_of(number, node)}"
    if (source.kind in _OF_PYTHON) != (node.kind is NodeKind.IMPERATIVE):
        broken("input", f"{name}, {node.kind.name}, is {source.kind.name}")
    if source.kind is InputKind.OUTPUT:
        _check_made(tables, places, number, name, source)
    if source.kind is InputKind.FEED:
        is_used = node.kind is NodeKind.DELEGATED
        if is_used and tables.feeds[source.a].channel < 0:
            broken("input", f"{name} is feed {source.a}, which never comes to the graph")
    if source.kind is InputKind.VARIABLE and not 0 <= source.b <= _IN_PLACE:
        broken("input", f"{name} is a variable, written in way {source.b}")


def _check_made(
    tables: PlanTables, places: list[int], number: int, name: str, source: PlanInput
) -> None:
    node, maker = tables.nodes[number], tables.nodes[source.a]
    if maker.kind is NodeKind.FOLDED:
        broken("input", f"{name} is a result of op {source.a}, which is folded")
    is_fed = maker.kind is NodeKind.DELEGATED or maker.outputs[source.b].feed_channel >= 0
    if node.kind is NodeKind.DELEGATED and not is_fed:
        broken("input", f"{name} is Python's %{source.a}.{source.b}, which is not fed")
    is_before = maker.level < node.level
    if maker.level == node.level and maker.branch == node.branch:
        is_before = places[source.a] < places[number]
    if not is_before:
        broken("input", f"{name} is made by op {source.a}, which does not come before it")


def _check_variables(tables: PlanTables) -> None:
    written: set[int] = set()
    for number, node in enumerate(tables.nodes):
        for position, source in enumerate(node.inputs):
            if source.kind is not InputKind.VARIABLE:
                continue
            slot = tables.variables[source.a]
            if source.b and node.kind is NodeKind.DELEGATED:
                written.add(slot.variable)
            is_there = slot.is_captured or slot.feed_channel >= 0
            if node.kind is NodeKind.DELEGATED and not is_there:
                where = f"input {position} of {name_of(number, node)}"
                broken("variable", f"{where} is variable {source.a}, which the graph never gets")
    for number, slot in enumerate(tables.variables):
        of = tables.variables[slot.variable]
        if slot.variable > number or of.variable != slot.variable:
            broken("variable", f"variable {number} is the same as {slot.variable}, no first one")
        if slot.is_captured and (slot.feed_channel >= 0 or slot.variable != number):
            broken("variable", f"variable {number} is captured, and bound too")
        if slot.written != (slot.variable in written):
            is_written = "is" if slot.written else "is not"
            broken("variable", f"variable {number} {is_written} written, and ops say otherwise")


# ------------------------------------------------------------------ channels


def _check_channels(tables: PlanTables) -> None:
    uses: dict[int, str] = {}
    for channel, _, use in tables.channels():
        if not 0 <= channel < tables.num_channels:
            broken("channel", f"{use} goes by channel {channel} of {tables.num_channels}")
        first = uses.setdefault(channel, use)
        if first != use:
            broken("channel", f"{first} and {use} go by channel {channel}")
    unused = sorted(set(range(tables.num_channels)) - set(uses))
    if unused:
        broken("channel", f"nothing goes by channels {unused}")
