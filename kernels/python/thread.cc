#include "kernels/python/thread.h"

#include <utility>

namespace terra {

__thread ThreadState current_thread;

void ClearOwnError() {
  ThreadState& thread = CurrentThread();
  const bool is_from_outside =
      PyErr_Occurred() && (std::exchange(thread.was_interrupted, false) ||
                           !PyErr_ExceptionMatches(PyExc_Exception));
  if (is_from_outside) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != nullptr) PyException_SetTraceback(value, traceback);
    Py_XSETREF(thread.kept_error, value);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
  }
  PyErr_Clear();
}

PyObject* OrKeptError(PyObject* result) {
  PyRef kept = PyRef::Steal(std::exchange(CurrentThread().kept_error, nullptr));
  if (!kept || result == nullptr) return result;  // it is set, or another is
  Py_DECREF(result);
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(kept.get())), kept.get());
  return nullptr;
}

}  // namespace terra
