"""`python -m terra_tf inspect script.py [args]`: runs a script, then says what Terra did with it.

With `--out=FOLDER`, the folder has at the end, for each terra function of the script:

    train_step.txt .html .json     explain()
    train_step.dot .svg            the TraceGraph (.svg only with Graphviz's `dot`)
    train_step.plan.txt            what Python's side of the graph follows
    tensorboard/train_step/        the generated graph with measured costs
    timeline.json                  of a few steps, for https://ui.perfetto.dev
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import re
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from terra_tf.errors import (
    MissingProgramError,
    NothingToShowError,
    ProfilerBusyError,
    TerraError,
    format_message,
)
from terra_tf.function import Function, synchronize
from terra_tf.profiling import name_of, profile, unwritable
from terra_tf.runtime import observation
from terra_tf.tensorboard import write_graph

_STEPS_BEFORE_PROFILE = 3  # co-executed ones: the first do what later ones do not


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status, the script's own where it has one."""
    options = _parse(arguments)
    try:
        return inspect_script(options.script, options.args, options.out, options.profile_steps)
    except TerraError as error:
        print(error, file=sys.stderr)
        return 2


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m terra_tf")
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="run a script, then explain its terra functions")
    inspect.add_argument("--out", help="a folder for pictures, graphs and the timeline")
    inspect.add_argument(
        "--profile-steps", type=int, default=5, help="how many steps the timeline has (5)"
    )
    inspect.add_argument("script", help="the script to run")
    inspect.add_argument("args", nargs=argparse.REMAINDER, help="the script's own arguments")
    return parser.parse_args(arguments)


def inspect_script(
    script: str, args: Sequence[str], out: str | None = None, profile_steps: int = 5
) -> int:
    """Runs a script as `python script.py args` would, then prints what Terra did.

    Args:
      script: Its path.
      args: Its arguments.
      out: The folder to write to, or None.
      profile_steps: How many steps the timeline has; 0 for none.

    Returns:
      The script's exit status; 1 if an exception left it.

    Raises:
      NothingToShowError: There is no such script.
      UnwritableError: The folder cannot be written to; nothing has run.
    """
    _check_script(script)
    folder = None if out is None else _make_folder(out)
    created = observation.created = []
    window = None
    if folder is not None and profile_steps > 0:
        window = _ProfiledWindow(folder / "timeline.json", profile_steps)
    try:
        status = _run(script, args)
    finally:
        observation.created = None
        if window is not None:
            window.close()
    _report(created, folder, window)
    return status


def _check_script(script: str) -> None:
    if not os.path.isfile(script):
        raise NothingToShowError(
            format_message(
                f"there is no script {script!r}",
                "TERRA-NO-SCRIPT",
                where=os.getcwd(),
                suggestions=["python -m terra_tf inspect path/to/script.py its arguments"],
            )
        )


def _make_folder(out: str) -> pathlib.Path:
    folder = pathlib.Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "timeline.json").touch()
        (folder / "timeline.json").unlink()
    except OSError as error:
        raise unwritable(folder, error) from error
    return folder


def _run(script: str, args: Sequence[str]) -> int:
    before = sys.argv, sys.path[0]
    sys.argv, sys.path[0] = [script, *args], os.path.dirname(os.path.abspath(script))
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as leaving:
        return _status_of(leaving.code)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.argv, sys.path[0] = before
    return 0


def _status_of(code: Any) -> int:
    if isinstance(code, str):
        print(code, file=sys.stderr)
        return 1
    return int(code or 0)


# ------------------------------------------------------------------ reporting


def _report(functions: list[Function], folder: pathlib.Path | None, window: Any) -> None:
    try:
        synchronize()
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    if not functions:
        print("\nterra: the script made no terra function; decorate one with @terra_tf.function")
    for name, function in _named(functions):
        print(f"\n{function.explain()}")
        if folder is not None:
            _write(folder, name, function)
    if window is not None and window.profile.timeline is not None:
        print(f"\n{window.profile}")
    elif window is not None and functions:
        print(
            f"\nno timeline: no function co-executed more than {_STEPS_BEFORE_PROFILE} steps;"
            " what is said above tells why"
        )
    if folder is not None:
        print(f"\nwritten to {folder}")


def _named(functions: list[Function]) -> Iterator[tuple[str, Function]]:
    """Yields functions with names that files can have, none twice."""
    taken: set[str] = set()
    for function in functions:
        base = re.sub(r"\W+", "_", name_of(function)).strip("_") or "f"
        name, number = base, 1
        while name in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name)
        yield name, function


def _write(folder: pathlib.Path, name: str, function: Function) -> None:
    explanation = function.explain()
    (folder / f"{name}.txt").write_text(f"{explanation}\n")
    (folder / f"{name}.html").write_text(explanation._repr_html_())
    (folder / f"{name}.json").write_text(json.dumps(explanation.to_dict(), indent=1))
    if function.built_graph is not None:
        (folder / f"{name}.plan.txt").write_text(f"{function.built_graph.plan_text()}\n")
    if function.trace_graph.nodes:
        picture = function.trace_graph.to_graphviz()
        (folder / f"{name}.dot").write_text(picture.source)
        try:
            (folder / f"{name}.svg").write_bytes(picture.pipe(format="svg"))
        except MissingProgramError as error:
            print(f"{name}.svg is left out: {error}")
    try:
        write_graph(function, folder / "tensorboard" / name)
    except NothingToShowError as error:
        print(f"tensorboard/{name} is left out: {error}")


class _ProfiledWindow:
    """Profiles a few steps in the middle of a run: the first that come when steps co-execute."""

    def __init__(self, path: pathlib.Path, num_steps: int) -> None:
        self.profile = profile(path)
        self._steps_left = num_steps
        self._is_open = False
        observation.observer = self

    @contextlib.contextmanager
    def watch(self, function: Function, number: int) -> Iterator[None]:
        """Around a step: begins, goes on, or ends the profile."""
        if not self._is_open:
            if function.stats().co_executed_steps < _STEPS_BEFORE_PROFILE:
                yield
                return
            self._open()
        if not self._is_open:
            yield
            return
        with self.profile.watch(function, number):
            yield
        self._steps_left -= 1
        if self._steps_left == 0:
            self.close()

    def _open(self) -> None:
        observation.observer = None
        try:
            self.profile.__enter__()
        except ProfilerBusyError as error:
            print(f"terra: no timeline: {error}", file=sys.stderr)
            return
        observation.observer = self
        self._is_open = True

    def close(self) -> None:
        """Ends the profile, if it has begun, and writes it."""
        observation.observer = None
        if self._is_open:
            self._is_open = False
            self.profile.__exit__(None, None, None)
