"""Compare a program under `terra.function` with the same program under eager TensorFlow.

Eager is the specification, so a test of co-execution runs a program twice and compares, and
only then looks at the counters:

    def make(wrap):
        w = tf.Variable(1.0)

        @wrap
        def train(x):
            w.assign_sub(0.1 * x)
            return w * x

        return Program(step=lambda: train(tf.constant(2.0)), variables=[w])

    (train,) = assert_matches_eager(make, num_steps=12)
    before = train.stats()
    ...more steps...
    assert_co_executing(train, after=before)

A *program* is what `make(wrap)` returns: a callable `step()`, or an object with `.step` and
`.variables`. `make` decorates with `wrap` whatever it wants co-executed. What `step()` returns may
nest Python containers, tensors, variables and arrays in any way, so a program reports its Python
side effects by returning them.

Imports nothing but NumPy and TensorFlow, so that a user's own test suite can use it too.
"""

import copy
import dataclasses
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

import terra_tf as terra
from terra_tf.runtime import budget

_GRAPH_DECORATION = re.compile(r"\{\{[^}]*\}\}|\[Op:[^\]]*\]|name:\s*\S*|\[\[[^\]]*\]\]")


class Program(NamedTuple):
    """What `make(wrap)` may return: a step and the variables it leaves behind."""

    step: Callable[[], Any]
    variables: Sequence[Any] = ()


