"""Small programs, one per feature of Python, with the locations their ops must get.

An expected location is written `label f[2]>g#1`: the op `label`, run by `g` in
its first repetition, called by the program (always `f`) in iteration 2.
"""

import asyncio
import contextlib
import functools
import sys
from collections.abc import Callable
from typing import NamedTuple

AWAIT_POLLS_BY_JUMPS = sys.version_info >= (3, 11)
COMPREHENSIONS_ARE_INLINED = sys.version_info >= (3, 12)

_listener: Callable | None = None


class Program(NamedTuple):
    """A function that runs ops, and the locations these must get, in order."""

    function: Callable[[], None]
    expected: list[str]


PROGRAMS: dict[str, Program] = {}


def program(*expected):
    """Register a program under its function's name."""
    def register(function):
        PROGRAMS[function.__name__] = Program(function, list(expected))
        return function
    return register


def op(label):
    """Stand for an op run by the caller's frame."""
    _listener(label, sys._getframe(1))
    return label


def run(function, listener):
    """Run a program; its ops are told to `listener(label, frame)`."""
    global _listener
    _listener = listener
    with contextlib.suppress(ZeroDivisionError):
        function()


@program("a f", "b f")
def straight_line():
    op("a")
    op("b")


@program("a f[0]", "a f[1]", "a f[2]")
def for_loop():
    for _ in range(3):
        op("a")


@program("a f[0,0]", "a f[0,1]", "b f[0]", "a f[1,0]", "a f[1,1]", "b f[1]")
def nested_loops():
    for _ in range(2):
        for _ in range(2):
            op("a")
        op("b")


@program("a f[0]", "b f[0]", "a f[1]", "c f")
def while_true_with_break():
    k = 0
    while True:
        op("a")
        k += 1
        if k == 2:
            break
        op("b")
    op("c")


@program("t f", "a f[0]", "t f[0]", "a f[1]", "t f[1]", "e f")
def while_test_that_runs_an_op():    # the first test is before the loop
    k = 0
    while op("t") and k < 2:
        op("a")
        k += 1
    else:
        op("e")


@program("a f[0]", "b f[0]", "a f[1]", "a f[2]", "b f[2]", "e f")
def for_with_continue_and_else():
    for i in range(3):
        op("a")
        if i == 1:
            continue
        op("b")
    else:
        op("e")


@program("a f[0]", "a f[1]", "b f[1]", "a f[2]", "b f[2]")
def while_with_continue():           # two loop headers in the bytecode, one loop
    k = 0
    while k < 3:
        k += 1
        op("a")
        if k == 1:
            continue
        op("b")


@program("a f[0]", "x f[0]", "d f[0]", "a f[1]", "b f[1]", "d f[1]")
def handler_laid_out_after_its_loop():  # offsets go back without a new iteration
    for i in range(2):
        try:
            op("a")
            1 // i
            op("b")
        except ZeroDivisionError:
            op("x")
        op("d")


@program("a f[0]", "z f[0]", "a f[1]", "z f")
def finally_copied_for_break():      # the copy that `break` runs is outside the loop
    for i in range(3):
        try:
            op("a")
            if i == 1:
                break
        finally:
            op("z")


@contextlib.contextmanager
def _context():
    op("in")
    yield
    op("out")


@program("in f[0]>__enter__>_context", "a f[0]", "out f[0]>__exit__>_context",
         "in f[1]>__enter__>_context", "a f[1]", "out f[1]>__exit__>_context")
def context_manager():
    for _ in range(2):
        with _context():
            op("a")


@program(*(["a f[0]", "a f[1]", "b f"] if COMPREHENSIONS_ARE_INLINED
           else ["a f>listcomp[0]", "a f>listcomp[1]", "b f"]))
def list_comprehension():
    [op("a") for _ in range(2)]
    op("b")


@program(*(["a f[0,0]", "a f[0,1]", "a f[0,2]", "a f[0,3]"] if COMPREHENSIONS_ARE_INLINED
           else [f"a f>dictcomp[0]>listcomp[{i}]" for i in range(4)]))
