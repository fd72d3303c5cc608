"""Finds the native library, checks that it fits, and loads it once.

`_terra_native.so` is two things in one file: a TensorFlow op library, which
`tf.load_op_library` must load first so that the ops are registered, and a Python
extension module, imported from the same path afterwards. It uses C++ interfaces that
TensorFlow does not keep stable, so a version that differs is refused before anything is
loaded: loading it could crash the process.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import pathlib
import runpy
import sys
import threading
import types
from typing import Any, NamedTuple

import tensorflow as tf

from terra_tf.errors import NativeLibraryError, format_message

TENSORFLOW_PIN = ">=2.21,<2.22"
REBUILD_COMMAND = "pip install --no-build-isolation --force-reinstall --no-deps ."

_MODULE_NAME = "terra_tf._terra_native"
_LIBRARY = pathlib.Path(__file__).with_name("_terra_native.so")
_BUILD_INFO = pathlib.Path(__file__).with_name("_build_info.py")

_lock = threading.Lock()
_loaded: NativeLibrary | None = None


class NativeLibrary(NamedTuple):
    """The two faces of the library."""

    module: types.ModuleType
    op_library: Any


def load() -> NativeLibrary:
    """Returns the native library, loaded at the first call; any thread may call it.

    Raises:
      NativeLibraryError: An ImportError; if the library is missing, was built for
        another TensorFlow or Python, or cannot be loaded.
    """
    global _loaded
    if _loaded is not None:  # no lock: an interrupted thread may have kept it
        return _loaded
    with _lock:
        if _loaded is None:
            _check_versions(_find_build_info())
            op_library = _load_ops()  # Before the module: its ops must be registered by then.
            _loaded = NativeLibrary(_import_module(), op_library)
        return _loaded


def _find_build_info() -> dict[str, str]:
    for path in (_LIBRARY, _BUILD_INFO):
        if not path.exists():
            raise _refuse(
                f"the native library is not built: {path} does not exist",
                "TERRA-NATIVE-MISSING",
                why="terra_tf runs from a source tree, or its installation was interrupted.",
            )
    return runpy.run_path(str(_BUILD_INFO))


def _check_versions(build_info: dict[str, str]) -> None:
    built_for, running = build_info["TENSORFLOW_VERSION"], tf.__version__
    if not _is_pinned(running):
        raise _refuse(
            f"TensorFlow {running} is installed; terra_tf was built for {built_for} and needs"
            f" tensorflow{TENSORFLOW_PIN}",
            "TERRA-NATIVE-TENSORFLOW",
            why="it binds to C++ interfaces that differ from one TensorFlow minor to the next.",
            first=f'pip install "tensorflow{TENSORFLOW_PIN}"',
        )
    if built_for != running:
        raise _refuse(
            f"TensorFlow {running} is installed; terra_tf was built for {built_for}",
            "TERRA-NATIVE-TENSORFLOW",
            why="it binds to C++ interfaces that TensorFlow does not keep stable.",
        )
    python = "{}.{}".format(*sys.version_info)
    if build_info["PYTHON_VERSION"] != python:
        raise _refuse(
            f"this is Python {python}; terra_tf was built for {build_info['PYTHON_VERSION']}",
            "TERRA-NATIVE-PYTHON",
            why="an extension module fits one Python version.",
        )


def _is_pinned(version: str) -> bool:
    return version.split(".")[:2] == ["2", "21"]


def _load_ops() -> Any:
    try:
        return tf.load_op_library(str(_LIBRARY))
    except (tf.errors.OpError, OSError) as error:
        raise _refuse(
            f"{_LIBRARY} cannot be loaded: {error}",
            "TERRA-NATIVE-LOAD",
            why="TensorFlow's libraries have another build than those it was linked against.",
        ) from error


def _import_module() -> types.ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(_MODULE_NAME, str(_LIBRARY))
    spec = importlib.util.spec_from_file_location(_MODULE_NAME, _LIBRARY, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[_MODULE_NAME] = module
    return module


def _refuse(what: str, code: str, *, why: str, first: str | None = None) -> NativeLibraryError:
    rebuild = f"{REBUILD_COMMAND} in the source tree, which builds for what is installed"
    suggestions = [rebuild] if first is None else [first, rebuild]
    return NativeLibraryError(format_message(what, code, why=why, suggestions=suggestions))
