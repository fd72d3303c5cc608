"""Draws case_assignment.png, the worked example of `terra_tf/trace/case_assignment.py`.

    python docs/design/draw_case_assignment.py        (needs graphviz's dot, or matplotlib)

Levels, blocks and legality are asked of `assign_cases`, so that the picture is the code's.
"""

import itertools
import pathlib
import shutil
import subprocess

from terra_tf.trace.case_assignment import END, START, assign_cases

NAMES = {START: "START", 0: "A", 1: "B1", 2: "B2", 3: "C", 4: "D", END: "END"}
TRACES = [(0, 1, 2, 4), (0, 1, 4), (0, 3, 4)]
PICTURE = pathlib.Path(__file__).with_name("case_assignment.png")
TRACED, UNSEEN, SHADE = "#222222", "#b0413e", ("#eef3f8", "#fbeedd")

edges = sorted({e for t in TRACES for e in zip((START, *t), (*t, END))})
cases = assign_cases(5, edges)
unseen = [
    (a, b)
    for a, b in itertools.product(NAMES, NAMES)
    if a != END and b != START and a != b and (a, b) not in edges and cases.is_legal(a, b)
]


def title(number):
    """What a level is, and the branches of its Case."""
    level = cases.levels[number]
    if level.is_inline:
        return f"level {number}\ninline"
    branches = [NAMES[b.nodes[0]] for b in level.blocks]
    branches += [] if level.is_mandatory else ["skip"]
    return f"level {number}\nswitch-case:\n{' | '.join(branches)}"


def decisions(trace):
    """What Python says to each switch-case on a trace, in order."""
    taken = {cases.level_of(n): NAMES[n] for n in trace}
    return [taken.get(k, "skip") for k, level in enumerate(cases.levels) if not level.is_inline]


def draw_with_dot():
    """Lets graphviz place the nodes."""
    lines = ["digraph {", "rankdir=LR; node [shape=box, fontname=Helvetica];"]
    lines += [f'"{NAMES[START]}" [shape=plain]; "{NAMES[END]}" [shape=plain];']
    for number, level in enumerate(cases.levels):
        label = title(number).replace("\n", "\\n")
        nodes = " ".join(f'"{NAMES[b.nodes[0]]}";' for b in level.blocks)
        color = SHADE[not level.is_inline]
        style = f'label="{label}"; style=filled; color="{color}";'
        lines.append(f"subgraph cluster{number} {{ {style} {nodes} }}")
    lines += [f'"{NAMES[a]}" -> "{NAMES[b]}";' for a, b in edges]
    lines += [f'"{NAMES[a]}" -> "{NAMES[b]}" [style=dashed, color="{UNSEEN}"];' for a, b in unseen]
    text = "\n".join([*lines, "}"])
    subprocess.run(["dot", "-Tpng", "-Gdpi=150", "-o", PICTURE], input=text, text=True, check=True)


def draw_with_matplotlib():
    """Places levels as columns, blocks as rows."""
    import matplotlib  # noqa: PLC0415 (only where there is no dot)

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    at = {START: (0.0, 0.0), END: (len(cases.levels) + 1.0, 0.0)}
    for number, level in enumerate(cases.levels):
        rows = len(level.blocks)
        for block in level.blocks:
            at[block.nodes[0]] = (number + 1.0, 0.7 * (rows - 1 - 2 * block.index))
    at[2] = (3.0, 0.7)  # beside B1, where its only traced way comes from
    bends = {(1, 4): -0.62, (0, 2): 0.12, (3, 4): 0.2}  # past other nodes
    figure, axes = pyplot.subplots(figsize=(10.5, 5.4), dpi=150)
    for number, level in enumerate(cases.levels):
        color = SHADE[not level.is_inline]
        axes.axvspan(number + 0.54, number + 1.46, ymin=0.2, color=color, zorder=0)
        axes.text(number + 1, 1.72, title(number), ha="center", va="center", fontsize=9.5)
    for (a, b), is_traced in [(e, True) for e in edges] + [(e, False) for e in unseen]:
        axes.annotate(
            "", at[b], at[a], zorder=1,
            arrowprops={
                "arrowstyle": "-|>", "shrinkA": 17, "shrinkB": 17, "lw": 1.5,
                "connectionstyle": f"arc3,rad={bends.get((a, b), 0)}",
                "color": TRACED if is_traced else UNSEEN,
                "linestyle": "-" if is_traced else (0, (4, 3)),
            },
        )  # fmt: skip
    for node, place in at.items():
        frame = {"boxstyle": "round,pad=0.45", "fc": "white", "ec": TRACED, "lw": 1.3}
        axes.text(*place, NAMES[node], ha="center", va="center", fontsize=11, zorder=2,
                  bbox=frame if node >= 0 else {"fc": "white", "ec": "none", "pad": 3})  # fmt: skip
    ways = [
        f"{' '.join(NAMES[n] for n in t):<12}  says  {', '.join(decisions(t))}"
        for t in [*TRACES, (0, 3, 2, 4)]
    ]
    ways[-1] += "   (never traced, and legal)"
    axes.text(0.55, -1.2, "\n".join(ways), family="monospace", fontsize=9, va="top")
    axes.text(3.55, -1.2, "solid: traced\ndashed: legal, though never traced", fontsize=9, va="top")
    axes.set_xlim(-0.4, len(cases.levels) + 1.4)
    axes.set_ylim(-1.85, 2.05)
    axes.axis("off")
    figure.savefig(PICTURE, bbox_inches="tight")


if __name__ == "__main__":
    draw_with_dot() if shutil.which("dot") else draw_with_matplotlib()
