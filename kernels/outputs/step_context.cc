#include "kernels/outputs/step_context.h"

#include "kernels/python/controller.h"

namespace terra {

bool StepContext::LogLines() const {
  if (!lamp_.has_lines()) return true;
  NestedScope nested;  // what a handler runs is no part of the step
  return CallController(controller_, "on_log", "()");
}

PyObject* StepContext::LogBehind(PyObject* result) const {
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  if (LogLines()) {
    PyErr_Restore(type, value, traceback);
    return result;
  }
  Py_XDECREF(type);
  Py_XDECREF(value);
  Py_XDECREF(traceback);
  Py_XDECREF(result);
  return nullptr;
}

}  // namespace terra
