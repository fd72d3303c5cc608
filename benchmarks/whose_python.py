"""Whose Python runs in a step of sixty small functions and layers, once all of it is matched."""

from __future__ import annotations

import dataclasses
import tempfile

import terra_tf as terra
from benchmarks.programs import PROGRAMS
from benchmarks.report import Section
from benchmarks.step_times import training_step

_NAME = "small_parts"
_NUM_WARMUP_STEPS = 30
_NUM_PROFILED_STEPS = 200


def small_parts(*, num_steps: int) -> Section:
    """Measure the steps, and sample whose Python runs in terra's."""
    section = training_step(_NAME, _NAME, {}, num_steps=num_steps)
    shares = {f"share_of_{owner}": share for owner, share in _sampled_shares().items()}
    return dataclasses.replace(
        section,
        findings={**section.findings, **shares},
        notes=[*section.notes, "target: share_of_terra_tf below 0.10"],
    )


def _sampled_shares() -> dict[str, float]:
    program = PROGRAMS[_NAME](terra.function)
    for i in range(_NUM_WARMUP_STEPS):
        program.step(i).numpy()
    with tempfile.TemporaryDirectory() as folder, terra.profile(f"{folder}/steps.json") as profile:
        for i in range(_NUM_PROFILED_STEPS):
            program.step(i)
        terra.synchronize()
    return profile.python_shares
