"""Whose code a file is: the user's, a library's, or this package's.

Decided by file name alone. Everything that is not known to be something else
is the user's, so a model library from the package index is too.
"""

import functools
import os
import re

_PACKAGE_DIRECTORY = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
_STANDARD_LIBRARY = os.path.join(os.path.dirname(os.path.abspath(os.__file__)), "")
_INSTALLED = re.compile(r"[/\\](?:site|dist)-packages[/\\]")
_LIBRARY = re.compile(
    r"[/\\](?:site|dist)-packages[/\\](?:tensorflow|keras|tf_keras|numpy|wrapt)[/\\]")
_PROFILING = re.compile(r"[/\\\\]tensorflow[/\\\\]python[/\\\\]profiler[/\\\\]trace\.py$")
_DECORATOR = re.compile(
    r"[/\\](?:traceback_utils|dispatch|deprecation|tf_decorator|contextlib)\.py$")


def is_package_file(filename: str) -> bool:
    """Say whether a file belongs to terra_tf itself."""
    return filename.startswith(_PACKAGE_DIRECTORY)


def is_left_out_of_locations(filename: str) -> bool:
    """Say whether a file's frames are no part of a location.

    Those are this package's, and TensorFlow's profiling wrappers, which call what they wrap from
    another line while a profiler is on: looking at a program must not change where it is.
    """
    return is_package_file(filename) or bool(_PROFILING.search(filename))


@functools.cache
def is_user_file(filename: str) -> bool:
    """Say whether a file is the user's: not of TensorFlow, Keras, NumPy, Python or terra_tf."""
    if is_package_file(filename) or filename.startswith("<frozen ") or _LIBRARY.search(filename):
        return False
    return not filename.startswith(_STANDARD_LIBRARY) or bool(_INSTALLED.search(filename))


def is_decorator_file(filename: str) -> bool:
    """Say whether a library file only wraps functions, so that its names tell nothing."""
    return bool(_DECORATOR.search(filename))
