"""Draws docs/timeline.png: some steps of the demo, profiled. `python docs/draw_timeline.py`."""

import pathlib
import tempfile

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Patch

import terra_tf as terra
from benchmarks import demo

NUM_STEPS_BEFORE, NUM_STEPS_PROFILED, NUM_DRAWN = 46, 10, 3
COLORS = {
    "steps": "#a8dab5", "stalls": "#d93025", "graphs": "#aecbfa", "starved": "#f9ab00",
    "ops": "#1a73e8",
}  # fmt: skip
NAMES = {
    "steps": "Python runs the step", "stalls": "stall: Python waits for the graph",
    "graphs": "a graph runs", "starved": "the graph waits for Python", "ops": "a kernel runs",
}  # fmt: skip
ARROWS = {"feed": "#188038", "case": "#9334e6", "commit": "#5f6368", "fetch": "#b06000"}


def profile_demo():
    """Return the timeline of some steps of the demo's training, as the demo runs them."""
    digits = demo.load(seed=0)
    trainer = demo.Trainer(seed=0)
    step = terra.function(trainer.step)
    num_steps = NUM_STEPS_BEFORE + NUM_STEPS_PROFILED
    batches = list(digits.batches(num_epochs=4, batch_size=64, seed=0))[:num_steps]

    def train(first, batches):
        for number, (images, labels) in enumerate(batches, start=first):
            trainer.schedule(number, 86)
            loss, _ = step(images, labels)
            float(loss)

    train(0, batches[:NUM_STEPS_BEFORE])
    with tempfile.TemporaryDirectory() as folder:
        with terra.profile(pathlib.Path(folder) / "demo.json") as profile:
            train(NUM_STEPS_BEFORE, batches[NUM_STEPS_BEFORE:])
        print(profile)
    print(step.explain())
    return profile.timeline


def least_disturbed(steps):
    """Return the consecutive steps that took least time: the machine is shared."""
    windows = [steps[i : i + NUM_DRAWN] for i in range(len(steps) - NUM_DRAWN + 1)]
    return min(windows, key=lambda window: window[-1].end_us - window[0].start_us)


def draw(timeline, path):
    """Draw some steps; time goes to the right, in milliseconds."""
    shown = least_disturbed(timeline.steps)
    start_us, end_us = shown[0].start_us, shown[-1].end_us
    lanes = sorted({op.lane for op in timeline.ops})
    rows = {"steps": 0, "stalls": 0, "graphs": 1, "starved": 1}
    figure, axes = plt.subplots(figsize=(13, 1.5 + 0.55 * (2 + len(lanes))), dpi=110)

    def bar(kind, piece, row, height):
        first, last = max(piece.start_us, start_us), min(piece.end_us, end_us)
        if first < last:
            left, width = (first - start_us) / 1e3, (last - first) / 1e3
            axes.barh(row, width, height, left, color=COLORS[kind], linewidth=0)

    for kind, row in rows.items():
        for piece in getattr(timeline, kind):
            bar(kind, piece, row, 0.62 if kind in ("steps", "graphs") else 0.34)
    for op in timeline.ops:
        bar("ops", op, 2 + lanes.index(op.lane), 0.5)
    for step in shown:
        text = step.name.replace("step", "train step")
        axes.text((step.start_us - start_us) / 1e3, -0.42, text, fontsize=9)
    for arrow in timeline.arrows:
        if start_us <= arrow.sent_us <= end_us and arrow.received_us <= end_us:
            ends = ((arrow.sent_us, 0.31), (arrow.received_us, 0.69))
            if arrow.kind == "fetch":
                ends = ((arrow.sent_us, 0.69), (arrow.received_us, 0.31))
            (x0, y0), (x1, y1) = (((t - start_us) / 1e3, y) for t, y in ends)
            style = {"arrowstyle": "->", "color": ARROWS[arrow.kind], "lw": 1}
            axes.annotate("", (x1, y1), (x0, y0), arrowprops=style)
    names = ["PythonRunner", "GraphRunner", *(f"kernels {i}" for i in range(len(lanes)))]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(1.5 + len(lanes), -0.75)
    axes.set_xlim(0, (end_us - start_us) / 1e3)
    axes.set_xlabel("ms")
    handles = [Patch(color=COLORS[kind], label=NAMES[kind]) for kind in COLORS]
    handles += [plt.Line2D([], [], color=color, label=kind) for kind, color in ARROWS.items()]
    legend = {"ncols": 5, "fontsize": 8, "loc": "upper center", "frameon": False}
    axes.legend(handles=handles, bbox_to_anchor=(0.5, -0.22), **legend)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, bbox_inches="tight")


if __name__ == "__main__":
    draw(profile_demo(), pathlib.Path(__file__).with_name("timeline.png"))
