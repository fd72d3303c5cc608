#include "kernels/interceptor/hooks.h"

#include <utility>

#include "kernels/interceptor/call.h"
#include "kernels/interceptor/controller.h"
#include "kernels/interceptor/session.h"
#include "kernels/interceptor/tf_python.h"

namespace terra {
namespace {

using tensorflow::TensorHandle;

// In-flight sessions that have ended well need nothing but to be released.
bool RetireFinished() {
  for (Session* session : Session::Live()) {
    if (!session->committed() || !session->step()->state().ended()) continue;
    PyRef done = PyRef::Steal(
        PyObject_CallMethod(session->controller(), "on_finished", nullptr));
    return static_cast<bool>(done);  // retires every finished one
  }
  return true;
}

// Settles every session that an op with this resource must not overtake.
bool Drain(PyObject* handle_tensor, bool writes, const Session* self) {
  const tensorflow::Tensor* value = nullptr;
  if (!HandleOf(handle_tensor)->Tensor(&value).ok()) return true;
  const uint64_t key = ResourceKey(*value);
  for (;;) {
    Session* conflict = nullptr;
    for (Session* session : Session::Live()) {
      if (session != self && session->ConflictsWith(key, writes)) {
        conflict = session;
      }
    }
    if (conflict == nullptr) return true;
    PyRef done = PyRef::Steal(
        PyObject_CallMethod(conflict->controller(), "on_conflict", nullptr));
    if (!done) return false;
    if (done.get() == Py_False) return true;  // this thread is settling it
  }
}

// A dataset's pipeline may have captured variables.
bool ReadsUnseen(const OpInfo* info) {
  return info != nullptr && (info->name.find("Iterator") != std::string::npos ||
                             info->name.find("Dataset") != std::string::npos);
}

// For an op that may read variables unseen: a pipeline's captured ones, say.
bool DrainWrites(const Session* self) {
  for (;;) {
    Session* conflict = nullptr;
    for (Session* session : Session::Live()) {
      if (session != self && session->HasUnsettledWrites()) {
        conflict = session;
      }
    }
    if (conflict == nullptr) return true;
    PyRef done = PyRef::Steal(
        PyObject_CallMethod(conflict->controller(), "on_conflict", nullptr));
    if (!done) return false;
    if (done.get() == Py_False) return true;  // this thread is settling it
  }
}

// One input of an op that runs outside every session.
bool SettleInput(PyObject* value, bool writes) {
  if (EagerTensor_CheckExact(value)) {
    if (HandleOf(value)->DataType() == tensorflow::DT_RESOURCE) {
      return Drain(value, writes, nullptr);
    }
    return EnsureReadable(value, Reading::kValue);
  }
  if (PyList_Check(value) || PyTuple_Check(value)) {
    PyRef items = PyRef::Steal(PySequence_Tuple(value));
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(items.get()); ++i) {
      if (!SettleInput(PyTuple_GET_ITEM(items.get(), i), writes)) return false;
    }
    return true;
  }
  if (PyObject_IsInstance(value, Runtime().resource_variable_type) == 1) {
    PyRef handle = PyRef::Steal(PyObject_GetAttrString(value, "_handle"));
    if (!handle) {
      PyErr_Clear();
      return true;
    }
    return !EagerTensor_CheckExact(handle.get()) ||
           Drain(handle.get(), false, nullptr);
  }
  return true;
}

bool Settle(PyObject* py_name, PyObject* args, Py_ssize_t first,
            Py_ssize_t last) {
  if (!RetireFinished()) return false;
  const OpInfo* info = OpInfo::Of(py_name);
  const bool writes = info == nullptr || !info->only_reads_resource;
  if (ReadsUnseen(info) && !DrainWrites(nullptr)) return false;
  for (Py_ssize_t i = first; i < last; ++i) {
    if (!SettleInput(PyTuple_GET_ITEM(args, i), writes)) return false;
  }
  return true;
}

bool IsForwarded(const ThreadState& thread) {
  return thread.session == nullptr || thread.nested > 0;
}

bool IsDestroy(PyObject* py_name) {
  static const OpInfo* destroy = OpInfo::Of(std::string("DestroyResourceOp"));
  return OpInfo::Of(py_name) == destroy;
}

// Replaces an error to which the op's wrapper would add a name.
void RaiseUnnamed(const Session* session) {
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  PyErr_NormalizeException(&type, &value, &traceback);
  if (CallController(session->controller(), "on_unnamed_error", "(O)", value)) {
    PyErr_Restore(type, value, traceback);
    return;
  }
  Py_XDECREF(type);
  Py_XDECREF(value);
  Py_XDECREF(traceback);
}

}  // namespace

