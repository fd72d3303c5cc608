"""Programs with branches, one way to go wrong each, equal eager and settle in one graph.

The bodies are in `switch_case_programs` and `switch_case_value_programs`. Each is called with
every case in turn, then at random; what it returns and raises, its Python side effects and its
variables must be eager's, and at the end every call must be co-executed.
"""

import threading

import numpy as np
import pytest
import switch_case_value_programs  # noqa: F401  # registers more bodies
import tensorflow as tf
from switch_case_programs import BODIES, make_of

import terra_tf as terra
from terra_tf.config import config
from terra_tf.testing import Program, assert_co_executing, assert_matches_eager

# By a signal, which a stalled step notices: the other tests go on.
pytestmark = pytest.mark.timeout(30, method="signal")

NUM_SETTLED_CALLS = 12
JOIN_TIMEOUT_S = 20
every_body = pytest.mark.parametrize("name", BODIES)
settling_body = pytest.mark.parametrize("name", [n for n, body in BODIES.items() if body.settles])


def cases_of(body):
    """Return the cases of the calls: every one in turn, then at random."""
    random = np.random.default_rng(2).integers(body.num_cases, size=NUM_SETTLED_CALLS)
    return [*range(body.num_cases)] * body.num_rounds + random.tolist()


class Steps:
    """Makes a program whose step takes no case, and keeps the counters after each call."""

    def __init__(self, make, cases):
        self._make, self._cases = make, cases
        self.stats = []

    def __call__(self, wrap):
        functions = []

        def remembering_wrap(function):
            functions.append(wrap(function))
            return functions[-1]

        program, cases = self._make(remembering_wrap), iter(self._cases)

        def step():
            try:
                return program.step(next(cases))
            finally:
                self.stats.append([f.stats() for f in functions if hasattr(f, "stats")])

        return Program(step, program.variables)


def assert_settles(make, cases, **settings):
    """Assert that a program equals eager, and that its last calls are all co-executed."""
    steps = Steps(make, cases)
    functions = assert_matches_eager(steps, len(cases), **settings)
    for function, before in zip(functions, steps.stats[-NUM_SETTLED_CALLS - 1], strict=True):
        assert_co_executing(function, after=before, imperative_ops=before.imperative_ops)
    return functions


# -------------------------------------------------------------------- every body


@settling_body
def test_body_equals_eager_and_settles(name):
    body = BODIES[name]
    (function,) = assert_settles(make_of(body.run), cases_of(body))
    assert (function.stats().num_switch_cases > 0) == body.is_branch, function.explain()


@settling_body
def test_body_settles_when_nothing_is_read_in_between(name):
    body = BODIES[name]
    assert_settles(make_of(body.run), cases_of(body), read_at_end=True)


@pytest.mark.parametrize("name", [n for n, body in BODIES.items() if not body.settles])
def test_body_that_raises_equals_eager(name):
    body = BODIES[name]
    (function,) = assert_matches_eager(Steps(make_of(body.run), cases_of(body)), 22)
    assert function.stats().co_executed_steps >= 5


@every_body
def test_body_equals_eager_under_delays(name):
    """The first calls only: what happens while a graph is new, and Python late, or the graph."""
    body = BODIES[name]
    cases = [*range(body.num_cases)] * 3
    with config.override(inject_delays="graph,python"):
        assert_matches_eager(Steps(make_of(body.run), cases), len(cases))


@pytest.mark.parametrize("name", ["adjacent", "assign_or_scatter", "fed_in_two_branches"])
@pytest.mark.parametrize("who", ["graph", "python", "graph,python"])
def test_body_settles_under_delays(name, who):
    body = BODIES[name]
    with config.override(inject_delays=who):
        assert_settles(make_of(body.run), cases_of(body), read_at_end=True)


@pytest.mark.parametrize("name", ["fed_only_inside", "fed_inside_and_after", "fed_in_two_branches"])
def test_argument_of_numpy_is_fed_inside(name):
    body = BODIES[name]
    assert_settles(make_of(body.run, as_numpy=True), cases_of(body))


