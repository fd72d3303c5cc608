"""Whether an exception of an op would be caught by the function that it leaves.

An op of the graph fails when the graph comes to it, which may be after Python has left the
`try` around it. So an op that can fail, and stands in a `try` of the user's whose `except` could
take an op's error, is one that Python runs. What counts is the code: the handlers of the
instruction, innermost first, and what their clauses name.

    except tf.errors.InvalidArgumentError:    could
    except (ValueError, Exception):           could
    except KeyError:                          could not: no op's error is one
    finally:                                  could not
    with contextlib.suppress(...):            could, as `pytest.raises` and `assertRaises`
    with another_manager():                   could not: what its `__exit__` answers is not seen

A clause that raises in any case (`except Exception as e: e.add_note(...); raise`) does not end the
error's way: wrappers around every call of a library have one. There the error may come with a
later op of the same `try`; so the graph runs the op, and Python waits for it at the last op that it
runs in there, if an op in there can fail at all.
"""

from __future__ import annotations

import builtins
import dis
import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from terra_tf.trace.bytecode import CodeInfo
from terra_tf.trace.control_flow_graph import ControlFlowGraph
from terra_tf.trace.location_tree import Location

_LOADS = frozenset({
    "LOAD_GLOBAL", "LOAD_NAME", "LOAD_FAST", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_ATTR",
    "LOAD_FAST_CHECK", "LOAD_FAST_BORROW"})
_NOTHING = frozenset({
    "NOP", "CACHE", "EXTENDED_ARG", "PUSH_EXC_INFO", "DUP_TOP", "PUSH_NULL", "BUILD_TUPLE"})
_BEGINS_WITH = frozenset({"BEFORE_WITH", "SETUP_WITH"})
_SUPPRESSING = frozenset({"suppress", "raises", "assertRaises", "assertRaisesRegex"})
_RAISES = frozenset({"RERAISE", "RAISE_VARARGS"})
_MATCHES = frozenset({"CHECK_EXC_MATCH", "CHECK_EG_MATCH", "JUMP_IF_NOT_EXC_MATCH"})


class Try(NamedTuple):
    """One run of a `try` whose clauses raise in any case.

    Attributes:
      caller: The location of the call that runs its code.
      info: The code.
      handler: The block of the code that its handler begins with.
      counters: The trips of the loops around what runs in it.
      ordinal: How often its code was called again without a loop.
    """

    caller: Location
    info: CodeInfo
    handler: int
    counters: tuple[int, ...]
    ordinal: int


def may_be_caught(location: Location | None) -> bool:
    """Says whether some `except` of the user's around an op could end the way of its error."""
    return any(catches(info, offset) for _, info, offset in _user_levels(location))


def tries_around(location: Location | None) -> frozenset[Try]:
    """Returns what an op is in whose handlers an error of it would pass, and leave again."""
    return frozenset(
        Try(here.parent, info, handler, here.level.counters, here.level.ordinal)
        for here, info, offset in _user_levels(location)
        if here.parent is not None
        for handler in handlers_passed(info, offset)
    )


def _user_levels(location: Location | None) -> Iterator[tuple[Location, CodeInfo, int]]:
    for here in location.path if isinstance(location, Location) else ():
        if here.point.is_user and here.point.info is not None:
            yield here, here.point.info, here.point.offset


@functools.lru_cache(maxsize=4096)
def catches(info: CodeInfo, offset: int) -> bool:
    """Says whether code could keep an op's error that an instruction of it raises."""
    graph = info.graph
    return any(
        _clauses_of(info).suppresses(handler)
        or (
            _clauses_of(info).catch(graph.first_offset(handler))
            and not _always_raises(graph, handler)
        )
        for handler in _handlers_around(graph, offset)
    )


@functools.lru_cache(maxsize=4096)
def handlers_passed(info: CodeInfo, offset: int) -> tuple[int, ...]:
    """Returns the handlers around that could take an op's error, and raise in any case."""
    graph = info.graph
    return tuple(
        handler
        for handler in _handlers_around(graph, offset)
        if _clauses_of(info).catch(graph.first_offset(handler)) and _always_raises(graph, handler)
    )


def _handlers_around(graph: ControlFlowGraph, offset: int) -> Iterator[int]:
    seen: set[int] = set()
    handler = graph.handlers[graph.block_at(offset)]
    while handler is not None and handler not in seen:
        seen.add(handler)
        yield handler
        handler = graph.handlers[handler]  # where the handler itself leads to


def _always_raises(graph: ControlFlowGraph, handler: int) -> bool:
    """Says whether no way out of a handler, by its block, goes on or returns."""
    seen, pending = {handler}, [handler]
    while pending:
        block = pending.pop()
        following = graph.successors[block] - {graph.handlers[block]}
        if not following and graph.last_opname(block) not in _RAISES:
            return False
        pending += following - seen
        seen |= following
    return True


@functools.lru_cache(maxsize=8)  # what runs one after the other is often of the same code
def _clauses_of(info: CodeInfo) -> _Clauses:
    return _Clauses(info)


class _Clauses:
    """The `except` clauses of one code object, and its `with` statements."""

    def __init__(self, info: CodeInfo) -> None:
        self._info = info
        self._instructions = list(dis.get_instructions(info.code))
        self._index_of = {each.offset: i for i, each in enumerate(self._instructions)}

    def catch(self, offset: int) -> bool:
        """Says whether the clauses of the handler that begins there could take an op's error."""
        index = self._index_of[offset]
        names: set[str] = set()
        for number in range(index, len(self._instructions)):
            instruction = self._instructions[number]
            if instruction.opname in _LOADS:
                names.add(str(instruction.argval))
            elif instruction.opname in _MATCHES:
                return _is_an_ops(names) or self._next_clause_catches(number)
            elif instruction.opname not in _NOTHING:
                # `except:` drops the exception; a `finally` or `with` begins with anything else.
                return instruction.opname == "POP_TOP" and not names
        return False

    def suppresses(self, handler: int) -> bool:
        """Says whether a handler, by its block, is that of a `with` that is there to suppress."""
        graph = self._info.graph
        for begin, first in itertools.pairwise(self._instructions):
            if begin.opname not in _BEGINS_WITH:
                continue
            if graph.handlers[graph.block_at(first.offset)] != handler:
                continue
            line = self._info.line_at(begin.offset)
            names = {
                str(each.argval)
                for each in self._instructions[: self._index_of[begin.offset]]
                if each.argval and self._info.line_at(each.offset) == line
            }
            if names & _SUPPRESSING:
                return True
        return False

    def _next_clause_catches(self, match: int) -> bool:
        for instruction in self._instructions[match : match + 3]:
            if "JUMP" in instruction.opname:
                return self.catch(instruction.argval)
        return False


def _is_an_ops(names: set[str]) -> bool:
    """Says whether what a clause names could be a class of an op's errors."""
    classes = [getattr(builtins, name, None) for name in names]
    return any(kind is None or kind in (Exception, BaseException) for kind in classes)
