"""User frames and library calls of locations. Code is compiled under the libraries' file names."""

import collections

import pytest

from tests.unit.locating import define, locate_ops
from tests.unit.pure_import import import_pure

location_module = import_pure("trace.location")
describe = location_module.describe
LocationTracker = location_module.LocationTracker

_SITE_PACKAGES = "/venv/lib/python3/site-packages"
MATH_OPS = f"{_SITE_PACKAGES}/tensorflow/python/ops/math_ops.py"
DISPATCH = f"{_SITE_PACKAGES}/tensorflow/python/util/dispatch.py"
LAYER = f"{_SITE_PACKAGES}/keras/src/layers/layer.py"


@pytest.fixture
def tracker():
    return LocationTracker()


@pytest.fixture
def matmul():
    kernel = define("def mat_mul(op): op()", MATH_OPS)["mat_mul"]
    public = define("def matmul(op):\n    mat_mul(op)\n    mat_mul(op)", MATH_OPS, mat_mul=kernel)
    dispatched = define("def op_dispatch_handler(op): matmul(op)", DISPATCH, **public)
    return dispatched["op_dispatch_handler"]


@pytest.fixture
def layer_class():
    return define("""
        class Layer:
            def __call__(self, op):
                self.call(op)
                before = op()
        """, LAYER)["Layer"]


def test_user_frame_is_the_innermost_line_of_the_user(tracker, matmul):
    step = define("def step(op):\n\n    matmul(op)", "/project/train.py", matmul=matmul)["step"]
    location = locate_ops(tracker, step)[0]
    assert location.user_frame() == ("/project/train.py", 3, "step")


def test_user_frame_falls_back_to_the_innermost_line():
    reader = LocationTracker(is_left_out=lambda name: not name.startswith(_SITE_PACKAGES))
    run = define("def run(op):\n    op()", MATH_OPS)["run"]
    (location,) = locate_ops(reader, run)
    assert location.user_frame() == (MATH_OPS, 2, "run")
    assert location.library_call().depth == 0
    assert describe(location) == "math_ops.py:2 in run"


@pytest.mark.parametrize("filename, is_user", [
    ("/project/train.py", True),
    ("/project/tensorflow/keras/train.py", True),
    ("<stdin>", True),
    (f"{_SITE_PACKAGES}/transformers/gpt.py", True),
    (f"{_SITE_PACKAGES}/tensorflow/python/ops/math_ops.py", False),
    (f"{_SITE_PACKAGES}/keras/src/layers/layer.py", False),
    (f"{_SITE_PACKAGES}/numpy/core/numeric.py", False),
    ("<frozen importlib._bootstrap>", False),
    (collections.__file__, False),
    (location_module.__file__, False),
])
def test_user_files_are_told_from_library_files(filename, is_user):
    assert import_pure("trace.code_origin").is_user_file(filename) is is_user


def test_ops_of_one_library_call_share_its_call_site(tracker, matmul):
    step = define("""
        def step(op):
            for _ in range(2):
                matmul(op)
            matmul(op)
        """, "/project/train.py", matmul=matmul)["step"]
    calls = [location.library_call() for location in locate_ops(tracker, step)]
    assert len(calls) == 6
    assert calls[0] == calls[1] and calls[2] == calls[3] and calls[4] == calls[5]
    assert len({call.call_site for call in calls}) == 3


def test_library_call_is_named_by_the_function_inside_its_decorators(tracker, matmul):
    step = define("def step(op): matmul(op)", "/project/train.py", matmul=matmul)["step"]
    location = locate_ops(tracker, step)[0]
    call = location.library_call()
    assert call.qualname == "matmul"
    assert call.call_site.levels == location.levels[:call.depth]
    assert location.levels[call.depth].code_info.filename == DISPATCH


def test_library_call_in_a_callback_of_the_user_is_a_call_of_its_own(tracker, layer_class, matmul):
    names = define("""
        class Dense(Layer):
            def call(self, op):
                matmul(op)
        def step(op):
            Dense()(op)
        """, "/project/model.py", Layer=layer_class, matmul=matmul)
    in_matmul, _, in_layer = locate_ops(tracker, names["step"])
    assert in_matmul.user_frame().function == "call"
    assert in_matmul.library_call().qualname == "matmul"
    assert in_layer.user_frame().function == "step"
    assert in_layer.library_call().qualname.endswith("__call__")
    assert in_layer.library_call().depth < in_matmul.library_call().depth


def test_op_of_the_users_own_frame_is_in_no_library_call(tracker):
    (location,) = locate_ops(tracker, lambda op: op())
    assert location.library_call() is None


def test_description_shows_the_users_frames_and_iterations(tracker, matmul):
    names = define("""
        def call(op):
            for _ in range(2):
                matmul(op)
        def step(op):
            list(map(lambda _: op(), range(2)))
            call(op)
        """, "/project/train.py", matmul=matmul)
    texts = [describe(location) for location in locate_ops(tracker, names["step"])]
    assert texts[1] == "train.py:5 in step > train.py:5 in <lambda> [repeat 1]"
    assert texts[-1] == "train.py:6 in step > train.py:3 in call [loop 1]"
