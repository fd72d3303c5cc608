#include "kernels/replay/keras_context.h"

#include "kernels/plan/hash.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"

namespace terra {
namespace {

PyObject* DictName() {
  static PyObject* name = PyUnicode_InternFromString("__dict__");
  return name;
}

bool IsPlain(PyObject* value) {
  return value == Py_None || PyBool_Check(value);
}

}  // namespace

KerasContext::KerasContext() {
  static PyObject* tracker_name =
      PyUnicode_InternFromString("GLOBAL_STATE_TRACKER");
  static PyObject* name = PyUnicode_InternFromString("current_call_ctx");
  if (Runtime().keras_state == nullptr) return;
  Hash hash(0);
  // `clear_session` puts another tracker there, and each thread has its own
  // attributes of it. Guards look at what is in them.
  PyRef tracker =
      PyRef::Steal(PyObject_GetAttr(Runtime().keras_state, tracker_name));
  if (tracker) {
    thread_ = PyRef::Steal(PyObject_GetAttr(tracker.get(), DictName()));
  }
  if (!thread_ || !PyDict_Check(thread_.get())) {
    ClearOwnError();
    thread_ = PyRef();
    return;
  }
  hash.Mix(reinterpret_cast<uintptr_t>(thread_.get()));
  PyObject* context = PyDict_GetItemWithError(thread_.get(), name);
  ClearOwnError();
  if (context != nullptr && context != Py_None) {
    context_ = PyRef::Borrow(context);
    PyRef attributes = PyRef::Steal(PyObject_GetAttr(context, DictName()));
    ClearOwnError();
    PyObject *key, *value;
    Py_ssize_t place = 0;
    while (attributes && PyDict_Next(attributes.get(), &place, &key, &value)) {
      hash.Mix(reinterpret_cast<uintptr_t>(key));
      hash.Mix(reinterpret_cast<uintptr_t>(value));
    }
  }
  hash_ = hash.value();
}

PyRef KerasContext::values() const {
  if (!context_) return PyRef();
  PyRef attributes = PyRef::Steal(PyObject_GetAttr(context_.get(), DictName()));
  PyRef copy;
  if (attributes) copy = PyRef::Steal(PyDict_Copy(attributes.get()));
  ClearOwnError();
  return copy;
}

bool KerasContext::FindChanges(const KerasContext& now, PyObject* before,
                               ContextChanges* changes) const {
  if (hash_ == now.hash_) return true;
  PyRef values = now.values();
  if (thread_.get() != now.thread_.get() ||
      context_.get() != now.context_.get() || before == nullptr || !values) {
    return false;
  }
  PyObject *key, *value;
  Py_ssize_t place = 0, num_known = 0;
  while (PyDict_Next(values.get(), &place, &key, &value)) {
    PyObject* old = PyDict_GetItemWithError(before, key);
    num_known += old != nullptr;
    if (old == value) continue;
    if (!IsPlain(value)) return false;
    changes->emplace_back(PyRef::Borrow(key), value);
  }
  ClearOwnError();
  return num_known == PyDict_Size(before);
}

bool KerasContext::Set(const ContextChanges& changes) const {
  for (const auto& [name, value] : changes) {
    if (PyObject_SetAttr(context_.get(), name.get(), value) < 0) return false;
  }
  return true;
}

}  // namespace terra
