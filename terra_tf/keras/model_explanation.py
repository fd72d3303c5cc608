"""What `terra_tf.keras.explain` returns: what happened to the functions of a model."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping
from typing import Any

from terra_tf.runtime.explanation import Explanation


@dataclasses.dataclass(frozen=True)
class ModelExplanation:
    """A report for a person: `print(terra.keras.explain(model))`.

    Attributes:
      model: The model's name.
      steps: "train", "test" or "predict" -> what happened to that step.
      eager: The same -> why that one runs eagerly, by Keras' own function.
      layers: "name (class)" of a layer whose Python runs in each batch -> why. The calls in it are
        replayed where they can be. The model is among them if something in it is.
    """

    model: str
    steps: Mapping[str, Explanation]
    eager: Mapping[str, str]
    layers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{kind}: runs eagerly, for {why}" for kind, why in self.eager.items()]
        parts += [f"{kind}: {step}" for kind, step in self.steps.items() if kind not in self.eager]
        layers = [f"  {layer}: {why}" for layer, why in self.layers.items()]
        if layers:
            layers.insert(0, "Layers whose Python runs in each batch:")
        return "\n".join([f"Model {self.model}", *layers, *(parts or ["nothing has run yet"])])

    def _repr_html_(self) -> str:
        eager = "".join(
            f"<p>{kind}: runs eagerly, for {why}</p>" for kind, why in self.eager.items()
        )
        steps = "".join(
            f"<h3>{kind}</h3>{step._repr_html_()}"
            for kind, step in self.steps.items()
            if kind not in self.eager
        )
        layers = "".join(
            f"<li>{html.escape(layer)}: {html.escape(why)}</li>"
            for layer, why in self.layers.items()
        )
        if layers:
            layers = f"<p>Layers whose Python runs in each batch:</p><ul>{layers}</ul>"
        return f"<h2>Model {self.model}</h2>{layers}{eager}{steps}"

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return {
            "model": self.model,
            "steps": {kind: step.to_dict() for kind, step in self.steps.items()},
            "eager": dict(self.eager),
            "layers": dict(self.layers),
        }
