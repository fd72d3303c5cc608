// Ops that must not overtake what live steps have not settled yet.
#ifndef TERRA_KERNELS_SESSION_SETTLING_H_
#define TERRA_KERNELS_SESSION_SETTLING_H_

#include "kernels/call/call.h"
#include "kernels/python/py_ref.h"

namespace terra {

class Session;

// Settles every session but `self` that the call must not overtake. False
// with an exception set.
bool SettleCall(const Call& call, const Session* self);

// The same for an op that runs outside of every session, whose inputs are among
// `args` from `first` on.
bool SettleArguments(PyObject* py_name, PyObject* args, Py_ssize_t first,
                     Py_ssize_t last);

}  // namespace terra

#endif  // TERRA_KERNELS_SESSION_SETTLING_H_
