// A whole step, from its begin to its end, and what makes sure that it ends:
// whatever is raised in the user's function or at whatever line of the
// controller's Python (docs/design/0011).
#ifndef TERRA_KERNELS_SESSION_STEP_RUN_H_
#define TERRA_KERNELS_SESSION_STEP_RUN_H_

#include "kernels/python/py_ref.h"

namespace terra {

class Session;

// Runs `function(*args, **kwargs)` as a step of the session. New reference, or
// null with an exception set. Afterwards the step is over: the thread is out of
// it, and it is in flight or released.
PyObject* RunStep(Session* session, PyObject* function, PyObject* args,
                  PyObject* kwargs);

// Calls the controller's on_divergence, and goes on with what it has begun
// until that is done, however often it is interrupted. False with an exception
// set.
bool DivergeForSure(Session* session, const char* reason, const char* detail);

// Calls `function(*args)` in a scope of TensorFlow's (a context manager; None:
// in none), and notes in `results[key]` what it returned, or the exception that
// it raised, before Python can be interrupted. False with an exception set if
// it raised what is no `Exception`.
bool RunOnce(PyObject* scope, PyObject* results, PyObject* key,
             PyObject* function, PyObject* args);

// Calls `function()` with this thread's ops forwarded and its tapes stopped.
// New reference, or null with an exception set.
PyObject* RunUnrecorded(PyObject* function);

}  // namespace terra

#endif  // TERRA_KERNELS_SESSION_STEP_RUN_H_
