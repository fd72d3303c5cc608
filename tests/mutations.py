"""Break nineteen central rules, one at a time, and see that a test notices: `make mutations`.

    python -m tests.mutations                    all of them
    python -m tests.mutations --only drain       one

Each mutation is one change of one line, made in a copy of the tree under `build/mutants`, so that
nothing is left behind. A rule that can be broken without a failing test is printed as SURVIVED, and
the exit status is 1. `docs/mutations.md` has the table; `tests/packaging/test_mutations.py` holds
that what is replaced is still in the source.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
COPY = ROOT / "build" / "mutants"
_TEST_TIMEOUT_S = 40  # a broken rule may hang
_COPIED = ("terra_tf", "kernels", "tests", "benchmarks", "docs")
_FAILURE = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)
_HUNG = re.compile(r"File \"[^\"]*/(tests/\w+/[^\"]+)\", line \d+, in (test_\w+)")


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A rule, and how it is broken.

    name: of the rule.
    rule: what holds.
    file: the source that holds it.
    old: a piece of text that the file has once.
    new: what it becomes.
    tests: where the breaking must be noticed.
    """

    name: str
    rule: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "merge-key",
        "Ops are one node only if their locations are equal too.",
        "terra_tf/trace/placing.py",
        "attributes, record.location)",
        "attributes, None)",
        ("tests/unit/test_trace_graph.py",),
    ),
    Mutation(
        "fetch-placement",
        "A fetch comes after the ops before it that can fail.",
        "terra_tf/graph/emitter.py",
        "list(self.scope.epoch.fallible)):\n"
        '            op = apply_op("Terra>Fetch", step=self.step, input=tensor',
        '[]):\n            op = apply_op("Terra>Fetch", step=self.step, input=tensor',
        ("tests/unit/test_generator.py", "tests/coexec/test_hazards_errors.py"),
    ),
    Mutation(
        "commit-order",
        "A variable is written after Python has committed.",
        "terra_tf/graph/generator.py",
        "with ops.control_dependencies([commit]):",
        "with ops.control_dependencies([]):",
        ("tests/unit/test_generator.py", "tests/coexec/test_hazards_variables.py"),
    ),
    Mutation(
        "pinning",
        "A value that Python may have seen is what a replay goes on with.",
        "terra_tf/runtime/replay.py",
        "            if ready:\n",
        "            if False:\n",
        ("tests/coexec/test_pinning.py",),
    ),
    Mutation(
        "drain",
        "An op outside of steps waits for the steps that use its variable.",
        "kernels/session/settling.cc",
        "session != self && session->ConflictsWith(key, writes)",
        "session != self && session->ConflictsWith(key, writes) && false",
        ("tests/coexec/test_hazards_variables.py",),
    ),
    Mutation(
        "epoch-close",
        "An imperative op on a variable that the graph uses begins an epoch.",
        "terra_tf/graph/epochs.py",
        "if slots & (state.used | used_later):",
        "if False:",
        ("tests/unit/test_epochs.py",),
    ),
    Mutation(
        "replay-order",
        "A replay runs ops in program order.",
        "terra_tf/runtime/replay.py",
        "self._run_node(self._path[self._num_done])",
        "self._run_node(self._path[-1 - self._num_done])",
        ("tests/coexec/test_hazards_errors.py", "tests/coexec/test_hazards_python.py"),
    ),
    Mutation(
        "liveness",
        "No tensor that somebody still holds is left without a value.",
        "terra_tf/runtime/session.py",
        "        unfetched = set(self.native.unfetched())\n        if unfetched:\n"
        "            self._diverge_unfetched(unfetched)\n            return\n"
        "        self.native.commit_step",
        "        self.native.commit_step",
        ("tests/coexec/test_hazards_tensors.py",),
    ),
    Mutation(
        "constant-guard",
        "A constant of the graph has the bytes it was traced with.",
        "kernels/cursor/matcher.cc",
        "ConstantMatches(constant, *value)) {",
        "(ConstantMatches(constant, *value) || true)) {",
        ("tests/coexec/test_straight_programs.py", "tests/coexec/test_hazards_python.py"),
    ),
    Mutation(
        "shape-guard",
        "A fed tensor has the shape that the graph was built for.",
        "kernels/cursor/matcher.cc",
        "expected.IsCompatibleWith(shape)) {",
        "(expected.IsCompatibleWith(shape) || true)) {",
        ("tests/coexec/test_shapes.py", "tests/coexec/test_hazards_tensors.py"),
    ),
    Mutation(
        "replay-guard",
        "A call is replayed only while the objects it has read are as they were.",
        "kernels/replay/pure_calls.cc",
        "!record.guard.IsUnchanged()) return false;",
        "!record.guard.IsUnchanged() && false) return false;",
        ("tests/coexec/test_replayed_layers.py",),
    ),
    Mutation(
        "replay-key",
        "Calls that differ in an argument are not the same call.",
        "kernels/replay/pure_key.cc",
        "if (problem != nullptr || call.kwargs == nullptr) return problem;",
        "if (true) return problem;",
        ("tests/coexec/test_replayed_functions.py",),
    ),
    Mutation(
        "replay-shape",
        "Calls that are given numbers of other shapes are not the same call.",
        "kernels/replay/pure_key.cc",
        "if (!plan_.nodes[made.node].of_shapes) return;",
        "if (made.node >= 0) return;",
        ("tests/coexec/test_replayed_shapes.py",),
    ),
    Mutation(
        "replay-late",
        "What has followed from a shape that nothing tells does not follow in the next step.",
        "kernels/outputs/call_log.cc",
        "if (outputs_[index].is_told) return;",
        "if (index >= 0) return;",
        ("tests/coexec/test_replayed_shapes.py",),
    ),
    Mutation(
        "replay-tape",
        "What Python itself records on a tape is recorded when its call is replayed.",
        "kernels/replay/pure_calls.cc",
        "if (!step.record_attrs) return true;",
        "if (true) return true;",
        ("tests/coexec/test_replayed_layers.py",),
    ),
    Mutation(
        "tape-look",
        "A tape that is looked at knows what it was not told before.",
        "kernels/tapes/tape_log.cc",
        "if (!RecordAll(segments)) {",
        "if (false && !RecordAll(segments)) {",
        ("tests/coexec/test_unrecorded_tapes.py",),
    ),
    Mutation(
        "tape-order",
        "What happened before a variable is watched is not connected to it.",
        "kernels/tapes/step_tapes.cc",
        "return !log_.NoteAccess(IdOf(handle)) || Flush();",
        "return !log_.NoteAccess(IdOf(handle)) || true;",
        ("tests/coexec/test_unrecorded_tapes.py",),
    ),
    Mutation(
        "users-gradient",
        "A custom gradient with code of the user's in it always runs.",
        "kernels/plan/library_gradient.cc",
        '== "tensorflow";',
        '!= "";',
        ("tests/coexec/test_users_gradients.py",),
    ),
    Mutation(
        "kept-tensors",
        "What is kept of an earlier step is code; its tensors are those of this step.",
        "kernels/replay/makings.cc",
        "if (source.name < 0) source.object",
        "if (true) source.object",
        ("tests/coexec/test_jacobians.py",),
    ),
    Mutation(
        "gradient-fits",
        "What a gradient takes of the step is verified before its ops are delegated.",
        "kernels/replay/gradients_op_by_op.cc",
        "if (!Fits(record, operands, &held) || !",
        "if ((false && !Fits(record, operands, &held)) || !",
        ("tests/coexec/test_gradients_op_by_op.py",),
    ),
    Mutation(
        "claims",
        "Inputs that are verified together are held against each other.",
        "kernels/cursor/matcher.cc",
        "if (problem == Reason::kNone) claims->AddFeed(ref.a, tensor);",
        "",
        ("tests/coexec/test_aliasing.py",),
    ),
    Mutation(
        "close-again",
        "A step that an exception has left is closed until it is over.",
        "kernels/session/step_run.cc",
        "constexpr int kMaxTries = 100;",
        "constexpr int kMaxTries = 0;",
        ("tests/coexec/test_interruptions.py",),
    ),
)


