#include "kernels/python/controller.h"

#include <cstdarg>

namespace terra {

bool CallController(PyObject* controller, const char* method,
                    const char* format, ...) {
  va_list va;
  va_start(va, format);
  PyRef args = PyRef::Steal(Py_VaBuildValue(format, va));
  va_end(va);
  if (!args) return false;
  PyRef callable = PyRef::Steal(PyObject_GetAttrString(controller, method));
  if (!callable) return false;
  PyRef result = PyRef::Steal(PyObject_CallObject(callable.get(), args.get()));
  return static_cast<bool>(result);
}

}  // namespace terra
