"""A plan as text, the same at every run of the same program: what the cursor follows.

    Plan: 4 ops, 3 levels, 1 epoch, 6 channels
      var0: captured
      feed0: f32[4], channel 2
      const0: i32 0
      join0: f32[4], latest of web 0
      web 0: %1.0, %2.0
    epoch 0, commit 0
    level 0
      0 ReadVariableOp(var0) -> f32[4]
      1 Mul(feed0, %0.0) -> f32[4]  web 0; then 2, 3 by place
    level 1, case 1: 1 branch, 1 skips
      branch 0
        2 Neg(%1.0) -> f32[4]  web 0; then 3
    level 2
      3 Sum(join0, const0) -> f32[]  fetched 0 by 5; then by place

Ops have the numbers that they have in the TraceGraph's dump, and `%1.0` is output 0 of op 1. A
level is what every way passes, or a switch-case, whose branch Python says on the channel behind
`case`; so are a loop's trips, whose channel says whether this one is made, and an epoch's commit.
Behind an op: `then` what has followed it in some trace, `by place` where the user's code has to be
looked at to know that. What never passes a channel is said without one.
"""

from __future__ import annotations

from collections.abc import Iterator

from terra_tf.runtime.plan_tables import (
    InputKind,
    NodeKind,
    PlanInput,
    PlanJoin,
    PlanLevel,
    PlanNode,
    PlanOutput,
    PlanTables,
)
from terra_tf.trace.dump import count, type_text, value_text
from terra_tf.trace.joins import Rule
from terra_tf.trace.records import TensorSpec

_KINDS = {
    InputKind.VARIABLE: "var",
    InputKind.CONSTANT: "const",
    InputKind.CAPTURED: "captured",
    InputKind.FEED: "feed",
    InputKind.JOIN: "join",
    InputKind.RESOURCE: "var",
}
_WRITES = ("", " written", " written in place")
_RUNNERS = {NodeKind.DELEGATED: (), NodeKind.FOLDED: ("folded",), NodeKind.IMPERATIVE: ("Python",)}


def dump_plan(tables: PlanTables) -> str:
    """Returns a plan as deterministic text, one line an op; see the module's docstring."""
    return "\n".join(_lines(tables))


def _lines(tables: PlanTables) -> Iterator[str]:
    counts = (
        count(len(tables.nodes), "op"),
        count(len(tables.levels), "level"),
        count(len(tables.epochs), "epoch"),
        count(tables.num_channels, "channel"),
    )
    yield f"Plan: {', '.join(counts)}"
    yield from _outside_lines(tables)
    yield from _join_lines(tables)
    yield from _level_lines(tables)


def _outside_lines(tables: PlanTables) -> Iterator[str]:
    for number, variable in enumerate(tables.variables):
        is_another = variable.variable != number
        notes = [f"as var{variable.variable}" if is_another else "bound"]
        if variable.is_captured:
            notes = ["captured"]
        notes += _on_channel("channel", variable.feed_channel)
        notes += ["written"] if variable.written else []
        yield f"  var{number}: {', '.join(notes)}"
    for number, feed in enumerate(tables.feeds):
        notes = [_type(feed.dtype, feed.shape), *_on_channel("channel", feed.channel)]
        if feed.allowed is not None:
            notes.append(f"in [{max(feed.allowed[0], 0)}, {feed.allowed[1]})")
        yield f"  feed{number}: {', '.join(notes)}"
    for number, tensor in enumerate(tables.constants):
        yield f"  const{number}: {value_text(tensor)}"


def _join_lines(tables: PlanTables) -> Iterator[str]:
    for number, join in enumerate(tables.joins):
        notes = [_type(join.dtype, join.shape), _rule(join)]
        notes += ["or from outside"] if join.allows_external else []
        notes += _on_channel("channel", join.channel)
        yield f"  join{number}: {', '.join(notes)}"
    for number in range(tables.num_webs):
        producers = ", ".join(f"%{node}.{output}" for node, output in tables.web(number))
        yield f"  web {number}: {producers}"


def _rule(join: PlanJoin) -> str:
    if join.rule is Rule.LATEST:
        return f"latest of web {join.web}"
    if join.rule is Rule.SAME:
        return f"same as join{join.same}"
    return "one of " + ", ".join(f"%{node}.{output}" for node, output in join.alternatives)


