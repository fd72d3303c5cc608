# ruff: noqa: E501  (the text of a picture)
"""Draws the pictures of docs/architecture.md: `python docs/draw_architecture.py` (needs dot).

`rooms.svg` and `phases.svg` are laid out by Graphviz; `step.svg` is a sequence of messages, which
Graphviz cannot draw, and is written here line by line.
"""

import html
import pathlib
import subprocess

DOCS = pathlib.Path(__file__).parent
PYTHON, NATIVE, TENSORFLOW, MARK = "#e8f0fe", "#e6f4ea", "#fef7e0", "#b3261e"

ROOMS = f"""
digraph {{
  rankdir=TB; fontname=Helvetica; nodesep=0.35; ranksep=0.45;
  node [shape=box, style="filled,rounded", fontname=Helvetica, fontsize=12, color="#5f6368"];
  edge [fontname=Helvetica, fontsize=10, color="#5f6368"];

  user [label="your function, called\\nfunction.py decides how", fillcolor="{PYTHON}"];
  hooks [label="hooks: every eager op passes here\\nkernels/hooks/", fillcolor="{NATIVE}"];
  user -> hooks [label="ops"];

  recorder [label="trace: one step's ops, with locations\\ntrace/recorder.py, location.py", fillcolor="{PYTHON}"];
  merge [label="TraceGraph: all steps, merged by\\ntype, attributes and location\\ntrace/placing.py, merging.py", fillcolor="{PYTHON}"];
  cases [label="switch-cases and joins\\ntrace/case_assignment.py, joins.py", fillcolor="{PYTHON}"];
  generator [label="a TensorFlow function, and its channels\\ngraph/epochs.py, folding.py, generator.py", fillcolor="{PYTHON}"];
  plan [label="plan: the same as flat tables\\nruntime/plan.py", fillcolor="{PYTHON}"];
  replay [label="divergence: cancel, replay, record on\\nruntime/session.py, replay.py, prefix.py", fillcolor="{PYTHON}"];
  hooks -> recorder [label="TRACING", weight=9];
  recorder -> merge -> cases -> generator -> plan [weight=9];
  {{ rank=same; recorder; replay; }}

  cursor [label="PythonRunner: the cursor matches\\nops, makes pending tensors\\nkernels/cursor/, session/", fillcolor="{NATIVE}"];
  mailbox [label="mailbox of the step\\nkernels/core/mailbox.h", fillcolor="{NATIVE}"];
  runner [label="GraphRunner: a thread that\\nlaunches the function\\nkernels/runner/graph_runner.cc", fillcolor="{NATIVE}"];
  kernels [label="TensorFlow's executor, Terra's ops\\nkernels/ops/communication_kernels.cc", fillcolor="{TENSORFLOW}"];
  hooks -> cursor [label="CO_EXECUTION"];
  plan -> cursor;
  generator -> runner;
  runner -> kernels;
  cursor -> mailbox [label="feed, case, commit"];
  mailbox -> cursor [label="fetch"];
  mailbox -> kernels [dir=both];
  {{ rank=same; cursor; runner; }}

  cursor -> replay [label="no match", color="{MARK}", fontcolor="{MARK}", constraint=false];
  replay -> merge [label="the step's trace", color="{MARK}", fontcolor="{MARK}"];
}}
"""

PHASES = f"""
digraph {{
  rankdir=TB; fontname=Helvetica; nodesep=0.7; ranksep=0.8;
  node [shape=box, style="filled,rounded", fontname=Helvetica, fontsize=13, color="#5f6368", fillcolor="{PYTHON}"];
  edge [fontname=Helvetica, fontsize=11, color="#5f6368"];
  tracing [label="tracing\\nops run at once, and are recorded"];
  running [label="co-execution\\nops are matched, the graph runs them", fillcolor="{NATIVE}"];
  imperative [label="imperative\\nplain eager", fillcolor="{TENSORFLOW}"];
  tracing -> running [label="nothing new: build a graph"];
  running -> tracing [label="divergence that brought\\nsomething new"];
  running -> imperative [label="max_divergences points"];
  tracing -> imperative [label="trace_too_long,\\ngraph_build_failed"];
  imperative -> tracing [label="after retry_after_steps calls"];
}}
"""

