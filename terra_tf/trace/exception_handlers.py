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
"""

from __future__ import annotations

import builtins
import dis
import functools
import itertools

from terra_tf.trace.bytecode import CodeInfo
from terra_tf.trace.location_tree import Location

_LOADS = frozenset({
    "LOAD_GLOBAL", "LOAD_NAME", "LOAD_FAST", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_ATTR",
    "LOAD_FAST_CHECK", "LOAD_FAST_BORROW"})
_NOTHING = frozenset({
    "NOP", "CACHE", "EXTENDED_ARG", "PUSH_EXC_INFO", "DUP_TOP", "PUSH_NULL", "BUILD_TUPLE"})
_BEGINS_WITH = frozenset({"BEFORE_WITH", "SETUP_WITH"})
_SUPPRESSING = frozenset({"suppress", "raises", "assertRaises", "assertRaisesRegex"})
_MATCHES = frozenset({"CHECK_EXC_MATCH", "CHECK_EG_MATCH", "JUMP_IF_NOT_EXC_MATCH"})


def may_be_caught(location: Location | None) -> bool:
    """Says whether some `except` of the user's around an op could take an error of it."""
    if not isinstance(location, Location):
        return False
    points = (level.point for level in location.levels)
    return any(p.is_user and p.info is not None and catches(p.info, p.offset) for p in points)


@functools.lru_cache(maxsize=4096)
def catches(info: CodeInfo, offset: int) -> bool:
    """Says whether code could catch an op's error that an instruction of it raises."""
    graph = info.graph
    clauses = _Clauses(info)
    seen: set[int] = set()
    handler = graph.handlers[graph.block_at(offset)]
    while handler is not None and handler not in seen:
        seen.add(handler)
        if clauses.catch(graph.first_offset(handler)) or clauses.suppresses(handler):
            return True
        handler = graph.handlers[handler]  # where the handler itself leads to
    return False


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
