"""What `terra_tf._native` refuses to load, and that the build agrees with what it checks."""

import importlib.util
import pathlib
import re
import sys

import pytest
import tensorflow as tf

from terra_tf import _native
from terra_tf.errors import NativeLibraryError

ROOT = pathlib.Path(__file__).parents[2]
PYTHON = "{}.{}".format(*sys.version_info)
TRY_REBUILD = (
    "pip install --no-build-isolation --force-reinstall --no-deps . in the source tree,"
    " which builds for what is installed"
)


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Stands in for a built library: returns a function that writes its build info."""
    library, build_info = tmp_path / "_terra_native.so", tmp_path / "_build_info.py"
    monkeypatch.setattr(_native, "_LIBRARY", library)
    monkeypatch.setattr(_native, "_BUILD_INFO", build_info)
    monkeypatch.setattr(_native, "_loaded", None)

    def write(tensorflow=tf.__version__, python=PYTHON):
        library.write_bytes(b"not a library")
        build_info.write_text(f"TENSORFLOW_VERSION = {tensorflow!r}\nPYTHON_VERSION = {python!r}\n")
        return library

    return write


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    def fail(path):
        pytest.fail(f"{path} was loaded in spite of its version")

    monkeypatch.setattr(tf, "load_op_library", fail)


def load_error():
    with pytest.raises(ImportError) as caught:
        _native.load()
    assert isinstance(caught.value, NativeLibraryError)
    return str(caught.value)


def test_missing_library_is_named(tmp_path, build, nothing_is_loaded):
    assert load_error() == (
        f"the native library is not built: {tmp_path / '_terra_native.so'} does not exist"
        " [TERRA-NATIVE-MISSING]\n"
        "  Why: terra_tf runs from a source tree, or its installation was interrupted.\n"
        f"  Try: 1) {TRY_REBUILD}"
    )


def test_missing_build_info_is_named(tmp_path, build, nothing_is_loaded):
    build()
    (tmp_path / "_build_info.py").unlink()
    assert f"{tmp_path / '_build_info.py'} does not exist [TERRA-NATIVE-MISSING]" in load_error()


def test_other_tensorflow_minor_is_refused_before_loading(build, nothing_is_loaded, monkeypatch):
    build(tensorflow="2.21.0")
    monkeypatch.setattr(tf, "__version__", "2.22.1")
    assert load_error() == (
        "TensorFlow 2.22.1 is installed; terra_tf was built for 2.21.0 and needs"
        " tensorflow>=2.21,<2.22 [TERRA-NATIVE-TENSORFLOW]\n"
        "  Why: it binds to C++ interfaces that differ from one TensorFlow minor to the next.\n"
        f'  Try: 1) pip install "tensorflow>=2.21,<2.22" 2) {TRY_REBUILD}'
    )


def test_other_tensorflow_patch_is_refused_before_loading(build, nothing_is_loaded, monkeypatch):
    build(tensorflow="2.21.0")
    monkeypatch.setattr(tf, "__version__", "2.21.1")
    assert load_error() == (
        "TensorFlow 2.21.1 is installed; terra_tf was built for 2.21.0 [TERRA-NATIVE-TENSORFLOW]\n"
        "  Why: it binds to C++ interfaces that TensorFlow does not keep stable.\n"
        f"  Try: 1) {TRY_REBUILD}"
    )


def test_other_python_is_refused_before_loading(build, nothing_is_loaded):
    build(python="3.9")
    assert load_error() == (
        f"this is Python {PYTHON}; terra_tf was built for 3.9 [TERRA-NATIVE-PYTHON]\n"
        "  Why: an extension module fits one Python version.\n"
        f"  Try: 1) {TRY_REBUILD}"
    )


def test_library_that_tensorflow_cannot_load_is_refused(build):
    library = build()
    message = load_error()
    assert message.startswith(f"{library} cannot be loaded: ")
    assert "[TERRA-NATIVE-LOAD]\n  Why: TensorFlow's libraries have another build than" in message
    assert message.endswith(f"\n  Try: 1) {TRY_REBUILD}")


def test_failed_load_is_tried_again(build, nothing_is_loaded):
    assert "TERRA-NATIVE-MISSING" in load_error()
    build(python="3.9")
    assert "TERRA-NATIVE-PYTHON" in load_error()


def test_built_library_is_loaded_once():
    first = _native.load()
    assert _native.load() is first
    assert sys.modules["terra_tf._terra_native"] is first.module
    assert pathlib.Path(first.module.__file__) == pathlib.Path(_native._LIBRARY)
    assert any(name.startswith("terra_") for name in dir(first.op_library))


@pytest.fixture(scope="module")
def setup_script():
    spec = importlib.util.spec_from_file_location("terra_tf_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_build_defines_what_tensorflow_was_compiled_with(setup_script):
    official = {flag for flag in tf.sysconfig.get_compile_flags() if flag.startswith("-D")}
    assert official <= set(setup_script.TENSORFLOW_DEFINES)


def test_build_finds_the_tensorflow_that_is_imported(setup_script):
    found = setup_script.TensorFlow.find()
    assert found.version == tf.__version__
    assert found.home == pathlib.Path(tf.__file__).parent


def test_pin_is_the_same_everywhere(setup_script):
    assert setup_script.TENSORFLOW_PIN == _native.TENSORFLOW_PIN
    makefile_pins = re.findall(r'"\$\(TERRA_TF_PACKAGE\)(.+)"', (ROOT / "Makefile").read_text())
    assert makefile_pins == [_native.TENSORFLOW_PIN]


def stop_message(action):
    with pytest.raises(SystemExit) as caught:
        action()
    return str(caught.value)


def test_missing_compiler_stops_the_build_with_advice(setup_script, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    assert stop_message(setup_script.find_compiler) == (
        "the C++ compiler 'no-such-compiler -m64' was not found [TERRA-BUILD]\n"
        "  Why: terra_tf has a native part that is compiled where it is installed.\n"
        "  Try: 1) install g++ 9 or later (Debian: apt-get install g++),"
        " or set CXX to your compiler."
    )


def test_missing_tensorflow_stops_the_build_with_advice(setup_script, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("TERRA_TF_PACKAGE", "tensorflow-cpu")
    assert stop_message(setup_script.TensorFlow.find) == (
        f"no TensorFlow is installed for {sys.executable} [TERRA-BUILD]\n"
        "  Why: the native library is compiled against TensorFlow's headers and libraries.\n"
        '  Try: 1) pip install "tensorflow-cpu>=2.21,<2.22" pybind11, then build again.'
    )


def test_other_tensorflow_stops_the_build_with_advice(setup_script, monkeypatch):
    monkeypatch.delenv("TERRA_TF_PACKAGE", raising=False)
    monkeypatch.setattr(setup_script, "installed_tensorflow_version", lambda path: "2.20.0")
    message = stop_message(setup_script.TensorFlow.find)
    assert message.startswith("TensorFlow 2.20.0 is installed in ")
    assert 'Try: 1) pip install "tensorflow>=2.21,<2.22", then build again.' in message


def test_unknown_sanitizer_stops_the_build_with_advice(setup_script, monkeypatch):
    monkeypatch.setenv("TERRA_SANITIZE", "memory")
    assert stop_message(setup_script.optimization_flags) == (
        "TERRA_SANITIZE is 'memory' [TERRA-BUILD]\n"
        "  Why: the known sanitizers are thread and address.\n"
        "  Try: 1) set it to one of them, or unset it."
    )


def test_depfile_names_are_read_with_their_spaces(setup_script, tmp_path):
    depfile = tmp_path / "a.d"
    depfile.write_text("out/a.o: /src/a.cc \\\n  /src/my\\ dir/b.h \\\n /src/c.h\n")
    names = [str(path) for path in setup_script.read_dependencies(depfile)]
    assert names == ["/src/a.cc", "/src/my dir/b.h", "/src/c.h"]


def test_output_is_stale_when_an_input_is_newer_or_gone(setup_script, tmp_path):
    source, output = tmp_path / "a.cc", tmp_path / "a.o"
    source.touch()
    assert not setup_script.is_up_to_date(output, [source])
    output.touch()
    assert setup_script.is_up_to_date(output, [source])
    later_ns = output.stat().st_mtime_ns + 1_000_000_000
    setup_script.os.utime(source, ns=(later_ns, later_ns))
    assert not setup_script.is_up_to_date(output, [source])
    assert not setup_script.is_up_to_date(output, [tmp_path / "gone.h"])
