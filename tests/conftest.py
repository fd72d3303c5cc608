"""What every test has: a quiet TensorFlow on the CPU.

Set before TensorFlow and this package are imported, which read them once; a run that wants a GPU or
TensorFlow's log sets them itself. The time limit of each test is in pyproject.toml.
"""

import functools
import gc
import inspect
import os
import signal
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# Hundreds of programs in one process: what they do must not depend on how long the others took.
os.environ.setdefault("TERRA_WEIGH_COSTS", "0")
# A broken TraceGraph or plan is seen where it is made, not only by what it does.
os.environ.setdefault("TERRA_VERIFY", "1")


def pytest_collection_finish():
    """What was imported by now is not looked at again by every garbage collection."""
    gc.collect()
    gc.freeze()


def pytest_sessionstart(session):
    """Ctrl-C is one of what is tested, also where a shell in the background ignores it.

    A process of pytest-xdist says on stderr where a test hung; its stdout leads nowhere."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(session.config, "workerinput"):
        session.config.get_terminal_writer()._file = sys.__stderr__


@pytest.fixture(autouse=True, scope="module")
def _other_modules_are_left_alone():
    """Nor is what tests of other modules have left: late in a session that is millions of objects,
    and a collection, of which some tests make hundreds, takes seconds instead of milliseconds."""
    gc.collect()
    gc.freeze()


@functools.cache
def _makes_datasets(module):
    return "data.Dataset" in inspect.getsource(module)


@pytest.fixture(autouse=True)
def _iterators_end_young(request):
    """Iterators over datasets are not left to be collected in the middle of another test.

    Destroying one waits for the thread that tunes its dataset, and that sleeps for ever longer, up
    to a minute (`OptimizeLoop` in tensorflow/core/framework/model.cc).
    """
    yield
    if _makes_datasets(request.module):
        gc.collect()
