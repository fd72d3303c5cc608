"""Measured costs in the form TensorBoard colours graphs by: a RunMetadata."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from terra_tf.viz.graph_def import FlatGraph
from terra_tf.viz.measurement import Measurement

_CPU = "/job:localhost/replica:0/task:0/device:CPU:0"


def run_metadata(flat: FlatGraph, measured: Measurement) -> Any:
    """Returns the RunMetadata of a flat graph: of each op that ran, the mean time and memory.

    TensorBoard counts in whole microseconds, so that an op has at least one. Ops that TensorFlow
    made itself (to move values between functions and devices) are left out.
    """
    metadata = tf.compat.v1.RunMetadata()
    # TensorBoard shows the costs on the graph that comes with them; on one, names are kept.
    metadata.function_graphs.add().pre_optimization_graph.CopyFrom(flat.graph_def)
    devices: dict[str, Any] = {}
    for op, cost in measured.costs.items():
        name = flat.name_of.get(op)
        if name is None:
            continue
        device = _CPU
        if device not in devices:
            devices[device] = metadata.step_stats.dev_stats.add(device=device)
        mean_us = max(1, round(cost.total_us / cost.runs))
        stats = devices[device].node_stats.add(
            node_name=name,
            all_start_micros=round(cost.start_us),
            op_end_rel_micros=mean_us,
            all_end_rel_micros=mean_us,
            timeline_label=f"{cost.runs} runs in {measured.num_runs} steps",
        )
        num_bytes = round(cost.num_bytes / cost.runs)
        stats.memory.add(allocator_name="cpu", total_bytes=num_bytes, peak_bytes=num_bytes)
        for slot, (dtype, shape) in enumerate(flat.shapes_of[name]):
            output = stats.output.add(slot=slot)
            output.tensor_description.dtype = dtype
            output.tensor_description.shape.CopyFrom(shape)
    return metadata
