"""`terra_tf.function`: the decorator and its state machine.

A call does the first of these that applies:

1. while TensorFlow builds a graph: does what `tf.function` would do there
2. inside a step of this thread: just runs the Python function; its ops join the outer step
3. stance, an op callback, another thread co-executing, an entry that gave up: imperative
4. a graph is ready for this entry signature: co-execution
5. else: tracing
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import inspect
import sys
import weakref
from collections.abc import Callable, Mapping
from types import MappingProxyType, MethodType
from typing import Any

import tensorflow as tf

from terra_tf import _native
from terra_tf._tf_internals import context, is_op_determinism_enabled
from terra_tf.errors import NotCallableError, Reason, UnknownKeywordError, format_message
from terra_tf.runtime import (
    in_flight,
    interception,
    observation,
    process_ends,
    python_shares,
    stance,
)
from terra_tf.runtime.arguments import find_tensors
from terra_tf.runtime.budget import Share
from terra_tf.runtime.built_graph import BuiltGraph
from terra_tf.runtime.entries import Entries
from terra_tf.runtime.entry import Choice, Entry
from terra_tf.runtime.explanation import Explanation, explain
from terra_tf.runtime.gc_pause import end_pause
from terra_tf.runtime.instances import Instances
from terra_tf.runtime.keras_graphs import warn_if_keras_traces
from terra_tf.runtime.session import StepSession
from terra_tf.runtime.stats import Counters, Stats
from terra_tf.runtime.step_costs import StepCosts
from terra_tf.trace.trace_graph import TraceGraph

_OCCUPIED = object()


@functools.cache
def _turn() -> Any:
    """Returns the monitor of the one thread that traces or co-executes."""
    return _native.load().module.Monitor()


_OWN_ATTRIBUTES = frozenset(
    {
        "_python_function",
        "_tf_function_kwargs",
        "_tf_function",
        "_is_suspended",
        "_has_warned",
        "_counters",
        "_instances",
        "_method_types",
        "_last_entry",
        "_context",
    }
)

_TF_FUNCTION_KEYWORDS = frozenset(inspect.signature(tf.function).parameters) - {"func"}


def function(func: Callable | None = None, **tf_function_kwargs: Any) -> Any:
    """Makes a Python function run by co-execution, with eager's results.

    Use it where you would use `tf.function`, or where you cannot: the function may be any eager
    TensorFlow program. With keyword arguments only, returns a decorator.

    Args:
      func: Any callable.
      **tf_function_kwargs: `tf.function`'s own, used where a graph function is asked for
        (`get_concrete_function`, calls inside a `tf.function`).

    Returns:
      A `Function`.

    Raises:
      NotCallableError: `func` cannot be called.
      UnknownKeywordError: A keyword that `tf.function` does not take.
    """
    _check_keywords(tf_function_kwargs)
    if func is None:
        return functools.partial(function, **tf_function_kwargs)
    if isinstance(func, (staticmethod, classmethod)):
        return type(func)(function(func.__func__, **tf_function_kwargs))
    if not callable(func):
        raise NotCallableError(
            format_message(
                f"terra_tf.function was given {func!r}, of type {type(func).__name__}",
                "TERRA-NOT-CALLABLE",
                why="it decorates functions, methods and other callables.",
                suggestions=["terra_tf.function(f) with a function f", "@terra_tf.function"],
            )
        )
    return Function(func, tf_function_kwargs)


def synchronize() -> None:
    """Waits until the graph of every step that has returned has ended."""
    in_flight.settle()


def _check_keywords(keywords: dict[str, Any]) -> None:
    for name in keywords:
        if name not in _TF_FUNCTION_KEYWORDS:
            close = difflib.get_close_matches(name, _TF_FUNCTION_KEYWORDS)
            raise UnknownKeywordError(
                format_message(
                    f"terra_tf.function has no keyword {name!r}",
                    "TERRA-KEYWORD",
                    why=f"it takes tf.function's: {', '.join(sorted(_TF_FUNCTION_KEYWORDS))}.",
                    suggestions=[f"use {c}=..." for c in close] or ["leave it out"],
                )
            )


class Function:
    """A callable that co-executes; made by `function`.

    Safe to call from several threads; one of them co-executes at a time, the others run
    imperatively meanwhile. Attributes that a program gives it are the decorated function's, as
    they would be without the decorator.
    """

    # AutoGraph calls such an object, and converts it not.
    autograph_info__: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, python_function: Callable, tf_function_kwargs: dict[str, Any]) -> None:
        self._python_function = python_function
        self._tf_function_kwargs = tf_function_kwargs
        self._tf_function: Any = None
        self._has_warned = False  # of Keras' graphs
        self._context: Any = None  # TensorFlow's, at the last step
        self._method_types: weakref.WeakSet[type] = weakref.WeakSet()
        self._is_suspended = any(
            check(python_function)
            for check in (
                inspect.isgeneratorfunction,
                inspect.iscoroutinefunction,
                inspect.isasyncgenfunction,
            )
        )
        self.reset()
        functools.update_wrapper(self, python_function, updated=())
        self.__wrapped__ = python_function
        interception.install()
        observation.note_created(self)

    def reset(self) -> None:
        """Forgets every trace, graph and counter."""
        name = getattr(self._python_function, "__qualname__", None)
        self._counters = Counters(name or repr(self._python_function))
        self._forget_entries()

    def _forget_entries(self) -> None:
        counters = self._counters
        # Which ops TensorFlow runs, and with which kernels, differs where it is deterministic.
        self._instances = {
            flag: Instances(functools.partial(Entries, counters, {}), self._method_types)
            for flag in (False, True)
        }
        self._last_entry: Entry | None = None

    @property
    def python_function(self) -> Callable:
        """The function that was decorated."""
        return self._python_function

    # ------------------------------------------------------------- calling

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        native = _native.load().module
        if not tf.executing_eagerly():
            self._counters.count_fallback(Reason.GRAPH_MODE)
            if not self._has_warned:
                self._has_warned = warn_if_keras_traces(self._counters.name)
            return self._graph_function()(*args, **kwargs)
        if native.in_step():
            return self._python_function(*args, **kwargs)
        self._counters.steps += 1
        reason = self._reason_to_stay_imperative()
        if reason is not None:
            self._counters.count_fallback(reason)
            return self._python_function(*args, **kwargs)
        result = _turn().try_run(_OCCUPIED, self._observed_step, args, kwargs)
        if result is _OCCUPIED:
            self._counters.count_fallback(Reason.CONCURRENT)
            return self._python_function(*args, **kwargs)
        return result

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        self._method_types.add(type(instance))
        return MethodType(self, instance)

    # --------------------------------------------- what Python does with functions

    def __getattr__(self, name: str) -> Any:
        if name in _OWN_ATTRIBUTES or name.startswith("__") or name == "_tf_decorator":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._python_function, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN_ATTRIBUTES or name.startswith("__"):
            super().__setattr__(name, value)
        else:
            setattr(self._python_function, name, value)

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__:
            super().__delattr__(name)
        else:
            delattr(self._python_function, name)

    def __copy__(self) -> Function:
        return self

    def __deepcopy__(self, memo: dict) -> Function:
        # What it has learned is not copied. A method is bound to the copy of its object.
        return Function(copy.deepcopy(self._python_function, memo), self._tf_function_kwargs)

    def __reduce__(self) -> Any:
        name = getattr(self, "__qualname__", "")
        if _find(self.__module__, name) is self:
            return name  # as functions are pickled
        return functools.partial(function, **self._tf_function_kwargs), (self._python_function,)

    def _reason_to_stay_imperative(self) -> Reason | None:
        if stance.current() == "imperative":
            return Reason.STANCE
        if process_ends.in_forked_child():
            return Reason.FORKED_CHILD
        if process_ends.has_shut_down():
            return Reason.INTERPRETER_EXIT
        if self._is_suspended:
            return Reason.GENERATOR
        if context.context().op_callbacks:
            return Reason.OP_CALLBACKS
        return None

    def _observed_step(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        if observation.observer is None:
            return self._step(args, kwargs)
        with observation.observer.watch(self, self._counters.steps):
            return self._step(args, kwargs)

    def _enter_context(self, current: Any) -> None:
        """Goes over to TensorFlow's context of now: the first, or one that was made anew."""
        interception.bind_context(current)
        if self._context is not None:
            why = "TensorFlow's context was made anew: what was known is of no use there"
            self._counters.note("context reset", why, "")
            self._counters.set_phase("tracing", why)
            self._counters.share = Share()  # its graphs go: the next one is its first again
            self._forget_entries()
        self._context = current

    def _step(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        current = context.context()
        if current is not self._context:
            self._enter_context(current)
        costs = StepCosts()
        tensors = find_tensors((args, kwargs))
        instances = self._instances[is_op_determinism_enabled()]
        entry = instances.find(args, kwargs).find(tensors)
        if entry is None:
            costs.end()
            return self._python_function(*args, **kwargs)
        self._last_entry = entry
        choice = entry.choose()
        if choice is Choice.SAMPLE:
            in_flight.settle()  # what that takes is the graph's
            costs.is_sample = entry.account.needs_recorder
        if choice is Choice.IMPERATIVE or (choice is Choice.SAMPLE and not costs.is_sample):
            costs.enter()
            try:
                return self._python_function(*args, **kwargs)
            finally:
                costs.leave()
                entry.account.add_eager(costs)
        built = entry.next_graph() if choice is Choice.CO_EXECUTION else None
        held = entry.hold(built)
        if held is None:
            built = None
            self._counters.traced_steps += choice is not Choice.SAMPLE
        session = StepSession(entry, tensors, sys._getframe(), built, held, costs)
        run_step = _native.load().module.run_step
        try:
            return run_step(session.native, self._python_function, args, kwargs)
        finally:
            end_pause()
            entry.account.add(costs, with_graph=built is not None)

    # ------------------------------------------------------------- looking

    @property
    def trace_graph(self) -> TraceGraph:
        """The TraceGraph of the last used entry signature; empty before the first trace."""
        known = None if self._last_entry is None else self._last_entry.trace_graph
        return TraceGraph(id) if known is None else known

    @property
    def built_graph(self) -> BuiltGraph | None:
        """The graph built last for the last used entry signature, for views; or None."""
        return None if self._last_entry is None else self._last_entry.current_built

    def stats(self) -> Stats:
        """Returns a snapshot of the counters."""
        in_flight.retire_finished()
        stats = self._counters.snapshot(self.built_graph)
        return dataclasses.replace(stats, python_shares=python_shares.shares_of(self))

    def explain(self) -> Explanation:
        """Returns a report for a person: `print(f.explain())`."""
        return explain(self._python_function, self.stats(), self._counters, self._last_entry)

    # ------------------------------------------------- tf.function's surface

    def _graph_function(self) -> Any:
        if self._tf_function is None:
            self._tf_function = tf.function(self._python_function, **self._tf_function_kwargs)
        return self._tf_function

    @property
    def input_signature(self) -> Any:
        """`tf.function`'s attribute of the same name."""
        return self._graph_function().input_signature

    def get_concrete_function(self, *args: Any, **kwargs: Any) -> Any:
        """Builds a graph function as `tf.function` does, for export."""
        return self._graph_function().get_concrete_function(*args, **kwargs)

    def experimental_get_tracing_count(self) -> int:
        """Returns how often the real `tf.function` behind this has traced; 0 if never used."""
        if self._tf_function is None:
            return 0
        return self._tf_function.experimental_get_tracing_count()

    def pretty_printed_concrete_signatures(self, verbose: bool = True) -> str:
        """`tf.function`'s method of the same name."""
        return self._graph_function().pretty_printed_concrete_signatures(verbose)


def _find(module: str, qualified_name: str) -> Any:
    """Returns what a name stands for in a module that is imported, or None."""
    found: Any = sys.modules.get(module)
    for name in qualified_name.split("."):
        found = getattr(found, name, None)
    return found


# As `tf.function` itself: AutoGraph does not convert what makes the decorated function.
function.autograph_info__ = Function.autograph_info__  # type: ignore[attr-defined]
