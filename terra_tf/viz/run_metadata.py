"""Measured costs in the form TensorBoard colours graphs by: a RunMetadata."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from terra_tf.viz.graph_def import FlatGraph
from terra_tf.viz.measurement import Measurement, OpCost

_CPU = "/job:localhost/replica:0/task:0/device:CPU:0"


def run_metadata(flat: FlatGraph, measured: Measurement) -> Any:
    """Returns the RunMetadata of a flat graph: of each op that ran, the mean time and memory.

    TensorBoard shows a scope's time as its last end minus its first start. So that this is the sum
    of its ops' times, ops are put one after another here, scope by scope; when they really ran is
    the timeline's business. It counts in whole microseconds, so an op has at least one. Ops that
    TensorFlow made itself (to move values between functions and devices) are left out.
    """
    metadata = tf.compat.v1.RunMetadata()
    # TensorBoard shows the costs on the graph that comes with them; on one, names are kept.
    metadata.function_graphs.add().pre_optimization_graph.CopyFrom(flat.graph_def)
    device = metadata.step_stats.dev_stats.add(device=_CPU)
    costs = {flat.name_of[op]: cost for op, cost in measured.costs.items() if op in flat.name_of}
    start_us = 0
    for name in sorted(costs, key=lambda name: name.split("/")):
        mean_us = max(1, round(costs[name].total_us / costs[name].runs))
        stats = device.node_stats.add(
            node_name=name,
            all_start_micros=start_us,
            op_end_rel_micros=mean_us,
            all_end_rel_micros=mean_us,
            timeline_label=f"{costs[name].runs} runs in {measured.num_runs} steps",
        )
        _add_memory(stats, costs[name])
        _add_outputs(stats, flat.shapes_of[name])
        start_us += mean_us
    return metadata


def _add_memory(stats: Any, cost: OpCost) -> None:
    num_bytes = round(cost.num_bytes / cost.runs)
    stats.memory.add(allocator_name="cpu", total_bytes=num_bytes, peak_bytes=num_bytes)


def _add_outputs(stats: Any, shapes: list[tuple[int, Any]]) -> None:
    for slot, (dtype, shape) in enumerate(shapes):
        output = stats.output.add(slot=slot)
        output.tensor_description.dtype = dtype
        output.tensor_description.shape.CopyFrom(shape)
