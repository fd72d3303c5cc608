#include "kernels/python/monitor.h"

#include <chrono>

namespace terra {
namespace {

constexpr std::chrono::milliseconds kSlice{50};

}  // namespace

bool Monitor::Enter() {
  const unsigned long thread = PyThread_get_thread_ident();
  while (owner_ != 0 && owner_ != thread) {
    std::unique_lock<std::mutex> lock(mu_);
    const uint64_t before = num_left_;
    {
      // The owner leaves with the GIL, which this thread has until here.
      PyThreadState* state = PyEval_SaveThread();
      left_.wait_for(lock, kSlice, [&] { return num_left_ != before; });
      lock.unlock();
      PyEval_RestoreThread(state);
    }
    if (PyErr_CheckSignals() != 0) return false;
  }
  owner_ = thread;
  ++depth_;
  return true;
}

void Monitor::Leave() {
  if (--depth_ > 0) return;
  owner_ = 0;
  std::lock_guard<std::mutex> lock(mu_);
  ++num_left_;
  left_.notify_all();
}

PyObject* Monitor::Run(PyObject* function, PyObject* args) {
  if (!Enter()) return nullptr;
  PyObject* result = PyObject_CallObject(function, args);
  Leave();
  return result;
}

PyObject* Monitor::TryRun(PyObject* function, PyObject* args,
                          PyObject* if_busy) {
  if (owner_ != 0) return PyRef::Borrow(if_busy).release();
  return Run(function, args);
}

}  // namespace terra
