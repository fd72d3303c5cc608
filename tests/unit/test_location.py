"""Locations: precise, unique within a step, and the same at each run."""

import collections
import gc
import graphlib
import itertools
import linecache
import random
import sys
import weakref

import pytest

from tests.unit import location_programs
from tests.unit.locating import define, locate_ops
from tests.unit.pure_import import import_pure
from tests.unit.random_control_flow import RandomProgram

location_module = import_pure("trace.location")
describe = location_module.describe
LocationTracker = location_module.LocationTracker

_NUM_RANDOM_PROGRAMS = 60


def run_program(tracker, program):
    """Run a registered program; return (label, location, line number) of each op."""
    record = []

    def listen(label, frame):
        record.append((label, tracker.locate(frame), frame.f_lineno))

    def start():
        tracker.begin(sys._getframe())
        program.function()

    location_programs.run(start, listen)
    return record


def notation(label, location):
    """Write a location as `location_programs` does."""
    levels = []
    for depth, level in enumerate(location.levels):
        name = level.code_info.code.co_name.strip("<>") if depth else "f"
        counters = ",".join(map(str, level.counters))
        levels.append(name + (f"[{counters}]" if counters else "")
                      + (f"#{level.ordinal}" if level.ordinal else ""))
    return f"{label} {'>'.join(levels)}"


@pytest.fixture
def tracker():
    return LocationTracker()


@pytest.mark.parametrize("name", location_programs.PROGRAMS)
def test_python_feature_gets_expected_locations(name, tracker):
    program = location_programs.PROGRAMS[name]
    record = run_program(tracker, program)
    assert [notation(label, location) for label, location, _ in record] == program.expected


@pytest.mark.parametrize("name", location_programs.PROGRAMS)
def test_locations_are_unique_and_stay_while_python_specializes(name, tracker):
    program = location_programs.PROGRAMS[name]
    first = [location for _, location, _ in run_program(tracker, program)]
    assert len(set(first)) == len(first)
    for _ in range(30):
        assert [location for _, location, _ in run_program(tracker, program)] == first


@pytest.mark.parametrize("name", location_programs.PROGRAMS)
def test_location_knows_its_line(name, tracker):
    for label, location, line in run_program(tracker, location_programs.PROGRAMS[name]):
        assert location.path[-1].point.lineno == line
        frame = location.user_frame()
        if frame.filename == location_programs.__file__:
            source = linecache.getline(frame.filename, frame.lineno)
            assert f'op("{label}")' in source or "op," in source or "exec(" in source


@pytest.mark.parametrize("seed", range(_NUM_RANDOM_PROGRAMS))
def test_random_programs_get_unique_stable_acyclic_locations(seed):
    trackers = [LocationTracker(), LocationTracker()]
    locations = []
    program = RandomProgram(
        seed, lambda: locations.append(tracker.locate(sys._getframe(1))))
    callers_of = collections.defaultdict(set)
    for decisions in range(25):
        runs = []
        for tracker in trackers:
            locations.clear()
            tracker.begin(sys._getframe())
            program.run(decisions)
            runs.append(list(locations))
        assert runs[0] == runs[1]
        assert len(set(runs[0])) == len(runs[0]), program.source
        for before, after in itertools.pairwise(runs[0]):
            callers_of[after].add(before)
    list(graphlib.TopologicalSorter(callers_of).static_order())    # raises CycleError


def test_equal_code_compiled_anew_shares_its_locations(tracker):
    source = "def step(op):\n    for _ in range(2): op()"
    first = locate_ops(tracker, define(source, "a.py")["step"])
    assert locate_ops(tracker, define(source, "a.py")["step"]) == first
    assert locate_ops(tracker, define(source, "b.py")["step"]) != first


def test_code_compiled_anew_is_not_kept_alive(tracker):
    source = "def step(op): op()"
    canonical = define(source, "fresh.py")["step"]
    locate_ops(tracker, canonical)
    again = define(source, "fresh.py")["step"]
    locate_ops(tracker, again)
    code = weakref.ref(again.__code__)
    del again
    gc.collect()
    assert code() is None


