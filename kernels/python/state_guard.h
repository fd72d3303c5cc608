// Says whether Python objects are still as they were: the state that a library
// call depends on besides its arguments.
//
// Python (runtime/object_state.py) finds the containers that make up the state:
// the dictionaries of objects, lists, sets. Each is kept with the very objects
// it held; it is unchanged while it holds the same ones. That is looked at in
// each call, so that no way of changing them goes unseen, `__dict__` included.
//
// Nothing of it is kept alive. All are known by their addresses, which are
// theirs while they live: what holds nothing (numbers, texts) is kept, of an
// object there is a weak reference. A list or dictionary knows no weak
// references: it is also known by what it holds, and is only looked at once
// what holds it has turned out to hold it still. So containers are added after
// their owners.
#ifndef TERRA_KERNELS_PYTHON_STATE_GUARD_H_
#define TERRA_KERNELS_PYTHON_STATE_GUARD_H_

#include <unordered_set>
#include <vector>

#include "kernels/python/py_ref.h"

namespace terra {

class StateGuard {
 public:
  // An object that has to be alive. False if it knows no weak references.
  bool AddAlive(PyObject* object);
  // The attributes of an object as they are now, but for some that may change
  // (a frozenset of their names, or null). False if its `__dict__` is not what
  // it keeps them in, or it knows no weak references.
  bool AddAttributes(PyObject* owner, PyObject* changing_keys);
  // A container that is an attribute which no Python code computes, but for
  // items of a dict that may change (as above). False as above, or if it is no
  // dict, list, tuple or set.
  bool AddNamed(PyObject* owner, PyObject* name, PyObject* changing_keys);
  // A container in one that has been added, or that has been added as alive.
  bool AddItem(PyObject* container);
  // A container that is there for as long as the program runs: it is kept.
  bool AddGlobal(PyObject* container);
  // A thread's stack of strategies, which is kept: whoever is on it has to be
  // in a replica of `strategy`, as with nobody on it. False if somebody is not.
  bool AddStrategies(PyObject* stack, PyObject* strategy);
  // A type, whose methods may be replaced. Nothing can be known of one without
  // weak references.
  void AddType(PyTypeObject* type);
  // Nothing more will be added.
  void Finish() { std::unordered_set<PyObject*>().swap(known_); }
  bool IsUnchanged() const;

 private:
  struct Snapshot {
    PyObject* owner = nullptr;     // whose container it is, or null:
    PyObject* item = nullptr;      // this container, which another one holds
    PyTypeObject* type = nullptr;  // of either
    PyRef name;                    // of an attribute; null: all of them
    PyRef global;                  // this container, or null
    PyRef changing_keys;           // a frozenset, or null
    PyRef strategy;                // of all that a stack holds, or null
    std::vector<PyObject*> held;   // of a dict: key, value, key, value...
  };
  struct TypeVersion {
    WeakRef type;
    unsigned int version;
  };
  void Know(PyObject* object, bool is_global);
  // Where the container is now. Null if that is not known any more.
  static PyRef Find(const Snapshot& snapshot);
  static bool Holds(const Snapshot& snapshot);
  bool Add(Snapshot snapshot, PyObject* container);

  std::unordered_set<PyObject*> known_;  // until it is finished
  std::vector<WeakRef> alive_;
  std::vector<PyRef> kept_;
  std::vector<Snapshot> snapshots_;
  std::vector<TypeVersion> types_;
};

// Of the capsule that is a guard's Python attribute `capsule`.
inline constexpr char kGuardName[] = "terra.StateGuard";

// A guard and the Python object that owns it, or none.
class GuardRef {
 public:
  GuardRef() = default;
  // Of an object whose attribute `capsule` has its guard. None, without an
  // exception, if it is no such object.
  static GuardRef Of(PyRef object);
  explicit operator bool() const { return guard_ != nullptr; }
  bool IsUnchanged() const { return guard_->IsUnchanged(); }

 private:
  PyRef object_;
  const StateGuard* guard_ = nullptr;
};

}  // namespace terra

#endif  // TERRA_KERNELS_PYTHON_STATE_GUARD_H_
