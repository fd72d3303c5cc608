// Hooks around TensorFlow's tape: its events are part of a step's history, and
// its gradient is a library call that may be replayed.
#ifndef TERRA_KERNELS_INTERCEPTOR_TAPE_HOOKS_H_
#define TERRA_KERNELS_INTERCEPTOR_TAPE_HOOKS_H_

#include <string>

#include "kernels/interceptor/py_ref.h"

namespace terra {

// Wraps a function of pywrap_tfe, given by its name without "TFE_Py_". Null
// with an exception set for one that has no hook.
PyRef WrapTapeFunction(const std::string& name, PyObject* original);

// A trainable variable is about to be read on this thread. False with an
// exception set.
bool NoteVariableAccessed(PyObject* variable);

// Notes it, and tells the tapes.
bool AccessVariable(PyObject* variable);
// Notes that this thread's tapes stop recording, or go on, and lets them.
void StopTapes(bool stop);

}  // namespace terra

#endif  // TERRA_KERNELS_INTERCEPTOR_TAPE_HOOKS_H_