bool SettleCall(const Call& call, const Session* self) {
  if (Session::Live().size() < 2) return true;
  if (!RetireFinished()) return false;
  if (ReadsUnseen(call.info) && !DrainWrites(self)) return false;
  const bool writes = call.info == nullptr || !call.info->only_reads_resource;
  for (const PyRef& input : call.inputs) {
    if (HandleOf(input.get())->DataType() == tensorflow::DT_RESOURCE &&
        !Drain(input.get(), writes, self)) {
      return false;
    }
  }
  return true;
}

void ClearOwnError() {
  ThreadState& thread = CurrentThread();
  const bool is_from_outside =
      PyErr_Occurred() && (std::exchange(thread.was_interrupted, false) ||
                           !PyErr_ExceptionMatches(PyExc_Exception));
  if (is_from_outside) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != nullptr) PyException_SetTraceback(value, traceback);
    Py_XSETREF(thread.kept_error, value);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
  }
  PyErr_Clear();
}

PyObject* OrKeptError(PyObject* result) {
  PyRef kept = PyRef::Steal(std::exchange(CurrentThread().kept_error, nullptr));
  if (!kept || result == nullptr) return result;  // it is set, or another is
  Py_DECREF(result);
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(kept.get())), kept.get());
  return nullptr;
}

ThreadState& CurrentThread() {
  static thread_local ThreadState state;
  return state;
}

PyObject* FastPathExecuteHook(PyObject*, PyObject* args) {
  ThreadState& thread = CurrentThread();
  thread.was_interrupted = false;
  if (IsForwarded(thread)) {
    if (!Session::Live().empty() && PyTuple_GET_SIZE(args) > 3) {
      // Attributes come after the inputs; strings and numbers settle at once.
      if (!Settle(PyTuple_GET_ITEM(args, 1), args, 3, PyTuple_GET_SIZE(args))) {
        return nullptr;
      }
    }
    return RunFast(args);
  }
  if (PyTuple_GET_SIZE(args) > 1 && IsDestroy(PyTuple_GET_ITEM(args, 1))) {
    if (!Settle(PyTuple_GET_ITEM(args, 1), args, 3, PyTuple_GET_SIZE(args))) {
      return nullptr;
    }
    return RunFast(args);
  }
  Call call;
  switch (ParseFastCall(args, &call)) {
    case ParseResult::kOk:
      break;
    case ParseResult::kFallback:
      RaiseFallbackException(
          "Terra: an input that only TensorFlow's Python can convert");
      return nullptr;
    case ParseResult::kError:
      return nullptr;
  }
  // Reading a variable may have ended the session's co-execution, but not the
  // session: it lasts until the decorated function returns.
  Session* session = thread.session;
  PyObject* result = OrKeptError(session->OnCall(call));
  if (result == nullptr && call.given_name() == Py_None) RaiseUnnamed(session);
  return result;
}

PyObject* ExecuteHook(PyObject*, PyObject* args) {
  const ThreadState& thread = CurrentThread();
  const Py_ssize_t size = PyTuple_GET_SIZE(args);
  PyObject* original =
      size == 7 ? Runtime().execute_cancelable : Runtime().execute;
  if (IsForwarded(thread)) {
    if (!Session::Live().empty() && size > 3 &&
        !Settle(PyTuple_GET_ITEM(args, 2), args, 3, 4)) {
      return nullptr;
    }
    return PyObject_Call(original, args, nullptr);
  }
  Call call;
  switch (ParseFullCall(args, &call)) {
    case ParseResult::kOk:
      return OrKeptError(thread.session->OnCall(call));
    case ParseResult::kFallback:  // TensorFlow says what is wrong with it
      return PyObject_Call(original, args, nullptr);
    case ParseResult::kError:
      return nullptr;
  }
  return nullptr;
}

// Appends the items of a list or tuple. False if some are no EagerTensors.
bool AppendTensors(PyObject* list, Tensors* tensors) {
  if (!PyList_Check(list) && !PyTuple_Check(list)) return false;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(list); ++i) {
    PyObject* item = PySequence_Fast_GET_ITEM(list, i);
    if (!EagerTensor_CheckExact(item)) return false;
    tensors->push_back(PyRef::Borrow(item));
  }
  return true;
}

// Whether no gradient goes through any of the inputs, so that tapes take no
// notice (TensorFlow's `IsDtypeTrainable` has fewer types than this leaves).
bool AreDiscrete(PyObject* inputs) {
  Tensors tensors;
  if (!AppendTensors(inputs, &tensors)) return false;
  for (const PyRef& tensor : tensors) {
    const tensorflow::DataType type = HandleOf(tensor.get())->DataType();
    if (!tensorflow::DataTypeIsInteger(type) && type != tensorflow::DT_BOOL) {
      return false;
    }
  }
  return true;
}

