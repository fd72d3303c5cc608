"""What a step's session raises of its own, with the whole message."""

from __future__ import annotations

from terra_tf.errors import DivergenceError, ImpureError, InternalError, Reason, format_message


def divergence(reason: Reason, detail: str, where: str) -> DivergenceError:
    """A step has left its graph, and the stance does not allow that."""
    return DivergenceError(
        format_message(
            f"a step left the graph: {detail or reason}",
            "TERRA-DIVERGED",
            where=where,
            why=reason.explanation,
            suggestions=['terra_tf.set_stance("co_execute") lets such a step run on'],
        )
    )


def lost_tensor(node: int, output: int) -> InternalError:
    """A tensor that Python reads will never have a value."""
    return InternalError(
        format_message(
            f"output {output} of op {node} is read, and nobody will ever set it",
            "TERRA-LOST-TENSOR",
            why="a step was committed while a tensor of it was referenced unseen.",
            suggestions=["please report this, with the program"],
        )
    )


def impure(name: str, difference: str, where: str) -> ImpureError:
    """A function declared pure has done something else than in a call that looked the same."""
    return ImpureError(
        format_message(
            f"{name}, declared by terra_tf.pure, does not do the same again: {difference}",
            "TERRA-IMPURE",
            where=where,
            why="A pure function depends on nothing but its arguments and variables.",
            suggestions=("hand what it depends on over as an argument", "no terra_tf.pure"),
        )
    )