def make_copy() -> None:
    """Bring the copy of the tree up to date; what was built in it stays."""
    for name in _COPIED:
        shutil.copytree(
            ROOT / name,
            COPY / name,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__", "*.svg", "*.png"),
        )
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, COPY / path.name)


def build() -> None:
    """Compile the copy."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=COPY, check=True, stdout=subprocess.DEVNULL)


def run_tests(tests: tuple[str, ...]) -> str | None:
    """Return the first test that fails, or None."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", *tests]
    command += ["-p", "no:cacheprovider", f"--timeout={_TEST_TIMEOUT_S}"]
    done = subprocess.run(
        command,
        cwd=COPY,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode == 0:
        return None
    failed = _FAILURE.findall(done.stdout)
    if failed:
        return failed[0]
    hung = _HUNG.findall(done.stdout)
    return f"{hung[0][0]}::{hung[0][1]} (hangs)" if hung else done.stdout[-1500:]


def try_mutation(mutation: Mutation) -> str | None:
    """Return the first test that fails while the rule is broken, or None."""
    path = COPY / mutation.file
    text = path.read_text()
    assert text.count(mutation.old) == 1, mutation
    is_native = path.suffix != ".py"
    path.write_text(text.replace(mutation.old, mutation.new))
    try:
        if is_native:
            build()
        return run_tests(mutation.tests)
    finally:
        path.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="names of mutations, with commas")
    wanted = (parser.parse_args().only or ",".join(m.name for m in MUTATIONS)).split(",")
    mutations = [mutation for mutation in MUTATIONS if mutation.name in wanted]
    COPY.mkdir(parents=True, exist_ok=True)
    make_copy()
    build()
    survivors = 0
    for mutation in sorted(mutations, key=lambda m: m.file.endswith(".cc")):
        found = try_mutation(mutation)
        survivors += found is None
        print(f"{mutation.name}: {found or 'SURVIVED'}", flush=True)
    build()
    print(f"{len(mutations) - survivors} of {len(mutations)} broken rules were noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