def test_new_code_is_not_taken_for_dead_code_at_its_address(tracker):
    addresses = []
    gc.freeze()                                      # what was there before is not looked at
    try:
        for line in [*range(1, 30), *range(1, 30)]:  # code is let go once its equal is known
            step = define("#\n" * line + "def step(op): op()", "reused.py")["step"]
            addresses.append(id(step.__code__))
            (location,) = locate_ops(tracker, step)
            assert location.user_frame().lineno == line + 1
            del step
            gc.collect()
    finally:
        gc.unfreeze()
    assert len(set(addresses)) < len(addresses)


def test_stop_frame_is_let_go_at_the_end(tracker):
    class Local:
        pass

    def step():
        local = Local()
        tracker.begin(sys._getframe())
        return weakref.ref(local)

    local = step()
    assert local() is not None
    tracker.end()
    gc.collect()
    assert local() is None


def test_ids_are_stable_and_distinct(tracker):
    def step(op):
        op()
        op()

    first, second = locate_ops(tracker, step)
    assert first.id != second.id
    again = locate_ops(LocationTracker(), step)
    assert [location.id for location in again] == [first.id, second.id]


def test_op_of_the_stop_frame_itself_gets_unique_locations(tracker):
    tracker.begin(sys._getframe())
    first = tracker.locate(sys._getframe())
    second = tracker.locate(sys._getframe())
    third = tracker.locate(sys._getframe())
    assert len({first, second, third}) == 3
    assert first.levels == ()
    assert first.user_frame().function == "<no Python frame>"
    assert first.library_call() is None


def test_stack_without_the_stop_frame_is_read_to_its_end(tracker):
    def generate():
        while True:
            yield tracker.locate(sys._getframe())

    generator = generate()
    tracker.begin(None)
    locations = [next(generator), next(generator), next(generator)]
    assert len(set(locations)) == 3
    assert len({len(location.levels) for location in locations}) == 1
    functions = [level.code_info.code.co_name for level in locations[0].levels]
    assert functions[-2:] == ["test_stack_without_the_stop_frame_is_read_to_its_end", "generate"]


def test_stacks_with_nothing_in_common_stay_apart(tracker):
    def one():
        return tracker.locate(sys._getframe())

    def other():
        return tracker.locate(sys._getframe())

    def step():
        tracker.begin(sys._getframe())
        return [one(), other(), one(), other()]

    alternating = step()
    assert len(set(alternating)) == 4
    stop_elsewhere = LocationTracker(is_left_out=lambda name: name == __file__)
    library = define("def run(f): return f()", "lib.py")["run"]
    stop_elsewhere.begin(sys._getframe())
    locations = [stop_elsewhere.locate(library(sys._getframe)) for _ in range(2)]
    assert len(set(locations)) == 2


def test_left_out_frames_do_not_count(tracker):
    leaving_out = LocationTracker(is_left_out=lambda name: name == "wrap.py")
    call = define("def call(f, *args): return f(*args)", "wrap.py")["call"]
    (location,) = locate_ops(leaving_out, lambda op: call(call, op))
    assert [level.code_info.code.co_name for level in location.levels] == ["<lambda>"]


def test_step_can_go_on_in_the_middle(tracker):
    def step(op):
        for i in range(4):
            if i == 2 and resume:
                tracker.begin(sys._getframe(1))
                tracker.go_on((location, "") for location in whole[:2])
            op()

    resume = False
    whole = locate_ops(tracker, step)
    resume = True
    assert locate_ops(tracker, step) == whole


# Backward ops. `call_gradient` plays the wrapper of gradient functions and
# `map` plays the tape, which calls it from C.

def call_gradient(gradient_function, op, marker, outer_markers=()):
    gradient_function(lambda: op(marker, outer_markers))


@pytest.fixture
def backward_tracker():
    leave_out = {location_module.__file__}
    return LocationTracker(is_left_out=leave_out.__contains__,
                           gradient_wrapper_code=call_gradient.__code__)


def tanh_gradient(op):
    op()
    op()


def tape_gradient(op, markers):
    collections.deque(map(lambda marker: call_gradient(tanh_gradient, op, marker), markers), 0)


def run_backward(tracker, step):
    """Locate ops that are lambdas of `call_gradient`: their own frame is no level."""
    locations = []
    tracker.begin(sys._getframe())

    def op(marker=None, outer_markers=()):
        frame = sys._getframe(1)
        frame = frame.f_back if marker is not None else frame
        locations.append(tracker.locate(frame, marker, outer_markers))

    step(op)
    tracker.end()
    return locations


