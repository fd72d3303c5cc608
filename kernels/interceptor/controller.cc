#include "kernels/interceptor/controller.h"

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

std::string Describe(const Call& call) {
  if (call.info != nullptr) return call.info->name;
  if (PyBytes_Check(call.py_name)) return PyBytes_AS_STRING(call.py_name);
  PyRef text = PyRef::Steal(PyObject_Str(call.py_name));
  const char* utf8 = text ? PyUnicode_AsUTF8(text.get()) : nullptr;
  if (utf8 == nullptr) {
    PyErr_Clear();
    return "?";
  }
  return utf8;
}

}  // namespace terra
