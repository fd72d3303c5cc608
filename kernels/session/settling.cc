#include "kernels/session/settling.h"

#include <string>

#include "kernels/call/op_info.h"
#include "kernels/outputs/readable.h"
#include "kernels/plan/plan.h"
#include "kernels/python/tf_python.h"
#include "kernels/session/session.h"

namespace terra {
namespace {

// In-flight sessions that have ended well need nothing but to be released.
bool RetireFinished() {
  for (Session* session : Session::Live()) {
    if (!session->commits().is_committed() || !session->step()->state().ended())
      continue;
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

bool SettleArguments(PyObject* py_name, PyObject* args, Py_ssize_t first,
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

}  // namespace terra
