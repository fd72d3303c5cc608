// The three hooks in TensorFlow's eager entry points, and what they know about
// the calling thread.
#ifndef TERRA_KERNELS_INTERCEPTOR_HOOKS_H_
#define TERRA_KERNELS_INTERCEPTOR_HOOKS_H_

#include "kernels/interceptor/py_ref.h"

namespace terra {

class Session;
struct Call;

struct ThreadState {
  Session* session = nullptr;      // OFF when null
  int nested = 0;                  // NESTED when positive: an op runs Python
  int num_watchers = 0;            // that collect the variables being read
  int num_gradients = 0;           // being computed by their Python
  bool was_interrupted = false;    // the last wait, by a signal's handler
  PyObject* kept_error = nullptr;  // from outside, and not raised yet
};

ThreadState& CurrentThread();

// While alive, ops of this thread are forwarded and not recorded.
class NestedScope {
 public:
  NestedScope() { ++CurrentThread().nested; }
  ~NestedScope() { --CurrentThread().nested; }
  NestedScope(const NestedScope&) = delete;
};

PyObject* FastPathExecuteHook(PyObject* self, PyObject* args);
PyObject* ExecuteHook(PyObject* self, PyObject* args);
PyObject* RecordGradientHook(PyObject* self, PyObject* args);

// Settles every session but `self` that the call must not overtake. False
// with an exception set.
bool SettleCall(const Call& call, const Session* self);

// Lets go of the exception that is set, which says that something could not be
// known. One from outside (Ctrl-C, a time limit) says nothing of the kind: it
// is raised when the hook returns.
void ClearOwnError();
// Raises what was kept. For a hook's result; null if an exception is set.
PyObject* OrKeptError(PyObject* result);

// Makes sure that the value (or only the shape) of `tensor` can be read
// without waiting for a Python that waits for this read. False with an
// exception set.
enum class Reading { kValue, kShape };
bool EnsureReadable(PyObject* tensor, Reading reading);

}  // namespace terra

#endif  // TERRA_KERNELS_INTERCEPTOR_HOOKS_H_
