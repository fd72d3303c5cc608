// Says whether Python objects are still as they were: the state that a library
// call depends on besides its arguments.
//
// Python (runtime/object_state.py) finds the containers that make up the state:
// the dictionaries of objects, lists, sets. Each is kept with the very objects
// it held; it is unchanged while it holds the same ones. That is looked at in
// each call, so that no way of changing them goes unseen, `__dict__` included.
#ifndef TERRA_KERNELS_INTERCEPTOR_STATE_GUARD_H_
#define TERRA_KERNELS_INTERCEPTOR_STATE_GUARD_H_

#include <vector>

#include "kernels/interceptor/py_ref.h"

namespace terra {

class StateGuard {
 public:
  // A dict, a list, a tuple or a set as it is now, but for items of a dict
  // that may change: a key, a frozenset of keys, or null. False for anything
  // else.
  bool Add(PyObject* container, PyObject* changing_key);
  // A type, whose methods may be replaced.
  void AddType(PyTypeObject* type);
  bool IsUnchanged() const;

 private:
  struct Snapshot {
    PyRef container;
    PyRef changing_key;       // or null
    std::vector<PyRef> held;  // of a dict: key, value, key, value...
  };
  struct TypeVersion {
    PyRef type;
    unsigned int version;
  };
  static bool Holds(const Snapshot& snapshot);

  std::vector<Snapshot> snapshots_;
  std::vector<TypeVersion> types_;
};

// The guard behind a Python object of it (bindings).
StateGuard* GuardOf(PyObject* object);

}  // namespace terra

#endif  // TERRA_KERNELS_INTERCEPTOR_STATE_GUARD_H_