def nested_comprehension():          # no op in the outer loop alone: it cannot be seen to turn
    {i: [op("a") for _ in range(2)] for i in range(2)}


def _generate(n):
    for i in range(n):
        op("g")
        yield i


@program("g f[0]>_generate[0]", "b f[0]", "g f[1]>_generate[0]", "b f[1]")
def generator_in_a_loop():
    for _ in _generate(2):
        op("b")


@program("g f>_generate[0]", "g f>_generate[1]", "g f>_generate[2]")
def generator_consumed_by_c():
    sum(_generate(3))


@program("g f>genexpr[0]>_generate[0]", "c f>genexpr[0]",
         "g f>genexpr[1]>_generate[0]", "c f>genexpr[1]")
def generator_expression():
    list(op("c") for _ in _generate(2))


def _yield_twice():
    op("p")
    yield 1
    op("q")
    op("r")
    yield 2


@program("p f[0]>_yield_twice", "q f[0]>_yield_twice", "r f[0]>_yield_twice")
def generator_with_all_the_ops():    # the loop around it runs none and cannot be seen to turn
    for _ in _yield_twice():
        pass


def _delegate():
    yield from _generate(2)


@program("g f[0]>_delegate>_generate[0]", "b f[0]", "g f[1]>_delegate>_generate[0]", "b f[1]")
def yield_from():
    for _ in _delegate():
        op("b")


@program("g f>_generate[0]", "g f>_generate[0]", "g f>_generate[0]", "g f>_generate[0]")
def interleaved_generators():        # four calls of `next` in four places of f
    a, b = _generate(2), _generate(2)
    next(a)
    next(b)
    next(a)
    next(b)


def _recurse(n):
    op("r")
    for _ in range(2):
        if n:
            _recurse(n - 1)


@program("r f>_recurse", "r f>_recurse[0]>_recurse", "r f>_recurse[1]>_recurse")
def recursion():
    _recurse(1)


@program("l f>lambda", "l f>lambda", "m f>lambda")
def lambdas_called_in_three_places():
    k = lambda: op("l")              # noqa: E731
    k()
    k()
    (lambda: op("m"))()


@program("m f>lambda", "m f>lambda#1", "m f>lambda#2")
def function_called_by_map():
    list(map(lambda x: op("m"), range(3)))


def _key(x):
    if x == 1:
        op("k1")
    op("k2")
    return x


@program("k2 f>_key", "k1 f#1>_key", "k2 f#1>_key", "k2 f#1>_key#1")
def key_called_by_sorted():
    sorted([2, 1, 3], key=_key)


@program("k2 f>_key", "k2 f>_key#1", "z f")
def function_called_by_filter():
    list(filter(_key, [2, 3]))
    op("z")


def _two_ops(a, b):
    op("x")
    return op("y")


@program("x f>_two_ops", "y f>_two_ops", "x f#1>_two_ops", "y f#1>_two_ops")
def function_called_by_reduce():
    functools.reduce(_two_ops, [1, 2, 3])


@program("x f[0]>_two_ops", "y f[0]>_two_ops", "x f[1]>_two_ops", "y f[1]>_two_ops")
def partial_in_a_loop():
    partial = functools.partial(_two_ops, 1)
    for _ in range(2):
        partial(2)


@program("o f", "o f#1", "o f#2")
def op_called_by_map():
    list(map(op, "ooo"))


def _decorate(function):
    @functools.wraps(function)
    def wrapper(*args):
        op("w")
        return function(*args)
    return wrapper


@_decorate
def _decorated():
    op("h")


@program("w f[0]>wrapper", "h f[0]>wrapper>_decorated",
         "w f[1]>wrapper", "h f[1]>wrapper>_decorated")
def decorated_function():
    for _ in range(2):
        _decorated()


@program("c f[0]>K", "c f[1]>K", "m f[1]>K>m")
def class_body():
    for i in range(2):
        class K:
            def m(self):
                op("m")
            op("c")
            if i:
                m(0)


@program("e f[0]>module[0]", "e f[0]>module[1]", "e f[0]>module[2]", "e f[0]>module[3]")
def code_compiled_anew_by_exec():
    for _ in range(2):
        exec("for i in range(2): op('e')", {"op": op})