@dataclasses.dataclass(frozen=True)
class Raised:
    """An exception that left a step: its type and its message without names of graph nodes."""

    type_name: str
    message: str


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A tensor, variable or array, with its value copied: `kind` says which it was."""

    kind: str
    value: np.ndarray


@dataclasses.dataclass
class Run:
    """What one run of a program left: outcomes of its steps, variables, wrapped functions."""

    outcomes: list
    variables: list
    functions: list


def freeze(value: Any) -> Any:
    """Copy `value` into plain Python and NumPy, so that later mutation cannot reach it.

    Tensors and variables are read, which waits for them. A symbolic tensor is an error: nothing of
    a graph may leave a decorated function that is called eagerly.

    Args:
      value: any nesting of lists, tuples, dicts, sets, tensors, variables, arrays and scalars.
    Returns:
      The same nesting with each tensor-like leaf replaced by a `Leaf`, and an unknown object by
      its type's name.
    Raises:
      AssertionError: if a symbolic tensor is found.
    """
    if isinstance(value, (tf.RaggedTensor, tf.SparseTensor, tf.IndexedSlices)):
        parts = tf.nest.flatten(value, expand_composites=True)
        return (type(value).__name__, [freeze(part) for part in parts])
    if isinstance(value, tf.Tensor):
        if not hasattr(value, "numpy"):
            raise AssertionError(f"a symbolic tensor left the function: {value}")
        return Leaf("tensor", np.array(value.numpy()))
    if isinstance(value, (np.ndarray, np.generic)):
        return Leaf("array", np.array(value))
    if hasattr(value, "numpy") and hasattr(value, "assign"):
        return Leaf("variable", np.array(value.numpy()))
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, [freeze(item) for item in value])
    if isinstance(value, dict):
        return (type(value).__name__, [(repr(key), freeze(item)) for key, item in value.items()])
    if isinstance(value, (set, frozenset)):
        return (type(value).__name__, sorted(map(repr, value)))
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None), Raised)):
        return copy.copy(value)
    return ("object", type(value).__name__)


def find_difference(
    eager: Any,
    other: Any,
    *,
    exact: bool = True,
    rtol: float = 0.0,
    atol: float = 0.0,
    path: str = "",
) -> str | None:
    """Return None if two frozen values agree, else one line that says where and how they differ.

    Args:
      eager: what `freeze` made of the reference.
      other: what `freeze` made of the run under test.
      exact: compare floating-point arrays bit for bit; otherwise within `rtol` and `atol`.
      rtol: relative tolerance of floats, if not exact.
      atol: absolute tolerance of floats, if not exact.
      path: where in the nesting these values are, for the message.
    """
    if type(eager) is not type(other):
        return f"{path}: eager gave {_brief(eager)}, terra {_brief(other)}"
    if isinstance(eager, Leaf):
        return _find_leaf_difference(eager, other, exact, rtol, atol, path)
    if isinstance(eager, (list, tuple)):
        if len(eager) != len(other):
            return f"{path}: eager gave {len(eager)} items, terra {len(other)}"
        for index, pair in enumerate(zip(eager, other, strict=True)):
            found = find_difference(
                *pair, exact=exact, rtol=rtol, atol=atol, path=f"{path}[{index}]"
            )
            if found:
                return found
        return None
    if isinstance(eager, float):
        same = eager == other or (eager != eager and other != other)
        if same or (not exact and abs(eager - other) <= atol + rtol * abs(eager)):
            return None
    elif isinstance(eager, Raised):
        if eager.type_name == other.type_name and _messages_agree(eager.message, other.message):
            return None
    elif eager == other:
        return None
    return f"{path}: eager gave {_brief(eager)}, terra {_brief(other)}"


def _find_leaf_difference(
    eager: Leaf, other: Leaf, exact: bool, rtol: float, atol: float, path: str
) -> str | None:
    x, y = eager.value, other.value
    if (eager.kind, x.dtype, x.shape) != (other.kind, y.dtype, y.shape):
        return (
            f"{path}: eager gave a {eager.kind} {x.dtype}{list(x.shape)}, "
            f"terra a {other.kind} {y.dtype}{list(y.shape)}"
        )
    if x.dtype.hasobject:
        agree = bool(np.array_equal(x, y))
    elif x.tobytes() == y.tobytes():
        agree = True
    else:
        agree = (
            not exact
            and x.dtype.kind in "fc"
            and np.allclose(x, y, rtol=rtol, atol=atol, equal_nan=True)
        )
    if agree:
        return None
    size = (
        ""
        if x.dtype.hasobject or x.dtype.kind not in "fc"
        else f", largest difference {np.max(np.abs(x - y)):.3g}"
    )
    return f"{path}: eager gave {_brief(x)}, terra {_brief(y)}{size}"


def _messages_agree(eager: str, other: str) -> bool:
    return eager == other or bool(eager and other and (eager in other or other in eager))


def _brief(value: Any) -> str:
    text = re.sub(r"\s+", " ", str(value))
    return text if len(text) <= 160 else text[:157] + "..."


def describe_exception(error: BaseException) -> Raised:
    """Return the `Raised` for `error`: its type and first line, without names of graph nodes."""
    lines = _GRAPH_DECORATION.sub("", str(error)).strip().splitlines() or [""]
    return Raised(type(error).__name__, re.sub(r"\s+", " ", lines[0]).strip())


def set_seeds(seed: int) -> None:
    """Seed Python, NumPy and TensorFlow, whose kernels with an op seed start anew."""
    random.seed(seed)
    np.random.seed(seed)
    tf.random.set_seed(seed)


def run_program(
    make: Callable[..., Any],
    wrap: Callable[..., Any],
    num_steps: int,
    *,
    read_at_end: bool = False,
    seed: int = 0,
) -> Run:
    """Build a program with `wrap`, run it, and return a `Run`.

    Args:
      make: `make(wrap)` builds the program; see the module's docstring.
      wrap: what decorates its functions: `terra.function`, or the identity for eager.
      num_steps: how often to call its step.
      read_at_end: keep what the steps return and read it after the last one, so that nothing makes
        Python wait in between; otherwise each step's outcome is read at once.
      seed: for all generators, set before `make`.
    """
    functions: list[Any] = []

    def remembering_wrap(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        functions.append(wrap(function, *args, **kwargs))
        return functions[-1]

    set_seeds(seed)
    program = make(remembering_wrap)
    step = getattr(program, "step", program)
    outcomes = []
    for _ in range(num_steps):
        try:
            outcome = step()
            outcomes.append(outcome if read_at_end else freeze(outcome))
        except Exception as error:  # An exception is an outcome like any other.
            outcomes.append(describe_exception(error))
    outcomes = [freeze(outcome) for outcome in outcomes] if read_at_end else outcomes
    variables = [freeze(variable) for variable in getattr(program, "variables", ())]
    return Run(outcomes, variables, functions)


def assert_matches_eager(
    make: Callable[..., Any],
    num_steps: int = 12,
    *,
    exact: bool = True,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    compare_variables: bool = True,
    read_at_end: bool = False,
    seed: int = 0,
    wrap: Callable[..., Any] | None = None,
) -> list[Any]:
    """Run a program eagerly and under Terra, and assert that nobody could tell them apart.

    Compared are, step by step, what each step returned or raised, and at the end the program's
    variables. Call it from any thread; it leaves no step in flight.

    Args:
      make: `make(wrap)` builds the program; called once per run, so it must create its state.
      num_steps: calls of the program's step, at least one.
      exact: compare floats bit for bit; otherwise within `rtol` and `atol`.
      rtol: relative tolerance of floats, if not exact.
      atol: absolute tolerance of floats, if not exact.
      compare_variables: compare the program's `.variables` after the last step.
      read_at_end: see `run_program`.
      seed: for all generators.
      wrap: what to test instead of `terra.function`.
    Returns:
      The functions the program wrapped under Terra, in order, for assertions on their counters.
    Raises:
      AssertionError: naming the first step and place that differ.
    """
    assert num_steps > 0
    settings: dict[str, Any] = dict(read_at_end=read_at_end, seed=seed)
    eager = run_program(make, lambda function: function, num_steps, **settings)
    budget.begin_program()  # as in a process of its own
    under_test = run_program(make, wrap or terra.function, num_steps, **settings)
    terra.synchronize()
    tolerance: dict[str, Any] = dict(exact=exact, rtol=rtol, atol=atol)
    for index, pair in enumerate(zip(eager.outcomes, under_test.outcomes, strict=True)):
        found = find_difference(*pair, path=f"step {index}", **tolerance)
        assert not found, found + _report(under_test.functions)
    if compare_variables:
        found = find_difference(
            eager.variables, under_test.variables, path="variables", **tolerance
        )
        assert not found, found + _report(under_test.functions)
    return under_test.functions


def assert_co_executing(
    function: Any, *, after: Any | None = None, imperative_ops: Sequence[str] = ()
) -> None:
    """Assert that a function co-executes, all its ops delegated but those named.

    Args:
      function: what `terra.function` returned.
      after: an earlier `function.stats()`. If given, every step since then, of which there must be
        one, was co-executed, with no new trace, graph or fallback, and only ops run imperatively
        since then count.
      imperative_ops: the op types that may run imperatively.
    Raises:
      AssertionError: with the function's own explanation.
    """
    stats = function.stats()
    report = _report([function])
    assert stats.phase == "co-execution", f"phase is {stats.phase}{report}"
    earlier = {} if after is None else after.imperative_ops
    unexpected = {
        op: count
        for op, count in stats.imperative_ops.items()
        if count != earlier.get(op, 0) and op not in imperative_ops
    }
    assert not unexpected, f"imperative ops {unexpected}{report}"
    if after is None:
        return
    assert stats.steps > after.steps, "no step was run since the earlier statistics"
    assert stats.fallbacks == after.fallbacks, (
        f"fallbacks grew from {after.fallbacks} to {stats.fallbacks}{report}"
    )
    assert stats.traced_steps == after.traced_steps, (
        f"{stats.traced_steps - after.traced_steps} new traces{report}"
    )
    assert stats.graph_builds == after.graph_builds, (
        f"{stats.graph_builds - after.graph_builds} new graphs{report}"
    )
    assert stats.co_executed_steps - after.co_executed_steps == stats.steps - after.steps, report


def _report(functions: Sequence[Any]) -> str:
    return "".join(
        f"\n{function.explain()}" for function in functions if hasattr(function, "explain")
    )
