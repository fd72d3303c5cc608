"""Random programs behave under `terra.function` as they do eagerly, and the fuzzer can fail.

`make fuzz` runs many more of them; see tests/fuzz.
"""

import functools

import pytest
import tensorflow as tf

import terra_tf as terra
from tests.fuzz import generator, harness, interrupts, profiles, shrink, tree

SMALL = (2, 3, 5)
NUM_SEEDS = 100
SEEDS_PER_TEST = 10
SMALL_KERAS = (1, 2)
NUM_KERAS_SEEDS = 15
SMALL_LOOPS = (1, 2)
NUM_LOOPS_SEEDS = 16
SMALL_VARIED = (1, 2)
FOUND = [
    *(("plain", seed) for seed in (147, 220, 404, 1203)),  # once hung
    # An op of Python's had got an output of a way not taken.
    ("functions", 2217),
    # A variant that a function keeps for its gradient, where Python runs it on some ways.
    ("functions", 95005),
    # A loop that starts with a tensor that its first trip is fed, too.
    ("aliasing", 95002),
    # Trips without an op, which the checker of plans did not know.
    ("loops", 97044),
    # Gradients replayed under a tape that connected what eager's does not: last bits, and values.
    *(("gradients", seed) for seed in (54, 67)),
]


def assert_none_differs(results):
    differences = {seed: found.difference for seed, found in results.items() if found.difference}
    assert not differences
    assert not [seed for seed, found in results.items() if found.bad_program]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("first", range(0, NUM_SEEDS, SEEDS_PER_TEST))
def test_random_programs_match_eager(first):
    results = {
        seed: harness.check(generator.generate(seed, SMALL))
        for seed in range(first, first + SEEDS_PER_TEST)
    }
    assert_none_differs(results)
    assert all(found.is_repeatable for found in results.values())
    assert sum(found.co_executed_steps for found in results.values()) > 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("first", range(0, NUM_KERAS_SEEDS, 5))
def test_random_programs_with_keras_match_eager(first):
    results = {
        seed: harness.check(profiles.generate(seed, "keras", SMALL_KERAS))
        for seed in range(first, first + 5)
    }
    assert_none_differs(results)
    assert sum(found.calls_replayed for found in results.values()) > 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("first", range(0, NUM_LOOPS_SEEDS, 4))
def test_random_programs_with_long_loops_match_eager(first):
    results = {
        seed: harness.check(profiles.generate(seed, "loops", SMALL_LOOPS))
        for seed in range(first, first + 4)
    }
    assert_none_differs(results)
    assert sum(found.num_loops for found in results.values()) > 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("profile", "first", "count"),
    [
        ("aliasing", 0, 10),
        ("aliasing", 10, 10),
        ("structure", 0, 6),
        ("structure", 6, 6),
        ("functions", 0, 4),
        ("functions", 4, 4),
        ("shapes", 0, 6),
        ("gradients", 0, 6),
        ("gradients", 6, 6),
        ("interrupts", 0, 7),
        ("interrupts", 7, 7),
    ],
)
def test_random_programs_of_varied_calls_match_eager(profile, first, count):
    results = {
        seed: harness.check(profiles.generate(seed, profile, SMALL_VARIED))
        for seed in range(first, first + count)
    }
    assert_none_differs(results)
    assert sum(found.co_executed_steps for found in results.values()) > 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", (3, 6))
def test_replay_on_and_off_agree(seed):
    program = profiles.generate(seed, "keras", SMALL_KERAS)
    found = harness.check(program, reference="no_replay")
    assert found.difference is None
    assert found.calls_replayed > 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("profile", "seed"), FOUND)
def test_what_fuzzing_has_found(profile, seed):
    found = harness.check(profiles.generate(seed, profile))
    assert found.difference is None
    assert found.co_executed_steps > 0


def test_a_seed_gives_the_same_program_each_time():
    for profile in profiles.PROFILES:
        texts = [profiles.generate(seed, profile).text() for seed in range(20)]
        assert texts == [profiles.generate(seed, profile).text() for seed in range(20)]
        assert len(set(texts)) == 20


# ---- The fuzzer can fail: wrappers that are wrong in one way each ---------------------
def remembering_the_first_result(function):
    results = []

    @functools.wraps(function)
    def wrapped(*args):
        if not results:
            results.append(function(*args))
        return results[0]

    return wrapped


class ForgetfulList(list):
    """A log that loses its second entry."""

    def append(self, item):
        if len(self) != 1:
            super().append(item)


def perturb(value):
    is_float = tf.is_tensor(value) and value.dtype == tf.float32
    return value + 1e-3 if is_float else value


def perturbing_results(function):
    def wrapped(*args):
        return tf.nest.map_structure(perturb, function(*args))

    return wrapped


def swallowing_exceptions(function):
    def wrapped(*args):
        try:
            return function(*args)
        except Exception:
            return None

    return wrapped


def skipping_a_call(function):
    calls = []

    def wrapped(*args):
        calls.append(args)
        return None if len(calls) == 3 else function(*args)

    return wrapped


def short_program(seed):
    program = generator.generate(seed, SMALL)
    program.num_calls = 4
    return program


