// What this thread tells its gradient tapes itself, and its step with them.
#ifndef TERRA_KERNELS_SESSION_TAPE_EVENTS_H_
#define TERRA_KERNELS_SESSION_TAPE_EVENTS_H_

#include "kernels/python/py_ref.h"

namespace terra {

class Session;

// The session that a tape's event on this thread belongs to, or null.
Session* SessionOfTapes();

// The resource that a variable is, or the object itself where that is unknown.
PyRef HandleOfVariable(PyObject* variable);

// A trainable variable is about to be read on this thread. False with an
// exception set.
bool NoteVariableAccessed(PyObject* variable);

// Notes it, and tells the tapes.
bool AccessVariable(PyObject* variable);
// So many more forward accumulators are active on this thread.
void CountAccumulators(int change);
// So many are.
void SetAccumulators(int number);
// Notes that this thread's tapes stop recording, or go on, and lets them.
void StopTapes(bool stop);

}  // namespace terra

#endif  // TERRA_KERNELS_SESSION_TAPE_EVENTS_H_
