"""Every knob of this package, once.

`KNOBS` is the table: name, type, default, environment variable, help. `config` is the
object that programs use; its attributes are plain, so reading one costs nothing extra,
and setting one checks the type.

>>> config.max_inflight_steps
2
>>> with config.override(synchronous_errors=True):
...     config.synchronous_errors
True

The environment is read once, when this module is first imported. Knobs hold for the
whole process. Set them between steps: a step under way may have read the old value.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, cast

from terra_tf.errors import ConfigError, UnknownKnobError, format_message

Value = bool | int | float | str

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


@dataclasses.dataclass(frozen=True)
class Knob:
    """One setting.

    Attributes:
      name: The attribute of `config`.
      type: bool, int, float or str.
      default: Its value where nobody sets it.
      env: The environment variable that sets it at import.
      help: One sentence, with units.
      minimum: The least number it may be.
      choices: For a list with commas, what may be in it; empty for any text.
    """

    name: str
    type: type
    default: Value
    env: str
    help: str
    minimum: float | None = None
    choices: tuple[str, ...] = ()

    def accept(self, value: object) -> Value:
        """Returns `value` as this knob keeps it, or raises ConfigError."""
        # bool is an int to Python, but `max_inflight_steps = True` is a mistake.
        is_mistaken_bool = isinstance(value, bool) and self.type is not bool
        if self.type is float and isinstance(value, int) and not is_mistaken_bool:
            value = float(value)
        if is_mistaken_bool or not isinstance(value, self.type):
            raise self.refuse(value)
        if self.type in (int, float) and not self._is_in_domain(cast(float, value)):
            raise self.refuse(value)
        if self.choices and not set(split_list(str(value))) <= set(self.choices):
            raise self.refuse(value)
        return cast(Value, value)

    def _is_in_domain(self, number: float) -> bool:
        return math.isfinite(number) and (self.minimum is None or number >= self.minimum)

    def parse(self, text: str) -> Value:
        """Returns the value that an environment variable's text means, or raises ConfigError."""
        text = text.strip()
        if self.type is bool and text.lower() in _TRUE + _FALSE:
            return text.lower() in _TRUE
        if self.type is bool:
            raise self.refuse(text, where=f"environment variable {self.env}")
        try:
            return self.accept(self.type(text))
        except ValueError:
            raise self.refuse(text, where=f"environment variable {self.env}") from None

    def refuse(self, value: object, where: str | None = None) -> ConfigError:
        return ConfigError(
            format_message(
                f"config.{self.name} cannot be {value!r}",
                "TERRA-CONFIG-VALUE",
                where=where,
                why=f"it takes {self._describe_domain()} ({self.help})",
                suggestions=[
                    f"terra_tf.config.{self.name} = {self.default!r} (the default)",
                    f"{self.env}={_as_text(self.default)} in the environment",
                ],
            )
        )

    def _describe_domain(self) -> str:
        if self.type is bool:
            return "a bool"
        if self.choices:
            return f"a list with commas of {', '.join(self.choices)}"
        if self.type is str:
            return "a str"
        noun = "an int" if self.type is int else "a finite float"
        return noun if self.minimum is None else f"{noun} of at least {self.type(self.minimum)}"


