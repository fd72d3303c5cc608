"""What can go wrong, and how it is said.

Three things live here, and nothing else in the package is imported:

- the exception tree, rooted in `TerraError`;
- `format_message`, the one builder of the messages those exceptions carry;
- `Reason` and `ImperativeReason`, the stable names under which `Stats` counts what was
  not delegated to the graph.

>>> print(format_message("the step ran another op", "TERRA-DIVERGED", where="train.py:43"))
the step ran another op [TERRA-DIVERGED]
  Where: train.py:43
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

_CODE = re.compile(r"TERRA(-[A-Z0-9]+)+")


def format_message(
    what: str,
    code: str,
    *,
    where: str | None = None,
    why: str | None = None,
    suggestions: Sequence[str] = (),
) -> str:
    """Builds an error's text in the form that every error of this package has.

    Lines after a part's first are indented, so that the labels stay easy to find.

    Args:
      what: What happened, with the values.
      code: A stable code such as `TERRA-DIVERGED`; `docs/errors.md` lists them.
      where: The user's source line, and what ran there.
      why: One sentence.
      suggestions: What the user can do, the best first.

    Returns:
      The message, without a final newline.

    Raises:
      ValueError: If `code` is not of the form above.
    """
    if not _CODE.fullmatch(code):
        raise ValueError(f"not an error code: {code!r}; one looks like TERRA-DIVERGED")
    steps = " ".join(f"{i}) {text}" for i, text in enumerate(suggestions, start=1))
    labelled = [("Where", where), ("Why", why), ("Try", steps)]
    lines = [f"{what} [{code}]"]
    lines += [f"  {label}: {text}" for label, text in labelled if text]
    return "\n".join(line.replace("\n", "\n    ") for line in lines)


class TerraError(Exception):
    """The root of every exception that this package raises of its own.

    An op's error, or the program's own, passes through unchanged and is not one of these.
    The argument is a whole message, made by `format_message`.
    """

    @property
    def code(self) -> str | None:
        """The stable code in the message, or None if it was not made by `format_message`."""
        codes = re.findall(rf"\[({_CODE.pattern})\]", str(self))
        return codes[0][0] if codes else None


class UnsupportedError(TerraError):
    """A thing that the graph cannot do.

    It never reaches the user: it leads to imperative execution, which is counted.
    """


class TooCostlyError(UnsupportedError):
    """Raised where the budget is used up, in the middle of building a graph."""


class UndelegableOpError(UnsupportedError):
    """An op cannot be put into the graph as traced; with it on Python's side, the rest can.

    Attributes:
      node: The op's index.
      reason: Why.
      reasons: Index -> why, for this op and the others of which the same was found out.
    """

    def __init__(
        self,
        node: int,
        reason: ImperativeReason,
        others: Mapping[int, ImperativeReason] = MappingProxyType({}),
    ) -> None:
        super().__init__(f"op {node}: {reason.explanation}")
        self.node = node
        self.reason = reason
        self.reasons = {node: reason, **others}


class InternalError(TerraError):
    """A broken invariant of this package: asks for a report, and is never swallowed."""


def broken_invariant(
    thing: str, invariant: str, what: str, code: str, *, rule: str
) -> InternalError:
    """Returns what a checker raises.

    Args:
      thing: What is broken, such as "a plan".
      invariant: Its name in the checker's list.
      what: What was found, and where.
      code: A stable code.
      rule: What must keep the invariants, and where they are stated.
    """
    return InternalError(
        format_message(
            f"{thing} is broken ({invariant}): {what}",
            code,
            why=rule,
            suggestions=["please report this, with the program"],
        )
    )


class ConfigError(TerraError, ValueError):
    """A knob of `terra_tf.config` was given a value that it cannot have."""


class UnknownKnobError(ConfigError, AttributeError):
    """`terra_tf.config` has no knob of that name."""


class UnknownKeywordError(ConfigError, TypeError):
    """`terra_tf.function` was given a keyword that `tf.function` does not take."""


class NotCallableError(TerraError, TypeError):
    """`terra_tf.function` was given something that cannot be called."""


class NoModelError(TerraError, TypeError):
    """`terra_tf.keras.accelerate` was given something that is no model of Keras 3."""


class DivergenceError(TerraError, RuntimeError):
    """A step left the graph under the stance `fail_on_divergence`."""


class ImpureError(TerraError, RuntimeError):
    """A function declared by `terra_tf.pure` depends on more than its arguments and variables."""


class PendingTensorError(TerraError, RuntimeError):
    """A tensor's value can no longer be had, for its step ended elsewhere (as by a fork)."""


class NativeLibraryError(TerraError, ImportError):
    """The native library is missing, or was built for another TensorFlow or Python."""


class MissingProgramError(TerraError, RuntimeError):
    """A program or package that only some views need is not installed."""


class NothingToShowError(TerraError, RuntimeError):
    """A view was asked for, and there is nothing to show yet, or no way to write it."""


class UnwritableError(TerraError, OSError):
    """A view cannot be written where it was asked for."""


class ProfilerBusyError(TerraError, RuntimeError):
    """TensorFlow's profiler is in use; there is one in a process."""


class _Explained(str, enum.Enum):
    """A string enum whose members carry one sentence for a person."""

    explanation: str

    def __new__(cls, value: str, explanation: str = "") -> _Explained:  # a look-up gives one
        member = str.__new__(cls, value)
        member._value_ = value
        member.explanation = explanation
        return member

    def __str__(self) -> str:
        return str(self.value)