@program("v f>module", "v f>lambda")
def evaluated_expression():
    eval("op('v')")
    (lambda: op("v"))()


async def _sleeper(n):
    for _ in range(n):
        op("s")
        await asyncio.sleep(0)
        op("t")
    return 1


def _drive(coroutine):
    try:
        while True:
            coroutine.send(None)
    except StopIteration:
        pass


async def _async_main():
    op("m")
    await _sleeper(2)
    op("n")


@program("m f>_drive[0]>_async_main", "s f>_drive[0]>_async_main>_sleeper[0]",
         "t f>_drive[0]>_async_main>_sleeper[0]", "s f>_drive[0]>_async_main>_sleeper[1]",
         "t f>_drive[0]>_async_main>_sleeper[1]", "n f>_drive[0]>_async_main")
def coroutine():
    _drive(_async_main())


async def _async_generate():
    for i in range(2):
        op("y")
        yield i


async def _async_for():
    async for _ in _async_generate():
        op("b")


@program("y f>_drive[0]>_async_for[0]>_async_generate[0]", "b f>_drive[0]>_async_for[0]",
         "y f>_drive[0]>_async_for[1]>_async_generate[0]", "b f>_drive[0]>_async_for[1]")
def async_generator():
    _drive(_async_for())


@program("a f[0]", "x f[0]", "a f[1]", "x f[1]", "a f[2]")
def retry_until_success():           # left by return, turned by the exception edge
    k = 0
    while True:
        try:
            op("a")
            k += 1
            return 1 // (k // 3)
        except ZeroDivisionError:
            op("x")
            continue


class _Overloaded:
    @property
    def p(self):
        return op("p")

    def __getitem__(self, key):
        return op("s")

    def __add__(self, other):
        return op("+")

    def __call__(self):
        return op("c")


@program(*(text for i in range(20)
           for text in (f"p f[{i}]>p", f"s f[{i}]>__getitem__", f"+ f[{i}]>__add__",
                        f"c f[{i}]>__call__")))
def operators_that_get_specialized():  # CPython moves f_lasti while the loop runs
    q = _Overloaded()
    for _ in range(20):
        _ = q.p, q[0], q + 1, q()


def _return_early(i):
    if i == 0:
        op("a")
        return
    op("b")


@program("a f>_return_early", "b f#1>_return_early")
def second_call_at_a_larger_offset():
    list(map(_return_early, [0, 1]))


@program("a f[0,0]", "a f[0,1]", "a f[0,2]")
def inner_loop_with_all_the_ops():   # truly 00 10 11: the outer loop cannot be seen to turn
    k = 0
    while k < 2:
        k += 1
        j = 0
        while j < k:
            op("a")
            j += 1


@program("a f[0]", "m f[0]", "a f[1]", "n f[1]")
def match_statement():
    for i in range(2):
        op("a")
        match i:
            case 0:
                op("m")
            case _:
                op("n")


@program("a f", "A f")
def finally_on_the_way_out():
    try:
        op("a")
        raise ZeroDivisionError
    finally:
        op("A")


class _Poll:
    def __iter__(self):
        return self

    def __next__(self):
        op("n")


class _Awaitable:
    def __await__(self):
        return _Poll()


async def _await_it():
    await _Awaitable()


def _send_three_times(coroutine):
    for _ in range(3):
        coroutine.send(None)


@program(*(f"n f>_send_three_times[{i}]>_await_it>__next__" for i in range(3)))
def awaitable_that_is_polled():      # `await` jumps back to poll, which is no loop of the source
    _send_three_times(_await_it())


async def _await_in_a_loop():
    for _ in range(2):
        await _Awaitable()


@program(*(f"n f>_send_three_times[{i}]>_await_in_a_loop[0]>__next__" if AWAIT_POLLS_BY_JUMPS
           else f"n f>_send_three_times[0]>_await_in_a_loop[{i}]>__next__" for i in range(3)))
def awaitable_that_is_polled_in_a_loop():
    _send_three_times(_await_in_a_loop())
