// What is known of the calling thread: the step that it is in, and what it is
// doing there.
#ifndef TERRA_KERNELS_PYTHON_THREAD_H_
#define TERRA_KERNELS_PYTHON_THREAD_H_

#include "kernels/python/py_ref.h"

namespace tensorflow {
struct EagerContextThreadLocalData;
}

namespace terra {

class Session;

// Nothing is made or destroyed with it, so that looking for it is cheap.
struct ThreadState {
  Session* session = nullptr;      // OFF when null
  int nested = 0;                  // NESTED when positive: an op runs Python
  int num_watchers = 0;            // that collect the variables being read
  int num_accumulators = 0;        // of forward mode that are active
  int num_told = 0;                // ops that tapes are being told of
  int num_gradients = 0;           // being computed by their Python
  int num_marked_calls = 0;        // gradient functions of the library that run
  bool was_interrupted = false;    // the last wait, by a signal's handler
  PyObject* kept_error = nullptr;  // from outside, and not raised yet
  // What TensorFlow's eager context knows of it; null until it is asked for.
  const tensorflow::EagerContextThreadLocalData* eager = nullptr;
};

// Use `CurrentThread()`.
extern __thread ThreadState current_thread;

inline ThreadState& CurrentThread() { return current_thread; }

// While alive, ops of this thread are forwarded and not recorded.
class NestedScope {
 public:
  NestedScope() { ++CurrentThread().nested; }
  ~NestedScope() { --CurrentThread().nested; }
  NestedScope(const NestedScope&) = delete;
};

// While alive, tapes are being told of an op: what runs now is not of a
// gradient, but of forward accumulators.
class TellingScope {
 public:
  TellingScope() { ++CurrentThread().num_told; }
  ~TellingScope() { --CurrentThread().num_told; }
  TellingScope(const TellingScope&) = delete;
};

// Lets go of the exception that is set, which says that something could not be
// known. One from outside (Ctrl-C, a time limit) says nothing of the kind: it
// is raised when the hook returns.
void ClearOwnError();
// Raises what was kept. For a hook's result; null if an exception is set.
PyObject* OrKeptError(PyObject* result);

}  // namespace terra

#endif  // TERRA_KERNELS_PYTHON_THREAD_H_
