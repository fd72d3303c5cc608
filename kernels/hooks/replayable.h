// A library function that may be replayed, in the place of the original.
#ifndef TERRA_KERNELS_HOOKS_REPLAYABLE_H_
#define TERRA_KERNELS_HOOKS_REPLAYABLE_H_

#include <string>

#include "kernels/python/py_ref.h"

namespace terra {

// A callable that stands for the Python function `original`: its attributes
// and signature are the original's, and as a class's attribute it is a method.
// Null with an exception set.
PyRef MakeReplayable(const std::string& name, PyObject* original);

// A callable (args, kwargs[, marker]) that calls the Python function
// `original`, or does without it: a PureCall. Null with an exception set.
PyRef MakePureFunction(const std::string& name, PyObject* original,
                       bool takes_objects, bool is_declared);

}  // namespace terra

#endif  // TERRA_KERNELS_HOOKS_REPLAYABLE_H_