class Reason(_Explained):
    """Why a step, or the rest of it, ran outside the graph; the keys of `Stats.fallbacks`.

    The values are stable: programs may compare with them, as members or as strings.
    """

    NEW_PATH = "new_path", "The program took a path that no traced step had taken."
    STEP_ENDED_EARLY = "step_ended_early", "The step returned where the graph expected more ops."
    CONSTANT_CHANGED = (
        "constant_changed",
        "A value that had been equal in every traced step had another value.",
    )
    FEED_CHANGED = "feed_changed", "An external tensor came with another dtype or shape."
    CAPTURE_CHANGED = (
        "capture_changed",
        "A tensor that had been the same object in every traced step was another one.",
    )
    ATTRIBUTES_CHANGED = "attributes_changed", "An op came with other attributes than were traced."
    DATAFLOW_CHANGED = (
        "dataflow_changed",
        "An op took as input another op's output than on any traced path.",
    )
    VARIABLE_CHANGED = (
        "variable_changed",
        "A variable had another dtype or shape, or stood for two that had been different.",
    )
    WRITE_CHANGED = (
        "write_changed",
        "What was written to a variable had another shape, or one that was not known in time.",
    )
    INDEX_OUT_OF_RANGE = (
        "index_out_of_range",
        "An index or label from outside of the step was not in the range that ops take.",
    )
    DEVICE_CHANGED = "device_changed", "An op was placed on another device than was traced."
    UNPLANNED_MATERIALIZATION = (
        "unplanned_materialization",
        "Python read a tensor that no traced step had read.",
    )
    LIVE_TENSOR_NOT_FETCHED = (
        "live_tensor_not_fetched",
        "A tensor was still referenced where no traced step had kept it.",
    )
    OP_ERROR = "op_error", "An op failed in the graph; it was run again to raise its own error."
    PYTHON_EXCEPTION = "python_exception", "A Python exception left the step."
    KEYBOARD_INTERRUPT = "keyboard_interrupt", "The user interrupted the step."
    SEIZED_BY_OTHER_THREAD = (
        "seized_by_other_thread",
        "Another thread needed a tensor or a variable of the open step, and finished it.",
    )
    CONCURRENT = "concurrent", "Another thread was co-executing; one does so at a time."
    OP_CALLBACKS = "op_callbacks", "An op callback (as of tfdbg) was active and must see every op."
    GRAPH_MODE = "graph_mode", "The function was called while TensorFlow was building a graph."
    GENERATOR = (
        "generator",
        "The function is a generator or coroutine function: a call only makes the object, and its"
        " body runs later.",
    )
    FORKED_CHILD = (
        "forked_child",
        "The process is a forked child, where TensorFlow's threads, and ours, do not exist.",
    )
    INTERPRETER_EXIT = (
        "interpreter_exit",
        "The interpreter is exiting, and the GraphRunner has been shut down.",
    )
    STANCE = "stance", "The stance set by the program asked for imperative execution."
    TOO_MANY_DIVERGENCES = (
        "too_many_divergences",
        "Steps left the graph too often; co-execution is tried again after some steps.",
    )
    TOO_MANY_SIGNATURES = (
        "too_many_signatures",
        "The function was called with more kinds of arguments than are kept.",
    )
    TRACE_TOO_LONG = "trace_too_long", "The step ran more ops than a trace may hold."
    GRAPH_BUILD_FAILED = "graph_build_failed", "No graph could be built from the traces."
    OVER_BUDGET = (
        "over_budget",
        "What was to be traced, built or risked could have cost more time than the budget had.",
    )
    SLOWER_THAN_EAGER = (
        "slower_than_eager",
        "Steps took longer with the graph than eagerly; it is tried again after some steps.",
    )
    EAGER_MEASURED = (
        "eager_measured",
        "The step was run eagerly to know what that takes.",
    )


class ImperativeReason(_Explained):
    """Why an op runs imperatively in the middle of a co-executed step.

    The graph waits for nothing here: Python runs the op on the spot, with its inputs
    read from the graph, and feeds the results back.
    """

    STATEFUL_OP = "stateful_op", "The op has effects that are not known to be safe to delay."
    NO_OP_DEFINITION = (
        "no_op_definition",
        "The op is a function call, which has no op definition to judge its effects by.",
    )
    RESOURCE_OP = "resource_op", "The op uses a resource other than as a known variable access."
    OP_SEED = "op_seed", "The op has a seed of its own, whose generator advances from call to call."
    RANDOM_OP = "random_op", "The op draws random numbers in a way the graph cannot repeat."
    RAISED_BEFORE = (
        "raised_before",
        "The op raised an error here before, so it runs where Python is.",
    )
    MAY_BE_CAUGHT = (
        "may_be_caught",
        "The op can fail, in a `try` whose `except` could take its error: it has to fail there.",
    )
    DATASET_ITERATOR = "dataset_iterator", "The op advances a dataset iterator."
    PYTHON_CALLBACK = "python_callback", "The op calls back into Python."
    NESTED_FUNCTIONS = (
        "nested_functions",
        "The op is a call of a function that calls others: a graph would change its last bits.",
    )
    UNCERTAIN_SHAPE = (
        "uncertain_shape",
        "TensorFlow's shape function gives another shape than the op had.",
    )
    DYNAMIC_WRITE = (
        "dynamic_write",
        "The op writes a variable in a way that might not fit, depending on data.",
    )
    BRANCH_VARIABLE = (
        "branch_variable",
        "The op writes a variable that only its branch knows, and that is not always the same.",
    )
    TOO_MANY_SIBLINGS = (
        "too_many_siblings",
        "The op came with other attributes, numbers of inputs or variables too often.",
    )
    SYNCHRONOUS_ERRORS = (
        "synchronous_errors",
        "The op can fail, and the knob synchronous_errors asks for its error at once.",
    )
