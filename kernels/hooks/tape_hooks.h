// Hooks around TensorFlow's tape: its events are part of a step's history, and
// its gradient is a library call that may be replayed.
#ifndef TERRA_KERNELS_HOOKS_TAPE_HOOKS_H_
#define TERRA_KERNELS_HOOKS_TAPE_HOOKS_H_

#include <string>

#include "kernels/python/py_ref.h"

namespace terra {

// Wraps a function of pywrap_tfe, given by its name without "TFE_Py_". Null
// with an exception set for one that has no hook.
PyRef WrapTapeFunction(const std::string& name, PyObject* original);

}  // namespace terra

#endif  // TERRA_KERNELS_HOOKS_TAPE_HOOKS_H_
