"""`terra_tf.keras`: Keras 3 models whose `fit`, `evaluate` and `predict` are co-executed.

    model.compile("adam", "mse")
    terra.keras.accelerate(model)
    model.fit(x, y)                   # the results of run_eagerly=True

Keras itself is imported when it is needed, not with this package.
"""

from terra_tf.keras.acceleration import accelerate, explain, restore, stats
from terra_tf.keras.blocks import accelerated
from terra_tf.keras.model_explanation import ModelExplanation

__all__ = ["ModelExplanation", "accelerate", "accelerated", "explain", "restore", "stats"]
