#include "kernels/interceptor/library_call.h"

#include "kernels/interceptor/tf_python.h"

namespace terra {

bool IsSlices(const PyObject* value) {
  return reinterpret_cast<const PyObject*>(Py_TYPE(value)) ==
         Runtime().indexed_slices_type;
}

PyRef ItemsOfSlices(PyObject* slices) {
  PyRef items = PyRef::Steal(PyTuple_New(3));
  const char* names[] = {"_values", "_indices", "_dense_shape"};
  for (int i = 0; i < 3; ++i) {
    PyObject* item = PyObject_GetAttrString(slices, names[i]);
    if (item == nullptr) {
      PyErr_Clear();
      return PyRef();
    }
    PyTuple_SET_ITEM(items.get(), i, item);
  }
  return items;
}

}  // namespace terra
