"""Which programs are written: a profile has a generator and a default size.

A seed gives the same program of a profile each time.
"""

from collections.abc import Callable, Sequence

from tests.fuzz import (
    aliasing_generator,
    functions_generator,
    generator,
    gradients_generator,
    interrupted_generator,
    keras_generator,
    loop_generator,
    shapes_generator,
    structure_generator,
    tree,
)

PROFILES: dict[str, tuple[Callable, Sequence[int]]] = {
    "plain": (generator.Writer, generator.SIZES),
    "loops": (loop_generator.LoopWriter, loop_generator.SIZES),
    "aliasing": (aliasing_generator.AliasingWriter, aliasing_generator.SIZES),
    "structure": (structure_generator.StructureWriter, structure_generator.SIZES),
    "functions": (functions_generator.FunctionsWriter, functions_generator.SIZES),
    "shapes": (shapes_generator.ShapesWriter, shapes_generator.SIZES),
    "gradients": (gradients_generator.GradientsWriter, gradients_generator.SIZES),
    "interrupts": (interrupted_generator.InterruptedWriter, interrupted_generator.SIZES),
    "keras": (keras_generator.KerasWriter, keras_generator.SIZES),
}


def generate(seed: int, profile: str, sizes: Sequence[int] = ()) -> tree.Program:
    """Return a profile's program of a seed; `sizes` are as of `generator.Writer`."""
    writer, default_sizes = PROFILES[profile]
    return writer(seed, sizes or default_sizes).program()
