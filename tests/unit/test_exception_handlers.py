"""Which instructions have an `except` around them that could take an op's error."""

import contextlib
import dis

import pytest

from tests.unit.pure_import import import_pure

code_info = import_pure("trace.bytecode").code_info
catches = import_pure("trace.exception_handlers").catches


class OpError(Exception):
    pass


class errors:  # noqa: N801
    InvalidArgumentError = OpError


def op(*args):
    pass


def answers(function):
    """Return for each call of `op`, by its argument, whether its errors could be caught."""
    info, found = code_info(function.__code__), {}
    argument = None
    for instruction in dis.get_instructions(function):
        if instruction.opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
            argument = instruction.argval
        elif instruction.opname in ("CALL", "CALL_FUNCTION"):
            if isinstance(argument, str):
                found.setdefault(argument, catches(info, info.normalize(instruction.offset)))
            argument = None
    return found


def by_class():
    op("before")
    try:
        op("in try")
    except errors.InvalidArgumentError:
        op("in except")
    op("behind")


def by_tuple(kind):
    try:
        op("in try")
    except (ValueError, kind) as error:
        return error


def by_second_clause():
    try:
        op("in try")
    except KeyError:
        op("in except")
    except (IndexError, OpError):
        op("in second except")


def by_base_class():
    try:
        op("in try")
    except Exception:
        op("in except")
        raise


def by_all():
    try:
        op("in try")
    except:  # noqa: E722
        op("in except")


def by_builtin_classes_only():
    try:
        op("in try")
    except KeyError:
        op("in except")
    except (IndexError, StopIteration):
        op("in second except")


def by_nobody():
    try:
        op("in try")
    finally:
        op("in finally")
    with contextlib.nullcontext():
        op("in with")


def by_suppressing_with(raises):
    with contextlib.suppress(OpError):
        op("in suppress")
    with contextlib.nullcontext(), raises(OpError) as info:
        op("in raises", info)
    with contextlib.nullcontext():
        op("in try")


def by_outer_try():
    try:
        with contextlib.nullcontext():
            for _ in range(3):
                try:
                    op("in inner try")
                finally:
                    op("in finally")
        op("in outer try")
    except OpError:
        op("in except")


def by_inner_try():
    try:
        op("in outer try")
        try:
            op("in inner try")
        except OpError:
            op("in inner except")
        else:
            op("in else")
    except KeyError:
        op("in outer except")


@pytest.mark.parametrize(
    ("function", "caught"),
    [
        (by_class, {"in try"}),
        (by_tuple, {"in try"}),
        (by_second_clause, {"in try"}),
        (by_base_class, {"in try"}),
        (by_all, {"in try"}),
        (by_builtin_classes_only, set()),
        (by_nobody, set()),
        (by_suppressing_with, {"in suppress", "in raises"}),
        (by_outer_try, {"in inner try", "in finally", "in outer try"}),
        (by_inner_try, {"in inner try"}),
    ],
)
def test_op_whose_error_could_be_caught_is_told(function, caught):
    found = answers(function)
    assert "in try" in found or "in inner try" in found
    assert {argument for argument, is_caught in found.items() if is_caught} == caught
