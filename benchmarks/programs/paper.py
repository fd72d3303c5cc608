"""The ten programs of the Terra paper, by name.

    program = PAPER_PROGRAMS["gpt2"].make(terra.function, "tiny")
    losses = [float(program.step(i)) for i in range(5)]

They are written for this project, in the style that their originals are known for; nothing is
copied from them. Each module says what its model is, what Python feature makes it hard to convert
(`FEATURE`), what it learns from (`DATA`), and has its `SIZES`: `tiny` for tests, `small` for a
measurement on a CPU, `paper` with the dimensions that were published.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import ModuleType

from benchmarks.programs import (
    bert_cls,
    bert_qa,
    dcgan,
    dropblock,
    faster_rcnn,
    gpt2,
    music_transformer,
    resnet50,
    sdpoint,
    yolov3,
)
from benchmarks.programs.program import Program

SIZE_NAMES = ("tiny", "small", "paper")


@dataclasses.dataclass(frozen=True)
class PaperProgram:
    """One of the ten: its name in flags and records, its title in text, and its module."""

    name: str
    title: str
    module: ModuleType

    @property
    def feature(self) -> str:
        """What makes it hard to convert into a graph."""
        return self.module.FEATURE

    @property
    def data(self) -> str:
        """What it learns from, and whether that is real."""
        return self.module.DATA

    def make(self, wrap: Callable, size: str, seed: int = 0) -> Program:
        """Build the program in a size, all its sources of randomness seeded."""
        return self.module.make(wrap, **self.module.SIZES[size], seed=seed)


PAPER_PROGRAMS = {
    program.name: program
    for program in (
        PaperProgram("dropblock", "DropBlock", dropblock),
        PaperProgram("bert_qa", "BERT-Q&A", bert_qa),
        PaperProgram("music_transformer", "MusicTransformer", music_transformer),
        PaperProgram("sdpoint", "SDPoint", sdpoint),
        PaperProgram("bert_cls", "BERT-CLS", bert_cls),
        PaperProgram("gpt2", "GPT2", gpt2),
        PaperProgram("dcgan", "DCGAN", dcgan),
        PaperProgram("resnet50", "ResNet50", resnet50),
        PaperProgram("faster_rcnn", "FasterRCNN", faster_rcnn),
        PaperProgram("yolov3", "YOLOv3", yolov3),
    )
}
