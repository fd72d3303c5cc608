// Objects of TensorFlow's that calls of its functions take and return.
#ifndef TERRA_KERNELS_PLAN_LIBRARY_OBJECTS_H_
#define TERRA_KERNELS_PLAN_LIBRARY_OBJECTS_H_

#include <utility>

#include "kernels/python/py_ref.h"

namespace terra {

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

#endif  // TERRA_KERNELS_PLAN_LIBRARY_OBJECTS_H_