LANES = ("Python (your thread)", "mailbox", "graph (executor threads)")
LANE_X = (150, 430, 710)
# (who, what) is a note in a lane; (from, to, what) is a message; (who, None, what) is a wait.
STEP = (
    (0, "the call begins"),
    (0, 2, "launch"),
    (0, "MatMul matched: pending tensor"),
    (0, 1, "feed: x"),
    (1, 2, "feed: x"),
    (2, "MatMul"),
    (0, "if loss.numpy() < 0.1:"),
    (0, None, "Python waits: GIL released"),
    (2, 1, "fetch: loss"),
    (1, 0, "loss"),
    (0, 1, "case: the branch taken"),
    (1, 2, "case"),
    (2, "the branch's ops"),
    (0, "w.assign_sub matched"),
    (2, None, "the graph waits: no write yet"),
    (0, "the function returns"),
    (0, 1, "commit"),
    (1, 2, "commit"),
    (2, "the variables are written"),
    (0, "the next call may begin"),
)
ROW = 34


def text(x, y, words, anchor="middle", color="#202124"):
    words = html.escape(words)
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{color}">{words}</text>'


def draw_note(lane, words, y, is_wait):
    width = 9 + 7.4 * len(words)
    fill, stroke = ("#fce8e6", MARK) if is_wait else ((PYTHON, NATIVE, TENSORFLOW)[lane], "#9aa0a6")
    x = LANE_X[lane] - width / 2
    dashes = ' stroke-dasharray="4 3"' if is_wait else ""
    box = f'<rect x="{x:.1f}" y="{y - 14}" width="{width:.1f}" height="22" rx="5"'
    return [f'{box} fill="{fill}" stroke="{stroke}"{dashes}/>', text(LANE_X[lane], y + 2, words)]


def draw_message(source, target, words, y):
    gap = 4 if target > source else -4
    x1, x2 = LANE_X[source] + gap, LANE_X[target] - gap
    line = f'<line x1="{x1}" y1="{y}" x2="{x2}" y2="{y}" stroke="#1a73e8" marker-end="url(#head)"/>'
    return [line, text((x1 + x2) / 2, y - 5, words, color="#174ea6")]


def draw_step():
    height = 60 + ROW * len(STEP)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 {height}" width="860"'
        f' height="{height}" font-family="Helvetica, Arial, sans-serif" font-size="13">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
        ' markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#1a73e8"/></marker></defs>',
        f'<rect width="860" height="{height}" fill="white"/>',
    ]
    for x, name in zip(LANE_X, LANES, strict=True):
        out.append(text(x, 24, name))
        out.append(f'<line x1="{x}" y1="34" x2="{x}" y2="{height - 12}" stroke="#dadce0"/>')
    for number, entry in enumerate(STEP):
        y = 60 + ROW * number
        if len(entry) == 2:
            out += draw_note(*entry, y, is_wait=False)
        elif entry[1] is None:
            out += draw_note(entry[0], entry[2], y, is_wait=True)
        else:
            out += draw_message(*entry, y)
    return "\n".join([*out, "</svg>", ""])


def draw_with_dot(source):
    done = subprocess.run(["dot", "-Tsvg"], input=source, capture_output=True, text=True, check=True)
    return done.stdout


def pictures():
    """Return the text of each picture, by its file's name."""
    return {
        "rooms.svg": draw_with_dot(ROOMS),
        "phases.svg": draw_with_dot(PHASES),
        "step.svg": draw_step(),
    }


if __name__ == "__main__":
    for name, svg in pictures().items():
        (DOCS / name).write_text(svg)
