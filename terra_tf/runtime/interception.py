"""Installs the hooks: once per process, at the first terra function, or by hand.

    install()         replaces TensorFlow's three eager entry points and the readers
    bind_context(c)   tells native code of TensorFlow's context; at the first step
    uninstall()       puts everything back; only while no step is open

All hooks are in place, or none. Installing does not look at TensorFlow's context: devices and
threads can be configured until the first call, and it may happen while a graph is built.
Installed but off, an op costs one branch more (`benchmarks.micro --only=off_overhead`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from terra_tf import _native
from terra_tf._tf_internals import (
    BaseResourceVariable,
    EagerTensor,
    ResourceVariable,
    SymbolicTensor,
    UnreadVariable,
    backprop,
    context,
    custom_gradient,
    forwardprop,
    num_active_accumulators,
    pfor_ops,
    pywrap_tfe,
    tensor_cache_class,
)
from terra_tf.config import config
from terra_tf.runtime import (
    custom_gradients,
    gradient_calls,
    gradient_markers,
    in_flight,
    jacobian_calls,
    jvp_functions,
    logs,
    pfor_calls,
    vectorized_maps,
)
from terra_tf.runtime.api_hooks import ApiHooks, functions_of_tensorflow
from terra_tf.runtime.keras_hooks import KerasHooks
from terra_tf.runtime.replacements import Replacements
from terra_tf.runtime.swapped_code import SwappedCode
from terra_tf.trace.attributes import canonical_attributes, result_attributes

_MAX_INT32 = 2**31 - 1


_VALUE_READERS = ("_numpy_internal", "_copy_to_device")
_SHAPE_READERS = ("_shape_tuple", "_rank", "_num_elements")
_FUNCTION_READERS = {"TFE_ToDlpackCapsule": False, "TFE_Py_TensorShapeSlice": True}

originals: dict[str, Any] = {}
last_internal_seed: int | None = None
_is_installed = False
_bound_context: Any = None
_replacements = Replacements()


def is_installed() -> bool:
    """Says whether the hooks are in place."""
    return _is_installed


@functools.cache
def _monitor() -> Any:
    """Returns the monitor of who installs or uninstalls."""
    return _native.load().module.Monitor()


def install() -> None:
    """Puts the hooks in place: all of them, or none if it raises. Idempotent; for any thread."""
    if _is_installed or _monitor().is_mine:  # the latter: a finalizer, in the midst of it
        return
    _monitor().run(_install)


def _install() -> None:
    global _is_installed
    if _is_installed:
        return
    _put_back()  # what an interruption may have left
    try:
        _put_in_place(_native.load().module)
        _is_installed = True
    finally:
        if not _is_installed:
            _put_back()


def uninstall() -> None:
    """Puts TensorFlow back as it was."""
    _monitor().run(_uninstall)


def _uninstall() -> None:
    global _is_installed
    if _is_installed:
        _is_installed = False
        _put_back()


def bind_context(eager_context: Any) -> None:
    """Tells native code which context ops run in, and initializes it. Idempotent.

    Needs eager execution, and that no step is open. Steps in flight, which are another
    context's, are settled.

    Raises:
      Exception: What an op of a step in flight raised.
    """
    global _bound_context
    if eager_context is _bound_context:
        return
    in_flight.settle()
    eager_context.ensure_initialized()
    tensors = [tf.constant([float(number)]) for number in range(5)]
    native = _native.load().module
    native.bind_context(eager_context, eager_context._handle, tensors)
    native.set_accumulators(num_active_accumulators(tensors[0]))  # some may be older than hooks
    _bound_context = eager_context


def _put_in_place(native: Any) -> None:
    _save_originals()
    native.initialize(_runtime_objects())
    _hand_knobs_over()
    _install_hooks(native)
    _install_readers(native)
    _install_seed_hooks(native)
    _install_tape_hooks(native)
    _install_jvp_hook(native)
    _install_cache_bypass(native)
    _swap_method(gradient_calls.hook(native))
    decorator = custom_gradients.hook(native, custom_gradient._eager_mode_decorator)
    _replace(custom_gradient, "_eager_mode_decorator", decorator)
    for method in jacobian_calls.METHODS:
        _swap_method(jacobian_calls.hook(method))
    _swap_method(vectorized_maps.hook())
    _replace(pfor_ops, "def_function", pfor_calls.DefFunction(pfor_ops.def_function))
    _replace(pfor_ops, "PFor", vectorized_maps.converter(pfor_ops.PFor))
    _swap_code(native)


def _put_back() -> None:
    _replacements.undo()
    _keras.forget()
    _api.remove()
    originals.clear()


def _swap_method(swapped: SwappedCode) -> None:
    _replacements.note(swapped.restore)
    swapped.swap()


def _swap_code(native: Any) -> None:
    _keras.install(native, config.replay_calls)
    _api.sync(native, config.replay_calls)


_applied_knobs: tuple | None = None
_GRAPH_DELAY_US, _PYTHON_DELAY_US = 500, 200


def apply_knobs() -> None:
    """Hands the knobs that native code reads over, if they have changed. Called at each step."""
    if _is_installed:
        _swap_code(_native.load().module)
    _hand_knobs_over()


def _hand_knobs_over() -> None:
    global _applied_knobs
    stall_warning_s = config.stall_warning_s or float("inf")
    knobs = (
        config.wait_slice_s,
        stall_warning_s,
        config.replay_calls,
        config.check_pure,
        config.log,
        config.inject_delays,
    )
    if knobs == _applied_knobs:
        return
    native = _native.load().module
    native.set_knobs(*knobs[:4], logs.lights(native.lights))
    delayed = {name.strip() for name in config.inject_delays.split(",")}
    native.set_delays(
        _GRAPH_DELAY_US if "graph" in delayed else 0,
        _PYTHON_DELAY_US if "python" in delayed else 0,
    )
    _applied_knobs = knobs


def begin_step() -> None:
    """Prepares the calling thread for a step: nothing is left of what was interrupted."""
    native = _native.load().module
    if not native.in_gradient():
        gradient_markers.begin_step()
        pfor_calls.forget_call()


def _save_originals() -> None:
    originals["fast_path_execute"] = pywrap_tfe.TFE_Py_FastPathExecute
    originals["execute"] = pywrap_tfe.TFE_Py_Execute
    originals["execute_cancelable"] = pywrap_tfe.TFE_Py_ExecuteCancelable
    originals["record_gradient"] = pywrap_tfe.TFE_Py_RecordGradient


def _runtime_objects() -> dict[str, Any]:
    return {
        "execute": originals["execute"],
        "execute_cancelable": originals["execute_cancelable"],
        "record_gradient": originals["record_gradient"],
        "variable_watcher": pywrap_tfe.TFE_Py_VariableWatcherVariableAccessed,
        "resource_variable_type": BaseResourceVariable,
        "shape_type": tf.TensorShape,
        "indexed_slices_type": tf.IndexedSlices,
        "variable_type": ResourceVariable,
        "dtype_type": tf.DType,
        "numpy_scalar_type": np.generic,
        "unread_variable_type": UnreadVariable,
        "symbolic_tensor_type": SymbolicTensor,
        "next_id": pywrap_tfe.TFE_Py_UID,
        "canonical_attributes": canonical_attributes,
        "result_attributes": result_attributes,
    }


_replace = _replacements.replace
_keras = KerasHooks(_replace)
_api = ApiHooks(functions_of_tensorflow)


def _install_hooks(native: Any) -> None:
    _replace(pywrap_tfe, "TFE_Py_FastPathExecute", native.hook_function(0))
    execute = native.hook_function(1)
    _replace(pywrap_tfe, "TFE_Py_Execute", execute)
    _replace(pywrap_tfe, "TFE_Py_ExecuteCancelable", execute)
    _replace(pywrap_tfe, "TFE_Py_RecordGradient", native.hook_function(2))
    gradient_markers.prepare(native)
    _register(pywrap_tfe.TFE_Py_RegisterGradientFunction, gradient_markers.wrapper,
              backprop._gradient_function)  # fmt: skip
    for swapped in gradient_markers.hooks(native):
        _swap_method(swapped)


def _register(register: Callable[[Any], object], replacement: Any, original: Any) -> None:
    _replacements.note(functools.partial(register, original))
    register(replacement)


def _install_readers(native: Any) -> None:
    for names, shape_only in ((_VALUE_READERS, False), (_SHAPE_READERS, True)):
        for name in names:
            original = getattr(EagerTensor, name)
            _replace(EagerTensor, name, native.wrap_reader(original, shape_only, True))
    for name, shape_only in _FUNCTION_READERS.items():
        original = getattr(pywrap_tfe, name)
        _replace(pywrap_tfe, name, native.wrap_reader(original, shape_only, False))
    _replacements.note(native.uninstall_buffer_reader)
    native.install_buffer_reader()


def _install_seed_hooks(native: Any) -> None:
    draw = context.Context._internal_operation_seed

    def _internal_operation_seed(self: Any) -> Any:
        global last_internal_seed
        last_internal_seed = draw(self)
        native.note_internal_seed(last_internal_seed)
        return last_internal_seed

    _replace(context.Context, "_internal_operation_seed", _internal_operation_seed)
    clear = pywrap_tfe.TFE_ContextClearCaches

    def clear_caches(*args: Any) -> Any:
        native.clear_seed_ledger()
        return clear(*args)

    _replace(pywrap_tfe, "TFE_ContextClearCaches", clear_caches)


def device_scope() -> str:
    """Returns the name of the device scope that is active on this thread, or ""."""
    return context.context().device_name or ""


def is_internal_pair(seed: int | None, seed2: int | None) -> bool:
    """Says whether a random op's seeds are TensorFlow's own, so that no op will repeat them."""
    if not seed and not seed2:  # none was set: TensorFlow gives None or 0
        return True
    return last_internal_seed is not None and seed2 == last_internal_seed % _MAX_INT32


_TAPE_FUNCTIONS = (
    "TapeSetNew",
    "TapeSetAdd",
    "TapeSetRemove",
    "TapeSetStopOnThread",
    "TapeSetRestartOnThread",
    "TapeWatch",
    "TapeWatchVariable",
    "TapeVariableAccessed",
    "TapeSetRecordOperation",
    "TapeSetRecordOperationBackprop",
    "TapeSetRecordOperationForwardprop",
    "TapeSetShouldRecordBackprop",
    "TapeSetPossibleGradientTypes",
    "ForwardAccumulatorSetAdd",
    "ForwardAccumulatorSetRemove",
    "VariableWatcherNew",
    "VariableWatcherRemove",
    "TapeGradient",
)


def _install_tape_hooks(native: Any) -> None:
    for name in _TAPE_FUNCTIONS:
        original = getattr(pywrap_tfe, "TFE_Py_" + name)
        hook = native.wrap_tape_function(name, original)
        _replace(pywrap_tfe, "TFE_Py_" + name, hook)


def _install_jvp_hook(native: Any) -> None:
    dispatch = forwardprop._jvp_dispatch
    known = jvp_functions.hook(native, dispatch)
    _register(pywrap_tfe.TFE_Py_RegisterJVPFunction, known, dispatch)


def _install_cache_bypass(native: Any) -> None:
    """A pending tensor must not outlive its step in TensorFlow's caches of zeros and ones."""
    get, put = tensor_cache_class.get, tensor_cache_class.put

    def get_outside_steps(self: Any, key: Any) -> Any:
        return None if native.in_step() else get(self, key)

    def put_outside_steps(self: Any, key: Any, value: Any) -> None:
        if not native.in_step():
            put(self, key, value)

    _replace(tensor_cache_class, "get", get_outside_steps)
    _replace(tensor_cache_class, "put", put_outside_steps)