def by_marker(locations):
    grouped = collections.defaultdict(list)
    for location in locations:
        grouped[location.forward].append(location)
    return grouped


def test_backward_op_holds_call_site_marker_and_inner_levels(backward_tracker):
    def step(op):
        tape_gradient(op, [7])

    first, second = run_backward(backward_tracker, step)
    assert first.forward == second.forward == 7
    names = [level.code_info and level.code_info.code.co_name for level in first.levels]
    assert names[-5:] == ["step", "tape_gradient", "<lambda>", None, "tanh_gradient"]
    assert first.gradient_call_site is second.gradient_call_site
    assert first.gradient_call_site.path[-1].point.info.code.co_name == "<lambda>"
    assert first.levels[-1].offset < second.levels[-1].offset


def test_order_of_gradient_functions_does_not_matter(backward_tracker):
    def run(order):
        return by_marker(run_backward(backward_tracker, lambda op: step(op, order)))

    def step(op, order):
        tape_gradient(op, order)

    markers = list(range(6))
    expected = run(markers)
    for seed in range(10):
        random.Random(seed).shuffle(markers)
        assert run(markers) == expected
    assert all(level.ordinal == 0 for locations in expected.values()
               for location in locations for level in location.levels)


def test_same_gradient_function_of_different_ops_is_told_apart(backward_tracker):
    locations = run_backward(backward_tracker, lambda op: tape_gradient(op, [3, 2, 1]))
    assert len(set(locations)) == 6


@pytest.mark.parametrize("markers", [[3], [3, 2, 1]])
def test_gradient_asked_for_again_in_a_loop_counts_an_iteration(markers, backward_tracker):
    def step(op):
        for _ in range(3):
            tape_gradient(op, markers)

    locations = run_backward(backward_tracker, step)
    assert len(set(locations)) == len(locations) == 6 * len(markers)
    step_levels = [next(level for level in location.levels if level.counters)
                   for location in locations]
    assert [level.counters for level in step_levels] == [
        (i,) for i in range(3) for _ in range(2 * len(markers))]


def test_gradient_asked_for_again_from_c_is_told_apart(backward_tracker):
    def step(op):
        list(map(lambda _: tape_gradient(op, [2, 1]), range(3)))

    locations = run_backward(backward_tracker, step)
    assert len(set(locations)) == 12
    assert run_backward(backward_tracker, step) == locations


def test_forward_ops_between_and_after_gradient_functions_are_unique(backward_tracker):
    def step(op):
        for _ in range(2):
            op()
            collections.deque(map(lambda m: call_gradient(tanh_gradient, op, m) or op(), "ab"), 0)
        op()

    locations = run_backward(backward_tracker, step)
    assert len(set(locations)) == len(locations)
    assert [location.forward for location in locations[:4]] == [None, "a", "a", None]
    assert locations[-1].gradient_call_site is None


def test_nested_gradient_functions_have_one_level_each(backward_tracker):
    def outer_gradient(op):
        collections.deque(
            map(lambda m: call_gradient(tanh_gradient, inner_op, m, ("outer",)), "xy"), 0)

    def step(op):
        nonlocal inner_op
        inner_op = op
        call_gradient(outer_gradient, op, "outer")

    inner_op = None
    locations = run_backward(backward_tracker, step)
    assert len(set(locations)) == 4
    assert [location.forward for location in locations] == ["x", "x", "y", "y"]
    assert all(location.gradient_call_site.forward == "outer" for location in locations)


def test_marker_without_its_frame_is_placed_around_all_frames(backward_tracker):
    def step(op):
        tanh_gradient(lambda: op(5))

    first, second = run_backward(backward_tracker, step)
    assert first.forward == 5
    assert first.gradient_call_site.levels == ()
    assert first is not second


def test_unmarked_gradient_function_still_gets_unique_locations(backward_tracker):
    def step(op):
        for _ in range(2):
            call_gradient(lambda op: op(), op, None)

    def unmarked(op):
        step(lambda *_: op())

    locations = run_backward(backward_tracker, unmarked)
    assert len(set(locations)) == 2


def test_description_names_the_forward_op(backward_tracker):
    location = run_backward(backward_tracker, lambda op: tape_gradient(op, [17]))[0]
    assert " > gradient of 17 > " in describe(location)
    assert repr(location).startswith(f"Location({location.id}: ")
