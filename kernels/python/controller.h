// How native code talks to the Python controller of a session.
#ifndef TERRA_KERNELS_PYTHON_CONTROLLER_H_
#define TERRA_KERNELS_PYTHON_CONTROLLER_H_

#include "kernels/python/py_ref.h"

namespace terra {

// Calls a method of a session's controller (Python: runtime/session.py) with
// arguments in Py_BuildValue's format. False with an exception set.
bool CallController(PyObject* controller, const char* method,
                    const char* format, ...);

}  // namespace terra

#endif  // TERRA_KERNELS_PYTHON_CONTROLLER_H_
