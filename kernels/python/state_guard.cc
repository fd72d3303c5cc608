#include "kernels/python/state_guard.h"

#include <utility>

namespace terra {
namespace {

// Python gives a type a number when it looks a method up, and a new one after
// each change of the type or of a base.
unsigned int VersionOf(PyTypeObject* type) {
  static PyObject* any_name = PyUnicode_InternFromString("__call__");
  if (type->tp_version_tag == 0) _PyType_Lookup(type, any_name);
  return type->tp_version_tag;
}

bool IsAmong(PyObject* key, const PyRef& keys) {
  return keys && PyUnicode_Check(key) && PySet_Contains(keys.get(), key) == 1;
}

bool IsContainer(PyObject* object) {
  return PyDict_Check(object) || PyList_Check(object) ||
         PyTuple_Check(object) || PyAnySet_Check(object);
}

// Calls `visit` with each item that a container holds, until it returns false;
// whether it never did. Runs no Python.
template <typename Visit>
bool ForEach(PyObject* container, const PyRef& changing_keys, Visit visit) {
  if (PyDict_Check(container)) {
    PyObject *key, *value;
    Py_ssize_t place = 0;
    while (PyDict_Next(container, &place, &key, &value)) {
      if (IsAmong(key, changing_keys)) continue;
      if (!visit(key) || !visit(value)) return false;
    }
    return true;
  }
  if (PyAnySet_Check(container)) {  // its order changes only if it does
    PyRef items = PyRef::Steal(PyObject_GetIter(container));
    while (items) {
      PyRef item = PyRef::Steal(PyIter_Next(items.get()));
      if (!item) break;
      if (!visit(item.get())) return false;
    }
    PyErr_Clear();
    return static_cast<bool>(items);
  }
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(container);
  for (Py_ssize_t i = 0; i < n; ++i) {
    if (!visit(PySequence_Fast_GET_ITEM(container, i))) return false;
  }
  return true;
}

// Whether everybody on a stack is in a replica of a strategy, as
// `strategy.run` is, and not in what merges replicas.
bool AreOf(PyObject* stack, PyObject* strategy) {
  static PyObject* of = PyUnicode_InternFromString("strategy");
  static PyObject* in = PyUnicode_InternFromString("replica_context");
  return ForEach(stack, PyRef(), [&](PyObject* mode) {
    const PyRef its = PyRef::Steal(PyObject_GetAttr(mode, of));
    const PyRef replica = PyRef::Steal(PyObject_GetAttr(mode, in));
    PyErr_Clear();
    return its.get() == strategy && replica && replica.get() != Py_None;
  });
}

}  // namespace

// Makes the address of what is held by a container the object's alone.
void StateGuard::Know(PyObject* object, bool is_global) {
  if (known_.count(object) > 0) return;
  if (PyObject_IS_GC(object) && AddAlive(object)) return;
  // What matters of a container is what is in it, and that is added.
  if (PyObject_IS_GC(object) && IsContainer(object) && !is_global) return;
  known_.insert(object);
  kept_.push_back(PyRef::Borrow(object));
}

bool StateGuard::AddAlive(PyObject* object) {
  if (known_.count(object) > 0) return true;
  WeakRef reference = WeakRef::To(object);
  if (!reference) return false;
  known_.insert(object);
  alive_.push_back(std::move(reference));
  return true;
}

bool StateGuard::AddAttributes(PyObject* owner, PyObject* changing_keys) {
  Snapshot snapshot;
  if (changing_keys != nullptr) {
    snapshot.changing_keys = PyRef::Borrow(changing_keys);
  }
  snapshot.owner = owner;
  snapshot.type = Py_TYPE(owner);
  PyRef attributes = PyRef::Steal(PyObject_GenericGetDict(owner, nullptr));
  PyRef seen = PyRef::Steal(PyObject_GetAttrString(owner, "__dict__"));
  PyErr_Clear();
  return AddAlive(owner) && attributes && attributes.get() == seen.get() &&
         Add(std::move(snapshot), attributes.get());
}

bool StateGuard::AddNamed(PyObject* owner, PyObject* name,
                          PyObject* changing_keys) {
  Snapshot snapshot;
  snapshot.owner = owner;
  snapshot.type = Py_TYPE(owner);
  snapshot.name = PyRef::Borrow(name);
  if (changing_keys != nullptr) {
    snapshot.changing_keys = PyRef::Borrow(changing_keys);
  }
  PyRef container = PyRef::Steal(PyObject_GetAttr(owner, name));
  PyErr_Clear();
  return AddAlive(owner) && container &&
         Add(std::move(snapshot), container.get());
}

bool StateGuard::AddItem(PyObject* container) {
  Snapshot snapshot;
  snapshot.item = container;
  snapshot.type = Py_TYPE(container);
  return Add(std::move(snapshot), container);
}

bool StateGuard::AddGlobal(PyObject* container) {
  Snapshot snapshot;
  snapshot.global = PyRef::Borrow(container);
  return Add(std::move(snapshot), container);
}

bool StateGuard::AddStrategies(PyObject* stack, PyObject* strategy) {
  if (!PyList_CheckExact(stack) || !AreOf(stack, strategy)) return false;
  Snapshot snapshot;
  snapshot.global = PyRef::Borrow(stack);
  snapshot.strategy = PyRef::Borrow(strategy);
  snapshots_.push_back(std::move(snapshot));
  return true;
}

bool StateGuard::Add(Snapshot snapshot, PyObject* container) {
  if (!IsContainer(container)) return false;
  const bool is_global = static_cast<bool>(snapshot.global);
  ForEach(container, snapshot.changing_keys, [&](PyObject* item) {
    Know(item, is_global);
    snapshot.held.push_back(item);
    return true;
  });
  snapshots_.push_back(std::move(snapshot));
  return true;
}

void StateGuard::AddType(PyTypeObject* type) {
  types_.push_back(
      {WeakRef::To(reinterpret_cast<PyObject*>(type)), VersionOf(type)});
}

PyRef StateGuard::Find(const Snapshot& snapshot) {
  if (snapshot.global) return snapshot.global;
  if (snapshot.item != nullptr) {
    return Py_TYPE(snapshot.item) == snapshot.type
               ? PyRef::Borrow(snapshot.item)
               : PyRef();
  }
  PyObject* owner = snapshot.owner;
  if (Py_TYPE(owner) != snapshot.type) return PyRef();
  PyRef found =
      PyRef::Steal(snapshot.name ? PyObject_GetAttr(owner, snapshot.name.get())
                                 : PyObject_GenericGetDict(owner, nullptr));
  if (!found) PyErr_Clear();
  return found && IsContainer(found.get()) ? std::move(found) : PyRef();
}

bool StateGuard::Holds(const Snapshot& snapshot) {
  const PyRef container = Find(snapshot);
  if (snapshot.strategy) {
    return AreOf(container.get(), snapshot.strategy.get());
  }
  const auto& held = snapshot.held;
  size_t i = 0;
  return container &&
         ForEach(container.get(), snapshot.changing_keys,
                 [&](PyObject* item) {
                   return i < held.size() && held[i++] == item;
                 }) &&
         i == held.size();
}

bool StateGuard::IsUnchanged() const {
  for (const WeakRef& object : alive_) {
    if (object.is_dead()) return false;
  }
  for (const TypeVersion& version : types_) {
    auto* type = reinterpret_cast<PyTypeObject*>(version.type.get());
    if (type == nullptr || version.version == 0 ||
        VersionOf(type) != version.version) {
      return false;
    }
  }
  for (const Snapshot& snapshot : snapshots_) {
    if (!Holds(snapshot)) return false;
  }
  return true;
}

GuardRef GuardRef::Of(PyRef object) {
  GuardRef made;
  if (!object) return made;
  PyRef capsule = PyRef::Steal(PyObject_GetAttrString(object.get(), "capsule"));
  if (capsule) {
    made.guard_ = static_cast<const StateGuard*>(
        PyCapsule_GetPointer(capsule.get(), kGuardName));
  }
  PyErr_Clear();
  if (made.guard_ != nullptr) made.object_ = std::move(object);
  return made;
}

}  // namespace terra
