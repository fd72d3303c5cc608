"""The process's stance: whether steps may co-execute, and whether they may leave the graph.

    set_stance("imperative")                 from now on, no step is traced or co-executed
    with set_stance("fail_on_divergence"):   a step that leaves its graph raises
        train_step(x)
"""

from __future__ import annotations

import difflib

from terra_tf.errors import ConfigError, format_message

STANCES = ("co_execute", "imperative", "fail_on_divergence")

_current = "co_execute"


def current() -> str:
    """Returns the stance in force."""
    return _current


class set_stance:  # noqa: N801 - reads as a function, and is a context manager too
    """Sets the stance, at once; as a context manager, until the block ends.

    Args:
      stance: "co_execute", "imperative" or "fail_on_divergence".

    Raises:
      ConfigError: There is no such stance.
    """

    def __init__(self, stance: str) -> None:
        global _current
        if stance not in STANCES:
            close = difflib.get_close_matches(str(stance), STANCES)
            suggestions = [f'use "{name}"' for name in close or STANCES]
            raise ConfigError(
                format_message(
                    f"no stance is called {stance!r}",
                    "TERRA-STANCE",
                    why=f"the stances are {', '.join(STANCES)}.",
                    suggestions=suggestions,
                )
            )
        self._before = _current
        _current = stance

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc_info: object) -> None:
        global _current
        _current = self._before
