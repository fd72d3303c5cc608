"""The process that measures one program: `python -m benchmarks.worker SPEC FILE_DESCRIPTOR`.

It is started by `benchmarks.supervisor`. Events go out through the file descriptor, a line of JSON
each; what TensorFlow prints goes to the usual streams and is no part of the protocol.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import tensorflow as tf

from benchmarks.measuring import Spec, measure


def main(spec_text: str, file_descriptor: str) -> None:
    """Measure what the JSON text of a `Spec` says."""
    settings = json.loads(spec_text)
    spec = Spec(**{**settings, "modes": tuple(settings["modes"])})
    tf.get_logger().setLevel("ERROR")
    with os.fdopen(int(file_descriptor), "w", encoding="utf-8") as pipe:

        def emit(event: dict[str, Any]) -> None:
            pipe.write(json.dumps(event) + "\n")
            pipe.flush()

        measure(spec, emit)
        emit({"event": "done"})


if __name__ == "__main__":
    main(*sys.argv[1:])
