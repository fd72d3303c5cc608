"""Which instructions have an `except` around them that could take an op's error."""

import contextlib
import dis

import pytest

from tests.unit.pure_import import import_pure

code_info = import_pure("trace.bytecode").code_info
catches = import_pure("trace.exception_handlers").catches
handlers_passed = import_pure("trace.exception_handlers").handlers_passed


class OpError(Exception):
    pass


class errors:  # noqa: N801
    InvalidArgumentError = OpError


def op(*args):
    pass


def answers(function, ask=catches):
    """Return for each call of `op`, by its argument, whether its errors could be caught."""
    info, found = code_info(function.__code__), {}
    argument = None
    for instruction in dis.get_instructions(function):
        if instruction.opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
            argument = instruction.argval
        elif instruction.opname in ("CALL", "CALL_FUNCTION"):
            if isinstance(argument, str):
                found.setdefault(argument, ask(info, info.normalize(instruction.offset)))
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
        (by_base_class, set()),  # it raises again
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


def by_raising_another():
    try:
        op("in try")
    except OpError as error:
        op("in except")
        if op(error):
            raise ValueError from error
        raise
    finally:
        op("in finally")


def by_raising_sometimes():
    try:
        op("in try")
    except OpError as error:
        if op(error):
            raise


def by_raising_in_a_loop():
    for _ in range(3):
        try:
            op("in try")
        except Exception as error:
            raise error.with_traceback(None) from None
        op("behind")


def by_continuing():
    for _ in range(3):
        try:
            op("in try")
        except OpError:
            continue


def by_nested():
    try:
        try:
            op("in inner try")
        except OpError:
            raise
        op("in outer try")
    except Exception:
        raise


@pytest.mark.parametrize(
    ("function", "passed"),
    [
        (by_base_class, {"in try": 1}),
        (by_raising_another, {"in try": 1}),
        (by_raising_sometimes, {}),
        (by_raising_in_a_loop, {"in try": 1}),
        (by_continuing, {}),
        (by_class, {}),
        (by_nested, {"in inner try": 2, "in outer try": 1}),
        (by_nobody, {}),
    ],
)
def test_handlers_that_raise_again(function, passed):
    found = {name: len(handlers) for name, handlers in answers(function, handlers_passed).items()}
    assert {name: number for name, number in found.items() if number} == passed


@pytest.mark.parametrize("function", [by_raising_another, by_raising_in_a_loop, by_nested])
def test_what_is_raised_again_is_not_kept(function):
    assert not any(answers(function).values())


@pytest.mark.parametrize("function", [by_raising_sometimes, by_continuing])
def test_what_is_not_always_raised_again_may_be_kept(function):
    assert answers(function)["in try"]
