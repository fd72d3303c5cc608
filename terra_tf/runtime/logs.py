"""What a program's operator may see as it happens, by the knob `log` (`TERRA_LOGS`).

    TERRA_LOGS=phases,fallbacks,graphs python train.py

Everything goes through `logging.getLogger("terra_tf")` at level INFO; if nobody has configured
logging, to standard error.
"""

from __future__ import annotations

import logging

from terra_tf.config import config

CATEGORIES = ("phases", "fallbacks", "graphs")

_logger = logging.getLogger("terra_tf")


def emit(category: str, message: str, *args: object) -> None:
    """Logs a message if its category is asked for."""
    if category not in config.log:
        return
    if not _logger.hasHandlers():
        _logger.addHandler(logging.StreamHandler())
    if _logger.getEffectiveLevel() > logging.INFO:
        _logger.setLevel(logging.INFO)
    _logger.info(message, *args)
