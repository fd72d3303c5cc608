"""What a program's operator may see as it happens, by the knob `log` (`TERRA_LOGS`).

    TERRA_LOGS=phases,fallbacks,graphs python train.py

    phases     a function goes from tracing to co-execution, gives up, tries again; and why
    fallbacks  a step, or the rest of it, runs outside of the graph: reason and source line
    graphs     a graph was built, and its size

Everything goes through `logging.getLogger("terra_tf")` at level INFO; if nobody has configured
logging, to standard error.
"""

from __future__ import annotations

import logging

from terra_tf.config import KNOBS, config, split_list

CATEGORIES = KNOBS["log"].choices

_logger = logging.getLogger("terra_tf")


def emit(category: str, message: str, *args: object) -> None:
    """Logs a message if its category is asked for."""
    if not config.log or category not in split_list(config.log):
        return
    if not _logger.hasHandlers():
        _logger.addHandler(logging.StreamHandler())
    if _logger.getEffectiveLevel() > logging.INFO:
        _logger.setLevel(logging.INFO)
    _logger.info(message, *args)