# ----------------------------------------------------------------- two functions


def test_two_functions_alternate_and_share_a_variable():
    def make(wrap):
        u = tf.Variable([1.0, 2.0, 3.0])

        @wrap
        def grow(x, case):
            if case:
                u.assign_add(x)
            return u * 2.0

        @wrap
        def shrink(y, case):
            y = tf.tanh(y)
            if not case:
                u.assign(u * 0.5)
                y = y + u
            return y - u

        def step(case):
            y = grow(tf.constant([0.1, 0.2, 0.3]), case)
            return y, shrink(y, case % 2), shrink(y, (case + 1) % 2)

        return Program(step, [u])

    functions = assert_settles(make, [0, 1] * 6 + [1, 1, 0, 1, 0, 0] * 2, read_at_end=True)
    assert [f.stats().num_switch_cases for f in functions] == [1, 1]


# -------------------------------------------------------- exceptions that leave


@pytest.mark.parametrize(
    ("has_op", "fallbacks"), [(False, {"python_exception": 1}), (True, {"new_path": 1})]
)
def test_exception_that_leaves_from_inside_a_branch(has_op, fallbacks):
    def make(wrap):
        u, log = tf.Variable([1.0, 2.0]), []

        @wrap
        def call(x, case):
            u.assign_add(x)
            y = tf.tanh(u)
            if case:
                y = y * 2.0
                if case == 2:
                    if has_op:
                        u.assign(y)
                    log.append("before")
                    raise ValueError("inside")
            return y + u

        return Program(lambda case: (call(tf.constant([0.1, 0.2]), case), log[-1:]), [u])

    cases = [0, 1] * 4 + [2, 0, 1, 2, 1, 0, 0, 1] + [0, 1] * 6
    (function,) = assert_settles(make, cases)
    assert function.stats().fallbacks == fallbacks


# ------------------------------------------------------------------ side effects


def test_print_inside_a_branch_is_printed_in_order(capfd):
    def make(wrap):
        @wrap
        def call(x, case):
            y = x * 2.0
            if case:
                tf.print("inside", y, summarize=3)
                y = tf.tanh(y)
            tf.print("after", y, summarize=3)
            return y

        return Program(lambda case: call(tf.constant([1.0, 2.0]), case))

    cases = [0, 1] * 5 + [0, 1, 1, 0] * 3
    program = make(lambda function: function)
    for case in cases:
        program.step(case)
    expected = capfd.readouterr().err
    (function,) = assert_settles(make, cases)
    printed = capfd.readouterr().err
    assert printed == expected * 2
    assert expected.count("inside") == sum(cases)
    assert function.stats().imperative_ops == {"PrintV2": 2}


# --------------------------------------------------------------- other threads


def in_thread(function):
    """Run `function` in another thread, and wait for it; it must not raise."""
    errors = []

    def run():
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(JOIN_TIMEOUT_S)
    assert not thread.is_alive(), "the other thread is stuck"
    assert not errors, errors


@pytest.mark.parametrize("what", ["variable", "tensor"])
@pytest.mark.parametrize("where", ["inside", "after"])
def test_step_is_seized_while_it_is_in_a_branch(what, where):
    def make(wrap):
        u, log = tf.Variable([1.0, 2.0]), []
        calls = [0]

        @wrap
        def call(x, case):
            u.assign_add(x)
            y = tf.tanh(x)
            if case:
                u.assign_add(u * 0.5)
                y = y * 2.0
                if calls[0] > 12 and where == "inside":
                    seize(y)
                u.assign_sub(y)
            if calls[0] > 12 and where == "after":
                seize(y)
            return y + u

        def seize(y):
            read = (lambda: u.numpy()) if what == "variable" else (lambda: y.numpy())
            in_thread(lambda: log.append(read().tolist()))

        def step(case):
            calls[0] += 1
            return call(tf.constant([0.1, 0.2]), case), list(log)

        return Program(step, [u])

    steps = Steps(make, [0, 1] * 6 + [0, 1, 1, 0])
    (function,) = assert_matches_eager(steps, 16)
    assert function.stats().fallbacks.get("seized_by_other_thread", 0) >= 1, function.explain()


