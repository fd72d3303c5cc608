#include "kernels/interceptor/state_guard.h"

namespace terra {
namespace {

// Python gives a type a number when it looks a method up, and a new one after
// each change of the type or of a base.
unsigned int VersionOf(PyTypeObject* type) {
  static PyObject* any_name = PyUnicode_InternFromString("__call__");
  if (type->tp_version_tag == 0) _PyType_Lookup(type, any_name);
  return type->tp_version_tag;
}

}  // namespace

bool StateGuard::Add(PyObject* container) {
  Snapshot snapshot{PyRef::Borrow(container), {}};
  if (PyDict_Check(container)) {
    PyObject *key, *value;
    Py_ssize_t place = 0;
    while (PyDict_Next(container, &place, &key, &value)) {
      snapshot.held.push_back(PyRef::Borrow(key));
      snapshot.held.push_back(PyRef::Borrow(value));
    }
  } else if (PyList_Check(container) || PyTuple_Check(container)) {
    const Py_ssize_t n = PySequence_Fast_GET_SIZE(container);
    for (Py_ssize_t i = 0; i < n; ++i) {
      snapshot.held.push_back(
          PyRef::Borrow(PySequence_Fast_GET_ITEM(container, i)));
    }
  } else {
    return false;
  }
  snapshots_.push_back(std::move(snapshot));
  return true;
}

void StateGuard::AddType(PyTypeObject* type) {
  types_.push_back(
      {PyRef::Borrow(reinterpret_cast<PyObject*>(type)), VersionOf(type)});
}

bool StateGuard::Holds(const Snapshot& snapshot) {
  PyObject* container = snapshot.container.get();
  const auto& held = snapshot.held;
  if (PyDict_Check(container)) {
    if (static_cast<size_t>(PyDict_GET_SIZE(container)) * 2 != held.size()) {
      return false;
    }
    PyObject *key, *value;
    Py_ssize_t place = 0;
    for (size_t i = 0; PyDict_Next(container, &place, &key, &value); i += 2) {
      if (held[i].get() != key || held[i + 1].get() != value) return false;
    }
    return true;
  }
  const size_t n = PySequence_Fast_GET_SIZE(container);
  if (n != held.size()) return false;
  for (size_t i = 0; i < n; ++i) {
    if (PySequence_Fast_GET_ITEM(container, i) != held[i].get()) return false;
  }
  return true;
}

bool StateGuard::IsUnchanged() const {
  for (const TypeVersion& type : types_) {
    auto* object = reinterpret_cast<PyTypeObject*>(type.type.get());
    if (type.version == 0 || VersionOf(object) != type.version) return false;
  }
  for (const Snapshot& snapshot : snapshots_) {
    if (!Holds(snapshot)) return false;
  }
  return true;
}

}  // namespace terra
