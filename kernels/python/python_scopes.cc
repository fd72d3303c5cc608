#include "kernels/python/python_scopes.h"

namespace terra {
namespace {

// Visits what an object holds: whether it is more than its type.
int FindAttribute(PyObject* held, void* found) {
  if (PyType_Check(held)) return 0;
  *static_cast<bool*>(found) = true;
  return 1;
}

}  // namespace

bool TensorHasAttributes(PyObject* tensor) {
  bool has_some = false;
  Py_TYPE(tensor)->tp_traverse(tensor, FindAttribute, &has_some);
  return has_some;
}

PyObject* ZerosMark() {
  static PyObject* mark = PyUnicode_InternFromString("_is_zeros_tensor");
  return mark;
}

bool IsMarkedAsZeros(PyObject* tensor) {
  if (!TensorHasAttributes(tensor)) return false;
  PyObject** attributes = _PyObject_GetDictPtr(tensor);
  return attributes != nullptr && *attributes != nullptr &&
         PyDict_GetItem(*attributes, ZerosMark()) == Py_True;
}

}  // namespace terra