def _level_lines(tables: PlanTables) -> Iterator[str]:
    blocks: dict[int, dict[int, list[int]]] = {}
    for number, node in enumerate(tables.nodes):
        if node.is_head:
            blocks.setdefault(node.level, {})[node.branch] = _block(tables, number)
    epoch = -1
    for number, level in enumerate(tables.levels):
        if level.epoch != epoch:
            epoch = level.epoch
            yield _epoch_line(tables, epoch)
        here = sorted(blocks.get(number, {}).items())
        yield _level_line(number, level, len(here))
        for branch, nodes in here:
            indent = "  " if level.channel < 0 else "    "
            if level.channel >= 0:
                yield f"  branch {branch}"
            yield from (f"{indent}{_node_line(n, tables.nodes[n])}" for n in nodes)


def _block(tables: PlanTables, head: int) -> list[int]:
    nodes: list[int] = []
    while head >= 0 and head not in nodes:
        nodes.append(head)
        head = tables.nodes[head].next
    return nodes


def _epoch_line(tables: PlanTables, number: int) -> str:
    epoch = tables.epochs[number]
    notes = [f"epoch {number}", *_on_channel("commit", epoch.commit)]
    if number > 0:
        notes += _on_channel("begins by", tables.epochs[number - 1].resume)
    return ", ".join([*notes, *_on_channel("done by", epoch.done)])


def _level_line(number: int, level: PlanLevel, num_branches: int) -> str:
    notes = [f"level {number}"]
    for channel, end in level.turns:
        asked = " by ".join(["a trip", *([str(channel)] if channel >= 0 else [])])
        notes.append(f"{asked} of the loop to level {end}")
    if level.loop_end >= 0:
        notes.append(f"passed by each trip from level {level.trip_begin}")
    line = ", ".join(notes)
    if level.channel < 0:
        return line
    skips = f", {level.skip_index} skips" if level.skip_index >= 0 else ""
    return f"{line}, case {level.channel}: {count(num_branches, 'branch')}{skips}"


def _node_line(number: int, node: PlanNode) -> str:
    inputs = ", ".join(map(_input, node.inputs))
    outputs = ", ".join(_type(output.dtype, output.shape) for output in node.outputs) or "nothing"
    notes = [*_RUNNERS[node.kind], *_node_notes(node), *_next_notes(node)]
    return f"{number} {node.name}({inputs}) -> {outputs}  {'; '.join(notes)}".rstrip()


def _input(source: PlanInput) -> str:
    if source.kind is InputKind.OUTPUT:
        return f"%{source.a}.{source.b}"
    if source.kind is InputKind.ANY:
        return "any"
    write = _WRITES[source.b] if source.kind is InputKind.VARIABLE else ""
    return f"{_KINDS[source.kind]}{source.a}{write}"


def _node_notes(node: PlanNode) -> Iterator[str]:
    yield from ["on the host"] if node.on_host else []
    yield from ["shapes by rule"] if node.has_shape_rule else []
    yield from ["has raised"] if node.may_raise else []
    yield from ["one of siblings"] if node.has_siblings else []
    yield from _on_channel("seeds by", node.seed_channel)
    yield from _on_channel("waits before it for", node.check_channel)
    yield from _on_channel("waits behind it for", node.exit_channel)
    for position, output in enumerate(node.outputs):
        yield from _output_notes(position, output)


def _output_notes(position: int, output: PlanOutput) -> Iterator[str]:
    yield from (f"web {number}" for number in output.webs)
    yield from _on_channel(f"fetched {position} by", output.fetch_channel)
    yield from _on_channel(f"fed {position} by", output.feed_channel)
    yield from [f"{position} is input {output.same_as_input}"] if output.same_as_input >= 0 else []


def _next_notes(node: PlanNode) -> Iterator[str]:
    if node.next < 0:
        words = [", ".join(map(str, node.successors)), "by place" if node.is_fork else ""]
        yield " ".join(word for word in ("then", *words) if word)


def _on_channel(what: str, channel: int) -> list[str]:
    return [f"{what} {channel}"] if channel >= 0 else []


def _type(dtype: int, shape: tuple[int, ...] | None) -> str:
    return type_text(TensorSpec(dtype, shape))