def split_list(text: str) -> tuple[str, ...]:
    """Returns the parts of a list with commas: `"a, b"` is a and b."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _as_text(value: Value) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _knob(
    name: str, default: Value, help: str, *, minimum: float | None = None, env: str | None = None,
    choices: tuple[str, ...] = (),
) -> Knob:  # fmt: skip
    variable = env or f"TERRA_{name.upper()}"
    return Knob(name, type(default), default, variable, help, minimum, choices)


KNOBS: Mapping[str, Knob] = {
    knob.name: knob
    for knob in (
        _knob(
            "max_inflight_steps",
            2,
            "how many launched steps may wait for the graph before Python waits too.",
            minimum=1,
        ),
        _knob(
            "run_ahead_on_fallible",
            False,
            "whether a step whose ops can fail returns before the graph has validated it.",
        ),
        _knob(
            "synchronous_errors",
            False,
            "whether an op's error surfaces at that op, at the price of co-execution.",
        ),
        _knob(
            "max_constant_bytes",
            1024,
            "the largest host value, in bytes, that may become a constant of the graph.",
            minimum=0,
        ),
        _knob(
            "max_fold_elements",
            128,
            "the largest result, in elements, that is computed once and kept.",
            minimum=0,
        ),
        _knob(
            "roll_loops_from",
            6,
            "of how many trips on a loop whose number of trips varies becomes a While; 0 is never.",
            minimum=0,
        ),
        _knob(
            "roll_constant_loops_from",
            500,
            "the same of a loop that always has as many trips, which runs faster unrolled;"
            " one of 10,000 ops is rolled, too.",
            minimum=0,
        ),
        _knob(
            "max_entry_signatures",
            8,
            "how many kinds of arguments get a graph of their own, for each function.",
            minimum=1,
        ),
        _knob(
            "max_exact_shapes",
            4,
            "how many kinds of arguments that differ only in dimensions get a graph of their own,"
            " before one graph with unknown dimensions serves all others.",
            minimum=1,
        ),
        _knob(
            "traces_before_build",
            2,
            "how many steps are traced, at the least, before a graph is built.",
            minimum=1,
        ),
        _knob(
            "max_divergences",
            8,
            "how many divergences, without enough co-executed steps in between, a function may"
            " have before it goes imperative.",
            minimum=1,
        ),
        _knob(
            "retry_after_steps",
            64,
            "after how many imperative steps co-execution is tried again; doubled each time.",
            minimum=1,
        ),
        _knob(
            "weigh_costs",
            True,
            "whether functions run eagerly where co-execution would cost more time than the budget"
            " has, or is slower; no for tests, which then never depend on the clock.",
        ),
        _knob(
            "budget_s",
            2.0,
            "how many seconds a program may lose against eager execution, at the least.",
            minimum=0,
        ),
        _knob(
            "budget_share",
            0.1,
            "which share of what eager would have taken so far it may lose beyond that.",
            minimum=0,
        ),
        _knob(
            "rebuild_share",
            0.5,
            "which share of eager's time a function may lose to more traces and graphs, once it has"
            " a graph, beside half of what it has won; 20 eager steps more, or 0.2 s, are free.",
            minimum=0,
        ),
        _knob(
            "stall_warning_s",
            10.0,
            "after how many seconds a waiting runner is reported; 0 for never.",
            minimum=0,
        ),
        _knob(
            "wait_slice_s",
            0.05,
            "for how many seconds a reader waits before it looks for Ctrl-C.",
            minimum=0.001,
        ),
        _knob("max_trace_ops", 200_000, "how many ops one trace may hold.", minimum=1),
        _knob(
            "max_graph_nodes",
            50_000,
            "how many ops a TraceGraph may hold before it forgets ways not taken lately.",
            minimum=1,
        ),
        _knob(
            "max_siblings",
            40,
            "how many nodes one line may have, for other attributes, numbers of inputs or"
            " variables, before its op runs imperatively.",
            minimum=1,
        ),
        _knob(
            "grappler_arithmetic",
            False,
            "whether Grappler may rewrite arithmetic (constant folding and remapping too), after"
            " which results differ in their last bits from eager's.",
        ),
        _knob(
            "replay_calls",
            True,
            "whether library calls that a step has made before are replayed without their Python.",
        ),
        _knob(
            "check_pure",
            False,
            "whether functions declared by `terra_tf.pure` run in every call, so that one that does"
            " something else than before raises `ImpureError`.",
        ),
        _knob(
            "verify",
            False,
            "for tests: whether the invariants of TraceGraphs and plans are verified after every"
            " merge and build, so that a broken one raises `InternalError`.",
        ),
        _knob(
            "inject_delays",
            "",
            "for tests: which runners are held up at random at every op: graph, python, or both"
            " with a comma.",
            choices=("graph", "python"),
        ),
        _knob(
            "log",
            "",
            "what is logged, as a list with commas: phases, fallbacks, graphs; and of each step"
            " cursor, replay, commits.",
            env="TERRA_LOGS",
            choices=("phases", "fallbacks", "graphs", "cursor", "replay", "commits"),
        ),
    )
}


class Config:
    """The knobs as attributes: reading is plain, setting checks name and type.

    May be used from any thread, but takes no lock: a value set by one thread is seen by
    the others at their next read.
    """

    def __init__(self, environment: Mapping[str, str]):
        """Sets every knob from `environment`, else to its default.

        Raises:
          ConfigError: If a variable's text is not a value of its knob.
        """
        for knob in KNOBS.values():
            text = environment.get(knob.env)
            value = knob.default if text is None else knob.parse(text)
            object.__setattr__(self, knob.name, value)

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, _find_knob(name).accept(value))

    def __getattr__(self, name: str) -> Any:
        # Reached for names that are no knob: knobs are in the instance's dictionary.
        if name.startswith("__"):
            raise AttributeError(name)
        raise _unknown_knob(name)

    def __delattr__(self, name: str) -> None:
        """Sets a knob back to its default: every knob always has a value."""
        setattr(self, name, _find_knob(name).default)

    @contextlib.contextmanager
    def override(self, **knobs: Value) -> Iterator[None]:
        """Sets `knobs` for the time of a `with` block, in the whole process.

        All are checked before the first is set, and all are set back at the end.

        Raises:
          ConfigError: If a name is no knob's or a value is not one of its knob.
        """
        accepted = {name: _find_knob(name).accept(value) for name, value in knobs.items()}
        before = {name: getattr(self, name) for name in accepted}
        self.__dict__.update(accepted)
        try:
            yield
        finally:
            self.__dict__.update(before)

    def __repr__(self) -> str:
        return "\n".join(
            f"{knob.name} = {getattr(self, knob.name)!r}  # {knob.env}: {knob.help}"
            for knob in KNOBS.values()
        )


def _find_knob(name: str) -> Knob:
    if name not in KNOBS:
        raise _unknown_knob(name)
    return KNOBS[name]


def _unknown_knob(name: str) -> UnknownKnobError:
    close = difflib.get_close_matches(name, KNOBS)
    return UnknownKnobError(
        format_message(
            f"config has no knob named {name!r}",
            "TERRA-CONFIG-NAME",
            why="the knobs are " + ", ".join(KNOBS) + ".",
            suggestions=[f"config.{match}" for match in close] or ["print(terra_tf.config)"],
        )
    )


config = Config(os.environ)