# --------------------------------------------------------------------- counters


def test_counters_of_two_branches_are_exact():
    """Two ways to trace; the third call is covered, and the graph is built."""
    body = BODIES["if_else"]
    (function,) = assert_settles(make_of(body.run), cases_of(body))
    stats = function.stats()
    assert (stats.traced_steps, stats.graph_builds, stats.fallbacks) == (3, 1, {})
    assert stats.co_executed_steps == stats.steps - 3
    assert (stats.num_switch_cases, stats.num_nodes, stats.num_fetches) == (1, 3, 1)


def test_ways_that_were_never_traced_together_are_covered():
    """All three blocks, none, the first two alone: every other way is legal by its levels."""
    body = BODIES["a_variable_for_each_block"]
    program = Steps(make_of(body.run), [7, 0, 1, 2, 4] + [3, 5, 6, 7] * 3)
    (function,) = assert_matches_eager(program, 17)
    stats = function.stats()
    assert (stats.traced_steps, stats.graph_builds, stats.fallbacks) == (5, 1, {})
    assert (stats.co_executed_steps, stats.num_switch_cases) == (12, 3)


def test_way_over_a_level_that_every_path_passed_diverges_once():
    """Either block was taken in every traced call; none at all is a way that is learned."""

    def run(x, case, s):
        y = x * 2.0
        if case == 1:
            y = tf.tanh(y)
        elif case == 2:
            y = tf.exp(y)
        return y + 1.0

    program = Steps(make_of(run), [1, 2, 1] + [2, 1] * 4 + [0] + [0, 1, 2] * 4)
    (function,) = assert_matches_eager(program, 24)
    stats = function.stats()
    assert stats.fallbacks == {"new_path": 1}, function.explain()
    assert (stats.traced_steps, stats.graph_builds) == (3, 2)
    assert stats.co_executed_steps == 20


def test_loop_that_was_left_in_one_trip_may_be_left_in_any():
    """By `break` in the middle of a trip: after trips 0, 1 and 4, so after 2 and 3 as well."""

    def run(x, case, s):
        for i in range(6):
            x = tf.tanh(x) * 2.0
            if i == case:
                x = -x
                break
            x = tf.exp(x) * 0.5
        return x + 1.0

    program = Steps(make_of(run), [0, 1, 4, 7] * 2 + [2, 3] * 6)
    (function,) = assert_matches_eager(program, 20)
    (before,) = program.stats[-13]
    assert_co_executing(function, after=before)


def test_way_that_a_cut_for_an_epoch_takes_away_diverges_once():
    """The call of Python begins a block, beside that of `cos`: then no traced way skips both."""

    def run(x, way, s):
        is_python = "u" not in way
        y = tf.py_function(tf.identity, [x * s.w], tf.float32) if is_python else tf.sin(x)
        if "b" in way:
            y = tf.cos(y)
        return tf.exp(y) if "v" in way else tf.tanh(y)

    traced = ["ubv", "y", "uby"]
    program = Steps(make_of(run), traced * 4 + ["uv"] * 12)
    (function,) = assert_matches_eager(program, 24)
    stats = function.stats()
    assert stats.fallbacks.get("new_path", 0) <= 1, function.explain()
    (before,) = program.stats[-9]
    assert stats.co_executed_steps == before.co_executed_steps + 8, function.explain()


def test_read_that_is_on_one_way_only_is_fetched_in_its_branch():
    body = BODIES["read_inside"]
    (function,) = assert_settles(make_of(body.run), cases_of(body))
    assert function.stats().fallbacks == {}


def test_stall_warning_is_silent(caplog):
    """No settled call waits for its graph at a fork: who waits there waits for good."""
    body = BODIES["decision_by_decision"]
    with config.override(stall_warning_s=2.0):
        assert_settles(make_of(body.run), cases_of(body))
    terra.synchronize()
    assert "has waited" not in caplog.text
