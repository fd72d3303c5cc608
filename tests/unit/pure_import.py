"""Import modules of terra_tf that need no TensorFlow, where there may be none.

`terra_tf/__init__.py` imports TensorFlow. Without it, an empty package stands
in for `terra_tf`, with the same path: what is imported below it is the real
source under its real name.
"""

import importlib
import importlib.util
import pathlib
import sys
import types

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def import_pure(name: str) -> types.ModuleType:
    """Import `terra_tf.<name>`, which must be importable without TensorFlow."""
    if "terra_tf" not in sys.modules and not _is_importable():
        _stand_in("terra_tf")
        _stand_in("terra_tf.trace")
    return importlib.import_module(f"terra_tf.{name}")


def _is_importable() -> bool:
    return bool(importlib.util.find_spec("tensorflow") and importlib.util.find_spec("terra_tf"))


def _stand_in(package: str) -> None:
    module = types.ModuleType(package)
    module.__path__ = [str(_ROOT.joinpath(*package.split(".")))]
    sys.modules[package] = module
