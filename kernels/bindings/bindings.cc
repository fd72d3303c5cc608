// The Python module `terra_tf._terra_native`. What Python may do with the
// library is here, and nothing else.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/bindings/binding_helpers.h"
#include "kernels/call/seeds.h"
#include "kernels/hooks/hooks.h"
#include "kernels/hooks/readers.h"
#include "kernels/hooks/replayable.h"
#include "kernels/hooks/tape_hooks.h"
#include "kernels/plan/plan.h"
#include "kernels/plan/reason.h"
#include "kernels/python/lamp.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/state_guard.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"
#include "kernels/python/waiting.h"
#include "kernels/runner/graph_runner.h"
#include "kernels/runner/step.h"
#include "kernels/session/session.h"
#include "kernels/session/tape_events.h"
#include "tensorflow/core/common_runtime/dma_helper.h"
#include "tensorflow/core/framework/allocator.h"
#include "tensorflow/core/framework/tensor_util.h"

namespace terra {

namespace {

using tensorflow::Tensor;
using tensorflow::TensorHandle;

PyMethodDef hook_methods[] = {
    {"fast_path_execute", FastPathExecuteHook, METH_VARARGS, nullptr},
    {"execute", ExecuteHook, METH_VARARGS, nullptr},
    {"record_gradient", RecordGradientHook, METH_VARARGS, nullptr},
};

py::object HookFunction(int index) {
  return py::reinterpret_steal<py::object>(
      PyCFunction_New(&hook_methods[index], nullptr));
}

void Initialize(const py::dict& originals) {
  EagerRuntime& r = Runtime();
  auto keep = [](py::object object) { return object.release().ptr(); };
  r.execute = keep(originals["execute"]);
  r.execute_cancelable = keep(originals["execute_cancelable"]);
  r.record_gradient = keep(originals["record_gradient"]);
  r.variable_watcher = keep(originals["variable_watcher"]);
  r.resource_variable_type = keep(originals["resource_variable_type"]);
  r.shape_type = keep(originals["shape_type"]);
  r.indexed_slices_type = keep(originals["indexed_slices_type"]);
  r.variable_type = keep(originals["variable_type"]);
  r.dtype_type = keep(originals["dtype_type"]);
  r.numpy_scalar_type = keep(originals["numpy_scalar_type"]);
  r.unread_variable_type = keep(originals["unread_variable_type"]);
  r.symbolic_tensor_type = keep(originals["symbolic_tensor_type"]);
  r.next_id = keep(originals["next_id"]);
  r.canonical_attributes = keep(originals["canonical_attributes"]);
  r.result_attributes = keep(originals["result_attributes"]);
}

// A context that was bound before is kept: tensors of it may be left.
void BindContext(const py::object& context, const py::capsule& handle,
                 const py::object& tensors) {
  if (!FindTensorIds(tensors.ptr())) {
    if (PyErr_Occurred()) throw py::error_already_set();
    throw std::runtime_error("Terra: where does this EagerTensor have its id?");
  }
  EagerRuntime& r = Runtime();
  r.c_context =
      static_cast<TFE_Context*>(PyCapsule_GetPointer(handle.ptr(), nullptr));
  r.context = tensorflow::ContextFromInterface(tensorflow::unwrap(r.c_context));
  r.py_context = py::object(context).release().ptr();
}

py::object Alias(const py::object& tensor) {
  TensorHandle* handle = NewLocalLike(
      tensorflow::tensor::DeepCopy(ValueOf(tensor)), *HandleOf(tensor.ptr()));
  return py::reinterpret_steal<py::object>(
      EagerTensorFromHandle(tensorflow::wrap(handle)));
}

bool OwnsMemory(const py::object& tensor) {
  const Tensor value = ValueOf(tensor);
  auto* buffer = const_cast<tensorflow::TensorBuffer*>(
      tensorflow::DMAHelper::buffer(&value));
  return buffer == nullptr || buffer->root_buffer()->OwnsMemory();
}

py::object FromUint64(const std::vector<uint64_t>& values) {
  Tensor tensor(tensorflow::DT_UINT64, {static_cast<int64_t>(values.size())});
  for (size_t i = 0; i < values.size(); ++i) {
    tensor.flat<uint64_t>()(i) = values[i];
  }
  return py::reinterpret_steal<py::object>(EagerTensorFromHandle(
      tensorflow::wrap(TensorHandle::CreateLocalHandle(tensor))));
}

void BindFunctions(py::module_& m) {
  // The values of `errors.Reason` that this half finds out.
  m.attr("reasons") =
      std::vector<std::string>(kReasonNames.begin() + 1, kReasonNames.end());
  m.def("initialize", &Initialize);
  m.def("bind_context", &BindContext);
  m.def("hook_function", &HookFunction);
  m.def("wrap_reader",
        [](const py::object& original, bool shape_only, bool as_method) {
          return ObjectOf(WrapReader(original.ptr(), shape_only, as_method));
        });
  m.def("install_buffer_reader", &InstallBufferReader);
  m.def("uninstall_buffer_reader", &UninstallBufferReader);
  m.def("wrap_tape_function",
        [](const std::string& name, const py::object& original) {
          PyRef hook = WrapTapeFunction(name, original.ptr());
          if (!hook) throw py::error_already_set();
          return ObjectOf(hook);
        });
  m.def("set_accumulators", &SetAccumulators);
  m.def("is_telling_tapes", [] { return CurrentThread().num_told > 0; });
  m.def("replayable", [](const std::string& name, const py::object& original) {
    PyRef hook = MakeReplayable(name, original.ptr());
    if (!hook) throw py::error_already_set();
    return ObjectOf(hook);
  });
  m.def("pure_function", [](const std::string& name, const py::object& function,
                            bool takes_objects, bool is_declared) {
    PyRef hook =
        MakePureFunction(name, function.ptr(), takes_objects, is_declared);
    if (!hook) throw py::error_already_set();
    return ObjectOf(hook);
  });
  m.def("set_keras_state",
        [](const py::object& module, const py::object& variable_type) {
          Runtime().keras_state = RefOf(module).release();
          Runtime().keras_variable_type = RefOf(variable_type).release();
        });
  // What is added says whether a change of it would be seen.
  py::class_<StateGuard>(m, "StateGuard")
      .def(py::init<>())
      .def("add_alive",
           [](StateGuard& guard, const py::object& object) {
             return guard.AddAlive(object.ptr());
           })
      .def(
          "add_attributes",
          [](StateGuard& guard, const py::object& owner,
             const std::optional<py::frozenset>& changing_keys) {
            return guard.AddAttributes(
                owner.ptr(), changing_keys ? changing_keys->ptr() : nullptr);
          },
          py::arg("owner"), py::arg("changing_keys") = py::none())
      .def(
          "add_named",
          [](StateGuard& guard, const py::object& owner, const py::str& name,
             const std::optional<py::frozenset>& changing_keys) {
            return guard.AddNamed(
                owner.ptr(), name.ptr(),
                changing_keys ? changing_keys->ptr() : nullptr);
          },
          py::arg("owner"), py::arg("name"),
          py::arg("changing_keys") = py::none())
      .def("add_item",
           [](StateGuard& guard, const py::object& container) {
             return guard.AddItem(container.ptr());
           })
      .def("add_global",
           [](StateGuard& guard, const py::object& container) {
             return guard.AddGlobal(container.ptr());
           })
      .def("add_strategies",
           [](StateGuard& guard, const py::object& stack,
              const py::object& strategy) {
             return guard.AddStrategies(stack.ptr(), strategy.ptr());
           })
      .def("add_type",
           [](StateGuard& guard, const py::type& type) {
             guard.AddType(reinterpret_cast<PyTypeObject*>(type.ptr()));
           })
      .def("finish", &StateGuard::Finish)
      .def_property_readonly(
          "capsule",
          [](StateGuard& guard) { return py::capsule(&guard, kGuardName); })
      .def_property_readonly("is_unchanged", &StateGuard::IsUnchanged);
  // The categories of the knob `log` that this half has; the first is bit 0.
  m.attr("lights") =
      std::vector<std::string>(kLightNames.begin(), kLightNames.end());
  m.def("set_knobs", [](double slice_s, double stall_warning_s,
                        bool replays_calls, bool checks_pure, unsigned lights) {
    Knobs().slice_s = slice_s;
    Knobs().stall_warning_s = stall_warning_s;
    Knobs().replays_calls = replays_calls;
    Knobs().checks_pure = checks_pure;
    Knobs().lights = lights;
  });
  m.def("set_delays", [](int64_t graph_us, int64_t python_us) {
    Delays().graph_us = graph_us;
    Delays().python_us = python_us;
  });
  m.def("in_gradient", [] { return CurrentThread().num_gradients > 0; });
  m.def("in_step", [] { return CurrentThread().session != nullptr; });
  m.def("current_controller", []() -> py::object {
    const ThreadState& thread = CurrentThread();
    if (thread.session == nullptr || thread.nested > 0) return py::none();
    return py::reinterpret_borrow<py::object>(thread.session->controller());
  });
  m.def("note_internal_seed", &NoteInternalSeed);
  m.def("clear_seed_ledger", &ClearSeedLedger);
  m.def("live_controllers", [] {
    py::list controllers;
    for (Session* session : Session::Live()) {
      if (session->plan() != nullptr) {
        controllers.append(py::handle(session->controller()));
      }
    }
    return controllers;
  });
  m.def("runner_resume", [] { GraphRunner::Get().Resume(); });
  m.def("runner_shutdown", [] {
    py::gil_scoped_release release;
    GraphRunner::Get().Shutdown();
  });
  m.def("after_fork_in_child", [] {
    GraphRunner::Get().AfterForkInChild();
    CurrentThread() = ThreadState();
    Session::ForgetLive();
  });
  m.def("copy_tensor", &Alias);
  // While on, a profile shows each allocation on the CPU.
  m.def("trace_cpu_memory", [](bool on) {
    if (on) {
      tensorflow::EnableCPUAllocatorStats();
    } else {
      tensorflow::DisableCPUAllocatorStats();
    }
  });
  m.def("waiting_thread", [] { return WaitingThread().load(); });
  m.def("owns_memory", &OwnsMemory);
  m.def("from_uint64", &FromUint64);
  m.def("handle_id", [](const py::object& tensor) {
    CheckTensor(tensor);
    return reinterpret_cast<uintptr_t>(HandleOf(tensor.ptr()));
  });
  m.def("resource_key",
        [](const py::object& tensor) { return ResourceKey(ValueOf(tensor)); });
}

}  // namespace
}  // namespace terra

PYBIND11_MODULE(_terra_native, m) {
  terra::BindPlan(m);
  terra::BindSession(m);
  terra::BindStepRun(m);
  terra::BindFunctions(m);
}