def count_findings(wrap, num_programs=16):
    programs = [short_program(seed) for seed in range(num_programs)]
    return sum(bool(harness.check(program, wrap).difference) for program in programs)


@pytest.mark.parametrize(
    ("wrap", "least"),
    [
        (remembering_the_first_result, 12),
        (perturbing_results, 6),
        (swallowing_exceptions, 1),
        (skipping_a_call, 12),
    ],
)
def test_a_wrong_wrapper_is_caught(wrap, least):
    assert count_findings(wrap) >= least


def test_a_dropped_side_effect_is_caught():
    def dropping(function):
        names = function.__code__.co_freevars
        if function.__name__ == "run" and "log" in names:
            function.__closure__[names.index("log")].cell_contents = ForgetfulList()
        return function

    assert count_findings(dropping) >= 1


def aliasing_as_at_first(function):
    """Takes arguments that were one object in the first call to be one in each."""
    first = []

    def wrapped(*args):
        first.extend([] if first else [[a is b for b in args].index(True) for a in args])
        return function(*[args[at] for at in first])

    return wrapped


def keeping_what_is_no_tensor(function):
    """Takes an argument that is no tensor to be what it was in the first call."""
    first = []

    def wrapped(*args):
        first.extend([] if first else args)
        pairs = list(zip(args, first, strict=True))
        return function(*[a if tf.is_tensor(a) or a is pairs[-1][0] else b for a, b in pairs])

    return wrapped


@pytest.mark.parametrize(
    ("profile", "wrap"),
    [("aliasing", aliasing_as_at_first), ("structure", keeping_what_is_no_tensor)],
)
def test_a_wrapper_that_takes_calls_for_the_first_is_caught(profile, wrap):
    programs = [profiles.generate(seed, profile, SMALL_VARIED) for seed in range(10)]
    assert sum(bool(harness.check(program, wrap).difference) for program in programs) >= 3


def redoing_what_was_interrupted(function):
    """Does what an interrupted call has done once more before the exception leaves."""

    def wrapped(*args):
        try:
            return terra.function(function)(*args)
        except KeyboardInterrupt:
            function(*args)
            raise

    return wrapped


def swallowing_interruptions(function):
    def wrapped(*args):
        try:
            return terra.function(function)(*args)
        except KeyboardInterrupt:
            return None

    return wrapped


def interrupted_program(seed):
    program = short_program(seed)
    program.has_synchronous_errors = program.reads_each_call = True
    program.interruptions = {2: (300, "KeyboardInterrupt")}
    return program


@pytest.mark.parametrize("wrap", [redoing_what_was_interrupted, swallowing_interruptions])
def test_a_wrapper_that_is_wrong_when_interrupted_is_caught(wrap):
    programs = [interrupted_program(seed) for seed in range(4)]
    assert sum(bool(harness.check(program, wrap).difference) for program in programs) >= 2


def test_an_interrupted_line_may_have_run_some_of_its_ops():
    """The eager run is interrupted before one op of a line after the other, until one fits."""
    program = interrupted_program(0)
    ops = "w.assign(w * 2.0); b.assign(b * 2.0); c.assign(c * 2.0)"
    program.sections = {"helpers": [], "body": [tree.Node(ops)], "between": []}
    found = interrupts.Found(4, KeyboardInterrupt, "", "", has_left=True)
    outcomes = set()
    for place in (interrupts.AT_THE_EVENT, 0, 3, 6, interrupts.AFTER_THE_LINE):
        in_eager = interrupts.InEager(program, {2: found}, {2: place})
        run = harness.run_program(program, lambda function: function, in_eager)
        assert run.calls[1].outcome.type_name == "KeyboardInterrupt"
        outcomes.add(str(run.calls[1].variables))
    assert len(outcomes) == 4


def test_the_right_wrapper_is_not_accused():
    assert count_findings(lambda function: function) == 0


def test_shrinking_leaves_the_statement_that_matters():
    def misplacing_sums(function):
        def wrapped(*args):
            with tf.GradientTape() as tape:
                outcome = function(*args)
            if len(tape.watched_variables()) > 0:
                raise RuntimeError("the program reads a variable")
            return outcome

        return wrapped

    def fails(program):
        found = harness.check(program, misplacing_sums)
        return bool(found.difference) and not found.bad_program

    program = next(p for p in map(short_program, range(20)) if fails(p))
    smaller, _ = shrink.shrink(program, fails, max_checks=120)
    assert fails(smaller)
    assert smaller.num_statements() < program.num_statements() / 2


def test_a_late_op_error_lets_off_the_log_of_its_call_only():
    program = generator.generate(0, SMALL)
    program.has_synchronous_errors = False
    eager = harness.run_program(program, lambda function: function)
    late = harness.run_program(program, terra.function)
    late.calls[3].log = ["an effect that eager did not have"]
    assert "call 3 log" in harness.compare_runs(program, eager, late)
    eager.calls[3].is_op_error = True
    assert harness.compare_runs(program, eager, late) is None
    late.calls[3].variables = None
    assert "call 3 variables" in harness.compare_runs(program, eager, late)
