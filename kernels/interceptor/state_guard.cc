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

// Whether a key is the other, or among it.
bool Equal(PyObject* key, const PyRef& other) {
  if (!other) return false;
  if (PyFrozenSet_CheckExact(other.get())) {
    return PyUnicode_Check(key) && PySet_Contains(other.get(), key) == 1;
  }
  return (key == other.get() ||
          (PyUnicode_Check(key) && PyUnicode_Check(other.get()) &&
           PyUnicode_Compare(key, other.get()) == 0));
}

}  // namespace

bool StateGuard::Add(PyObject* container, PyObject* changing_key) {
  Snapshot snapshot{PyRef::Borrow(container), PyRef(), {}};
  if (changing_key != nullptr) {
    snapshot.changing_key = PyRef::Borrow(changing_key);
  }
  if (PyDict_Check(container)) {
    PyObject *key, *value;
    Py_ssize_t place = 0;
    while (PyDict_Next(container, &place, &key, &value)) {
      if (Equal(key, snapshot.changing_key)) continue;
      snapshot.held.push_back(PyRef::Borrow(key));
      snapshot.held.push_back(PyRef::Borrow(value));
    }
  } else if (PyList_Check(container) || PyTuple_Check(container)) {
    const Py_ssize_t n = PySequence_Fast_GET_SIZE(container);
    for (Py_ssize_t i = 0; i < n; ++i) {
      snapshot.held.push_back(
          PyRef::Borrow(PySequence_Fast_GET_ITEM(container, i)));
    }
  } else if (PyAnySet_Check(container)) {
    PyRef items = PyRef::Steal(PySequence_List(container));
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(items.get()); ++i) {
      snapshot.held.push_back(PyRef::Borrow(PyList_GET_ITEM(items.get(), i)));
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
    PyObject *key, *value;
    Py_ssize_t place = 0;
    size_t i = 0;
    while (PyDict_Next(container, &place, &key, &value)) {
      if (Equal(key, snapshot.changing_key)) continue;
      if (i == held.size() || held[i].get() != key ||
          held[i + 1].get() != value) {
        return false;
      }
      i += 2;
    }
    return i == held.size();
  }
  if (PyAnySet_Check(container)) {
    bool holds = static_cast<size_t>(PySet_GET_SIZE(container)) == held.size();
    for (size_t i = 0; holds && i < held.size(); ++i) {
      holds = PySet_Contains(container, held[i].get()) == 1;
    }
    PyErr_Clear();
    return holds;
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
