"""Training programs written as users write them: eager TensorFlow, with no thought of terra.

Each module has `make(wrap, **sizes) -> Program`; `wrap` is the decorator under test (the identity,
`tf.function`, `terra.function`). `make` seeds every source of randomness, so two programs made one
after the other with different decorators start from the same state:

    program = PROGRAMS["mlp"](terra.function, depth=2, width=8, batch=4)
    losses = [float(program.step(i)) for i in range(5)]
"""

from collections.abc import Callable

from benchmarks.programs import (
    cnn,
    gpt,
    keras_cnn,
    keras_mlp,
    mlp,
    pinn,
    small_parts,
    transformer_block,
    varying_lengths,
)
from benchmarks.programs.program import Program

PROGRAMS: dict[str, Callable[..., Program]] = {
    "mlp": mlp.make,
    "gpt": gpt.make,
    "keras_mlp": keras_mlp.make,
    "keras_cnn": keras_cnn.make,
    "cnn": cnn.make,
    "pinn": pinn.make,
    "small_parts": small_parts.make,
    "transformer_block": transformer_block.make,
    "varying_lengths": varying_lengths.make,
}

__all__ = ["PROGRAMS", "Program"]
