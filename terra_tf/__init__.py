"""terra_tf runs imperative TensorFlow programs by imperative-symbolic co-execution.

    import terra_tf as terra

    @terra.function
    def train_step(x, y): ...     # plain eager TensorFlow, any Python
"""

from terra_tf import keras, tensorboard
from terra_tf.config import config
from terra_tf.errors import (
    ConfigError,
    DivergenceError,
    ImperativeReason,
    ImpureError,
    InternalError,
    MissingProgramError,
    NoModelError,
    NotCallableError,
    NothingToShowError,
    PendingTensorError,
    ProfilerBusyError,
    Reason,
    TerraError,
    UnsupportedError,
    UnwritableError,
)
from terra_tf.function import Function, function, synchronize
from terra_tf.profiling import profile
from terra_tf.pure import pure
from terra_tf.runtime import process_ends
from terra_tf.runtime.explanation import Explanation
from terra_tf.runtime.stance import set_stance
from terra_tf.runtime.stats import Stats
from terra_tf.trace import trace_graph
from terra_tf.viz import dot

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "DivergenceError",
    "Explanation",
    "Function",
    "ImperativeReason",
    "ImpureError",
    "InternalError",
    "MissingProgramError",
    "NoModelError",
    "NotCallableError",
    "NothingToShowError",
    "PendingTensorError",
    "ProfilerBusyError",
    "Reason",
    "Stats",
    "TerraError",
    "UnsupportedError",
    "UnwritableError",
    "config",
    "function",
    "keras",
    "profile",
    "pure",
    "set_stance",
    "synchronize",
    "tensorboard",
]

process_ends.register()
trace_graph.set_drawer(dot.to_graphviz)
