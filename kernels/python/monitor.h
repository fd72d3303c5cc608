// A stretch of the runtime's Python that one thread runs at a time, and that is
// left whatever is raised in it, and wherever.
//
// Python's `with lock:` does not do: an exception that comes from outside (a
// signal's handler, another thread's) may be raised between its block and the
// release. Here there is no Python in between.
#ifndef TERRA_KERNELS_PYTHON_MONITOR_H_
#define TERRA_KERNELS_PYTHON_MONITOR_H_

#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "kernels/python/py_ref.h"

namespace terra {

// All methods need the GIL, which guards the owner.
class Monitor {
 public:
  // Calls `function(*args)` when no other thread is inside. Waits for one that
  // is, GIL released and signals served. May be called from inside. New
  // reference, or null with an exception set.
  PyObject* Run(PyObject* function, PyObject* args);
  // The same, but returns `if_busy` at once if any thread is inside, this one
  // too.
  PyObject* TryRun(PyObject* function, PyObject* args, PyObject* if_busy);
  // Whether the calling thread is inside.
  bool IsMine() const { return owner_ == PyThread_get_thread_ident(); }

 private:
  // False with an exception set.
  bool Enter();
  void Leave();

  unsigned long owner_ = 0;  // as Python numbers threads; 0: nobody is inside
  int depth_ = 0;
  std::mutex mu_;
  std::condition_variable left_;
  uint64_t num_left_ = 0;  // guarded by mu_
};

}  // namespace terra

#endif  // TERRA_KERNELS_PYTHON_MONITOR_H_
