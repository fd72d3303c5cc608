"""Programs whose ops are located: run one, or define code as if it stood in some file."""

import sys
import textwrap


def locate_ops(tracker, function, *args):
    """Run a function that gets an `op` to call; return the location of each call."""
    locations = []

    def op(marker=None, outer_markers=()):
        locations.append(tracker.locate(sys._getframe(1), marker, outer_markers))

    tracker.begin(sys._getframe())
    function(op, *args)
    tracker.end()
    return locations


def define(source, filename, **names):
    """Execute source as if it stood in a file."""
    exec(compile(textwrap.dedent(source).lstrip("\n"), filename, "exec"), names)
    return names
