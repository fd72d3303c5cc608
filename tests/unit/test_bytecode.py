"""The analysis of bytecode: loops as the source has them, and moves between instructions."""

import argparse
import ast
import dis
import graphlib
import inspect
import types

import pytest

from tests.unit.pure_import import import_pure

bytecode = import_pure("trace.bytecode")
code_info = bytecode.code_info


def op(*args):
    pass


def calls(function):
    """Return the CodeInfo of a function and the offsets of its calls of `op`, by their argument."""
    info, offsets = code_info(function.__code__), {}
    tracked = None
    for instruction in dis.get_instructions(function):
        if instruction.opname == "LOAD_CONST":
            tracked = instruction.argval
        elif instruction.opname in ("CALL", "CALL_FUNCTION"):
            offsets.setdefault(tracked, info.normalize(instruction.offset))
    return info, offsets


def all_code(module):
    """Yield all code objects of a module's source."""
    pending = [compile(inspect.getsource(module), module.__file__, "exec")]
    while pending:
        code = pending.pop()
        yield code
        pending += [const for const in code.co_consts if isinstance(const, types.CodeType)]


MODULES = [argparse, ast, dis, graphlib, inspect, types]


def normalize_slowly(code):
    """Map each byte offset to the start of its instruction by `dis`, a PRECALL to its CALL."""
    normalized, start = {}, 0
    instructions = {i.offset: i for i in dis.get_instructions(code)}
    offsets = sorted(instructions)
    for offset in range(0, len(code.co_code), 2):
        start = offset if offset in instructions else start
        normalized[offset] = start
        if instructions[start].opname == "PRECALL":
            normalized[offset] = offsets[offsets.index(start) + 1]
    return normalized


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_offset_normalizes_to_the_start_of_its_instruction(module):
    for code in all_code(module):
        info = bytecode.CodeInfo(code)
        expected = normalize_slowly(code)
        assert {offset: info.normalize(offset) for offset in expected} == expected


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_control_flow_is_acyclic_but_for_loops_and_polling(module):
    for code in all_code(module):
        graph = bytecode.ControlFlowGraph(code)
        forward = {block: {successor for successor in graph.successors[block]
                           if not graph.dominates(successor, block)}
                   for block in graph.reachable}
        order = list(graphlib.TopologicalSorter(forward).static_order())  # raises CycleError
        assert set(order) >= set(forward)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_code_without_backward_jumps_has_no_loops(module):
    for code in all_code(module):
        if not bytecode._jumps_backward(code.co_code):
            assert bytecode.find_loops(bytecode.ControlFlowGraph(code)) == []


def test_nested_loops_are_listed_outermost_first():
    def function():
        for _ in "ab":
            op(1)
            while op(0):
                op(2)
        op(3)

    info, at = calls(function)
    (outer,) = info.loops_at(at[1])
    assert info.loops_at(at[2])[0] == outer
    assert len(info.loops_at(at[2])) == 2
    assert info.loops_at(at[3]) == ()


def test_while_with_continue_is_one_loop():
    def function(k):
        while k < 3:
            k += 1
            op(1)
            if k == 1:
                continue
            op(2)

    info, at = calls(function)
    assert len(info.loops) == 1
    assert info.loops_at(at[1]) == info.loops_at(at[2]) == (0,)


def test_loop_around_a_loop_is_not_taken_for_a_continue():
    def function(k):
        while k < 3:
            while k < 2:
                op(1)

    assert len(code_info(function.__code__).loops) == 2


def test_await_is_no_loop():
    async def function():
        op(1)
        await op(2)
        op(3)

    assert code_info(function.__code__).loops == []


def test_exception_handler_can_follow_any_instruction_it_covers():
    def function():
        try:
            op(1)
            op(2)
        except ValueError:
            op(3)

    info, at = calls(function)
    assert info.move(at[1], at[3]) == (0, False, 0)
    assert info.move(at[2], at[3]) == (0, False, 0)
    assert info.move(at[3], at[2]) is None


def test_move_to_the_other_branch_needs_another_call():
    def function(x):
        if x:
            op(1)
        else:
            op(2)

    info, at = calls(function)
    assert info.move(at[1], at[2]) is None
    assert info.move(at[1], at[1]) is None


def test_move_to_the_other_branch_in_a_loop_is_another_iteration():
    def function(x):
        for y in x:
            if y:
                op(1)
            else:
                op(2)

    info, at = calls(function)
    assert info.move(at[1], at[2]) == (0, True, 1)
    assert info.move(at[2], at[1]) == (0, True, 1)
    assert info.move(at[1], at[1]) == (0, True, 1)


def test_move_keeps_as_many_loops_as_it_can():
    def function(x):
        for y in x:
            for _ in y:
                op(1)
                op(2)
            op(3)

    info, at = calls(function)
    assert info.move(at[1], at[2]) == (2, False, 2)
    assert info.move(at[2], at[1]) == (1, True, 2)
    assert info.move(at[2], at[3]) == (1, False, 1)
    assert info.move(at[3], at[1]) == (0, True, 2)


def test_counters_after_a_move_start_inner_loops_anew():
    assert bytecode.Move(2, False, 2).counters_after((4, 7)) == (4, 7)
    assert bytecode.Move(1, True, 2).counters_after((4, 7)) == (4, 8)
    assert bytecode.Move(0, True, 2).counters_after((4,)) == (5, 0)
    assert bytecode.Move(1, False, 1).counters_after((4, 7)) == (4,)


def test_equal_code_shares_its_info_but_not_across_files():
    def compile_step(filename):
        return compile("op(1)", filename, "exec")

    info = code_info(compile_step("a.py"))
    assert code_info(compile_step("a.py")) is info
    assert code_info(compile_step("b.py")) is not info


def test_line_of_an_instruction_is_its_sources():
    def function():
        op(1)

        op(2)

    info, at = calls(function)
    assert info.line_at(at[2]) == info.line_at(at[1]) + 2