// Python records the gradient of ops that came by the full route; append the
// marker that names the op.
PyObject* RecordGradientHook(PyObject*, PyObject* args) {
  const ThreadState& thread = CurrentThread();
  PyObject* original = Runtime().record_gradient;
  if (IsForwarded(thread) || PyTuple_GET_SIZE(args) < 4) {
    if (!Session::FlushAllTapes()) return nullptr;
    return PyObject_Call(original, args, nullptr);
  }
  if (AreDiscrete(PyTuple_GET_ITEM(args, 1))) Py_RETURN_NONE;
  PyRef results = PyRef::Steal(PySequence_Tuple(PyTuple_GET_ITEM(args, 3)));
  if (!results) return nullptr;
  PyObject* marker = nullptr;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(results.get()); ++i) {
    PyObject* tensor = PyTuple_GET_ITEM(results.get(), i);
    if (!EagerTensor_CheckExact(tensor)) continue;
    if (!EnsureReadable(tensor, Reading::kShape)) return nullptr;
    const int32_t index = thread.session->FindMade(HandleOf(tensor));
    if (index >= 0) marker = thread.session->made()[index].marker;
  }
  PyObject* attrs = PyTuple_GET_ITEM(args, 2);
  if (marker == nullptr || attrs == Py_None) {
    thread.session->ObstructPure("Python records an op of its own on the tape");
    if (!thread.session->FlushTapes()) return nullptr;
    return PyObject_Call(original, args, nullptr);
  }
  PyRef list = PyRef::Steal(PySequence_List(attrs));
  if (!list) return nullptr;
  PyRef name = PyRef::Steal(PyUnicode_InternFromString("_terra_node"));
  PyList_Append(list.get(), name.get());
  PyList_Append(list.get(), marker);
  PyRef new_args = PyRef::Steal(PySequence_List(args));
  PyObject* new_attrs = PyList_AsTuple(list.get());
  thread.session->LogRecord(PyTuple_GET_ITEM(args, 0),
                            PyTuple_GET_ITEM(args, 1), new_attrs);
  PyList_SetItem(new_args.get(), 2, new_attrs);
  Tensors inputs;
  if (TapeIsActive() && AppendTensors(PyTuple_GET_ITEM(args, 1), &inputs)) {
    Tensors outputs;
    if (AppendTensors(results.get(), &outputs)) {
      if (!thread.session->TellTapes(PyTuple_GET_ITEM(args, 0), inputs,
                                     new_attrs, outputs)) {
        return nullptr;
      }
      Py_RETURN_NONE;
    }
  }
  if (!thread.session->FlushTapes()) return nullptr;
  PyRef tuple = PyRef::Steal(PyList_AsTuple(new_args.get()));
  return PyObject_Call(original, tuple.get(), nullptr);
}

bool EnsureReadable(PyObject* tensor, Reading reading) {
  auto& live = Session::Live();
  if (live.empty() || !EagerTensor_CheckExact(tensor)) return true;
  TensorHandle* handle = HandleOf(tensor);
  for (size_t i = 0; i < live.size(); ++i) {
    Session* session = live[i];
    const int32_t index = session->FindMade(handle);
    if (index < 0) continue;
    // What is called or waited for below may let another thread release it.
    PyRef keep_alive = PyRef::Borrow(session->controller());
    Made& made = session->made()[index];
    const ThreadState& thread = CurrentThread();
    const bool owner = thread.session == session;
    if (session->mode() == Mode::kTracing) {
      if (!owner || thread.nested > 0) return true;
      PyRef noted = PyRef::Steal(PyObject_CallMethod(
          session->controller(), "on_materialize", "iii", made.node,
          made.output, reading == Reading::kShape ? 1 : 0));
      return noted || session->AbandonTrace();
    }
    if (reading == Reading::kShape && session->plan() != nullptr &&
        session->ShapeIsKnown(made)) {
      return true;
    }
    if (reading == Reading::kValue) made.seen = true;
    if (made.ready->load(std::memory_order_acquire)) return true;
    const int node = made.node;
    const int output = made.output;
    if (made.fetch_channel < 0) {
      PyRef resolved = PyRef::Steal(
          PyObject_CallMethod(session->controller(), "on_unplanned", "iii",
                              node, output, owner ? 1 : 0));
      return static_cast<bool>(resolved);
    }
    const int ready = session->WaitReady(made);
    CurrentThread().was_interrupted = ready < 0;
    if (ready != 0) return ready > 0;
    PyRef resolved = PyRef::Steal(PyObject_CallMethod(
        session->controller(), "on_dead", "ii", node, output));
    return static_cast<bool>(resolved);
  }
  return true;
}

}  // namespace terra
