// A call of a library function, as its hook hands it to the session.
#ifndef TERRA_KERNELS_INTERCEPTOR_LIBRARY_CALL_H_
#define TERRA_KERNELS_INTERCEPTOR_LIBRARY_CALL_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/interceptor/py_ref.h"

namespace terra {

// What can happen to a tape; part of the history.
enum class TapeEvent : uint64_t {
  kNew = 1,
  kEnter,
  kLeave,
  kWatch,
  kWatchVariable,
  kVariableAccessed,
  kStop,
  kRestart,
  kCustomGradient,   // whose Python nobody knows
  kLibraryGradient,  // one that is known
};

struct LibraryCall {
  const char* name;              // for people
  PyObject* function;            // what runs when it is not replayed
  PyObject* args;                // a tuple
  PyObject* kwargs;              // or null
  std::vector<PyObject*> given;  // all that its ops and its result depend on
  bool differentiates;           // runs gradient functions
  bool takes_objects;            // of which Python can see a change
};

// Whether it is never changed in place and never dies, so that its address says
// what it is.
bool IsEternal(PyObject* value);

// What an assignment returns: a variable that reads the new value if it is
// looked at. Its attributes never change, so another one has the same.
bool IsUnreadVariable(const PyObject* value);
PyRef MakeUnreadVariable(PyObject* attributes, PyObject* handle);
// The handle of one and a copy of its attributes, with None in the handle's
// place; both null if it has none.
std::pair<PyRef, PyRef> PartsOfUnreadVariable(PyObject* variable);

// Whether the value is IndexedSlices, and of no subclass.
bool IsSlices(const PyObject* value);
// What IndexedSlices are made of, as a tuple. Null where they are unlike
// others.
PyRef ItemsOfSlices(PyObject* slices);

}  // namespace terra

#endif  // TERRA_KERNELS_INTERCEPTOR_LIBRARY_CALL_H_
