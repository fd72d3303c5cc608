"""The benchmark survives what its workers do: hang, crash, raise, or run when Ctrl-C comes.

The workers here are small scripts that speak the protocol and need no TensorFlow.
"""

import os
import signal
import sys
import threading

from benchmarks.supervisor import Supervisor

# A worker whose modes are named after what they do in their second step.
WORKER = """
import json, os, signal, sys, time
spec, pipe = json.loads(sys.argv[1]), os.fdopen(int(sys.argv[2]), "w")

def emit(**event):
    pipe.write(json.dumps(event) + "\\n")
    pipe.flush()

def step(mode, phase):
    emit(event="begin", mode=mode, phase=phase)
    emit(event="step", mode=mode, phase=phase, seconds=0.5, loss=1.0, counters={"changes": 0})

for mode in spec["modes"]:
    step(mode, "check")
    emit(event="begin", mode=mode, phase="check")
    if mode == "hangs":
        time.sleep(600)
    if mode == "crashes":
        print("last words", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if mode == "raises":
        emit(event="failed", mode=mode, status="error", error="ValueError: no")
        continue
    step(mode, "timed")
emit(event="done")
if "lingers" in spec["modes"]:
    time.sleep(600)
"""


def make_supervisor(timeout_s=20.0, **arguments):
    def make_command(text, pipe):
        return [sys.executable, "-c", WORKER, text, str(pipe)]

    return Supervisor(timeout_s, make_command=make_command, **arguments)


def measure(supervisor, *modes):
    return supervisor.measure({"program": "gpt2", "size": "tiny", "modes": list(modes)})


def describe(measurements):
    return [(each.mode, each.status, len(each.timed)) for each in measurements]


def test_all_modes_are_measured_in_order():
    found = measure(make_supervisor(), "eager", "terra")
    assert describe(found) == [("eager", "ok", 1), ("terra", "ok", 1)]
    assert (found[0].program, found[0].size) == ("gpt2", "tiny")


def test_mode_that_raises_is_a_row():
    found = measure(make_supervisor(), "eager", "raises", "terra")
    assert describe(found) == [("eager", "ok", 1), ("raises", "error", 0), ("terra", "ok", 1)]
    assert found[1].error == "ValueError: no"


def test_mode_that_hangs_is_killed_and_the_others_are_measured():
    found = measure(make_supervisor(timeout_s=1.5), "eager", "hangs", "terra")
    assert describe(found) == [("eager", "ok", 1), ("hangs", "timeout", 0), ("terra", "ok", 1)]
    assert found[1].error == "a step took more than 1.5 s and was killed"


def test_mode_that_crashes_its_process_is_named_with_signal_and_last_words():
    found = measure(make_supervisor(), "eager", "crashes", "terra")
    assert describe(found) == [("eager", "ok", 1), ("crashes", "error", 0), ("terra", "ok", 1)]
    assert found[1].error == "the process died (SIGSEGV): last words"


def test_worker_that_dies_in_eager_leaves_one_row():
    def make_command(text, pipe):
        return [sys.executable, "-c", "raise SystemExit('no such thing')", text, str(pipe)]

    found = measure(Supervisor(20.0, make_command=make_command), "eager", "terra")
    assert describe(found) == [("eager", "error", 0)]
    assert found[0].error == "the process died (exit status 1): no such thing"


def test_worker_that_does_not_end_after_it_is_done_is_not_waited_for():
    found = measure(make_supervisor(timeout_s=1.5), "eager", "lingers")
    assert describe(found) == [("eager", "ok", 1), ("lingers", "ok", 1)]


def test_interruption_keeps_what_was_told_and_stops_the_worker():
    seen = []

    def interrupt_at_hang(event):
        seen.append(event)
        if seen.count({"event": "begin", "mode": "hangs", "phase": "check"}) == 2:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    supervisor = make_supervisor(timeout_s=60.0, watch=interrupt_at_hang)
    found = measure(supervisor, "eager", "hangs", "terra")
    assert supervisor.is_interrupted
    assert describe(found) == [("eager", "ok", 1), ("hangs", "ok", 0)]
