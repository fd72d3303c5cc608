"""What a program's operator may see as it happens, by the knob `log` (`TERRA_LOGS`).

    TERRA_LOGS=phases,fallbacks,graphs python train.py

    phases     a function goes from tracing to co-execution, gives up, tries again; and why
    fallbacks  a step, or the rest of it, runs outside of the graph: reason and source line
    graphs     a graph was built, and its size

And of each step with a graph, line by line, to find out what a program does and why:

    cursor     each op: what it was matched with or why not, which switch-cases were decided or
               skipped, what was fed; and why the step left its graph
    replay     each call of a library or pure function: replayed, learned, or why not
    commits    each epoch, and the step: committed, done, begun

The native half says these, and keeps them until Python may run: behind the op or the call, and
before Python waits for the graph.

Everything goes through `logging.getLogger("terra_tf")` at level INFO; if nobody has configured
logging, to standard error.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from terra_tf.config import KNOBS, config, split_list

CATEGORIES = KNOBS["log"].choices

_logger = logging.getLogger("terra_tf")


def lights(names: Sequence[str]) -> int:
    """Returns which of these categories are asked for, as bits; the first is bit 0."""
    asked = split_list(config.log)
    return sum(1 << bit for bit, name in enumerate(names) if name in asked)


def emit(category: str, message: str, *args: object) -> None:
    """Logs a message if its category is asked for."""
    if not config.log or category not in split_list(config.log):
        return
    if not _logger.hasHandlers():
        _logger.addHandler(logging.StreamHandler())
    if _logger.getEffectiveLevel() > logging.INFO:
        _logger.setLevel(logging.INFO)
    _logger.info(message, *args)
