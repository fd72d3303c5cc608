"""Plans written by hand, and changes of them."""

import dataclasses

import tensorflow as tf

from terra_tf.graph.generated_graph import EpochChannels
from terra_tf.runtime.plan_tables import (
    InputKind,
    NodeKind,
    PlanFeed,
    PlanInput,
    PlanJoin,
    PlanLevel,
    PlanNode,
    PlanOutput,
    PlanTables,
    PlanVariable,
)
from terra_tf.trace.joins import Rule

FLOAT, RESOURCE = tf.float32.as_datatype_enum, tf.resource.as_datatype_enum
FETCH, PRODUCTS, NEGATED, JOINED, PYTHON, WRITE = range(6)


def made(node, output=0):
    return PlanInput(InputKind.OUTPUT, node, output)


def result(**changes):
    return PlanOutput(FLOAT, (2,), **changes)


def make_plan():
    """y = x * w; if ...: y = -y; y = sum(y, 1); in another epoch: w += python(y)"""
    variable = PlanInput(InputKind.VARIABLE, 0)
    one = (-1, -1)
    nodes = [
        PlanNode("Read", 0, counts=(-1,), inputs=[variable], outputs=[result()], next=1,
                 successors=[1]),
        PlanNode("Mul", 0, counts=one, inputs=[PlanInput(InputKind.FEED, 0), made(0)],
                 outputs=[result(webs=[0])], is_head=False, successors=[2, 3], is_fork=True),
        PlanNode("Neg", 1, counts=(-1,), inputs=[made(1)], outputs=[result(webs=[0])],
                 successors=[3]),
        PlanNode("Sum", 2, counts=one,
                 inputs=[PlanInput(InputKind.JOIN, 0), PlanInput(InputKind.CONSTANT, 0)],
                 outputs=[result(fetch_channel=2)], successors=[4]),
        PlanNode("PyFunc", 3, NodeKind.IMPERATIVE, counts=(1,), inputs=[PlanInput(InputKind.ANY)],
                 outputs=[result(feed_channel=3)], next=5, successors=[5]),
        PlanNode("AssignAdd", 3, counts=one, inputs=[variable._replace(b=1), made(4)],
                 is_head=False, is_fork=True),
    ]  # fmt: skip
    return PlanTables(
        nodes=nodes,
        levels=[PlanLevel(), PlanLevel(1, 1), PlanLevel(), PlanLevel(epoch=1)],
        epochs=[EpochChannels(0, 4, 5, 6), EpochChannels(3, 7)],
        num_channels=8,
        first_nodes=[0],
        joins=[PlanJoin(Rule.LATEST, FLOAT, (2,), web=0)],
        variables=[PlanVariable(0, is_captured=True, written=True)],
        feeds=[PlanFeed(FLOAT, (2,), channel=0)],
        constants=[tf.constant(1.0)],
        num_webs=1,
    )


def make_loop():
    """At most three trips of an op, in each of which another may be skipped."""
    nodes = []
    for trip in range(3):
        first = 2 * trip
        nodes.append(PlanNode("Mul", first, successors=[first + 1, first + 2, 6], is_fork=True))
        nodes.append(PlanNode("Neg", first + 1, successors=[first + 2, 6], is_fork=True))
    nodes.append(PlanNode("Sum", 6, successors=[], is_fork=True))
    levels = []
    for trip in range(3):
        begin = 2 * trip
        levels.append(PlanLevel(turns=[(trip, 6)], trip_begin=begin, loop_end=6))
        levels.append(PlanLevel(channel=3 + trip, skip_index=1))
    return PlanTables(nodes, [*levels, PlanLevel()], [EpochChannels(0, 6)], 7, [0, 6], True)


def change(row, tables, number, **changes):
    """Return tables of which one row of the table `row` is another."""
    rows = list(getattr(tables, row))
    rows[number] = dataclasses.replace(rows[number], **changes)
    return dataclasses.replace(tables, **{row: rows})


def change_node(number, tables=None, **changes):
    return change("nodes", tables or make_plan(), number, **changes)


def change_input(node, position, source):
    tables = make_plan()
    inputs = list(tables.nodes[node].inputs)
    inputs[position] = source
    return change_node(node, tables, inputs=inputs)
