#include "kernels/plan/library_objects.h"

#include "kernels/python/tf_python.h"

namespace terra {
namespace {

PyObject* HandleName() {
  static PyObject* name = PyUnicode_InternFromString("_handle");
  return name;
}

}  // namespace

bool IsEternal(PyObject* value) {
  if (PyType_Check(value)) {
    return !PyType_HasFeature(reinterpret_cast<PyTypeObject*>(value),
                              Py_TPFLAGS_HEAPTYPE);
  }
  return value == Py_None || PyBool_Check(value) || value == Py_Ellipsis ||
         reinterpret_cast<PyObject*>(Py_TYPE(value)) == Runtime().dtype_type;
}

bool IsUnreadVariable(const PyObject* value) {
  return reinterpret_cast<const PyObject*>(Py_TYPE(value)) ==
         Runtime().unread_variable_type;
}

PyRef MakeUnreadVariable(PyObject* attributes, PyObject* handle) {
  auto* type = reinterpret_cast<PyTypeObject*>(Runtime().unread_variable_type);
  PyRef nothing = PyRef::Steal(PyTuple_New(0));
  PyRef made =
      PyRef::Steal(PyBaseObject_Type.tp_new(type, nothing.get(), nullptr));
  PyRef copy = PyRef::Steal(PyDict_Copy(attributes));
  if (!made || !copy || PyDict_SetItem(copy.get(), HandleName(), handle) < 0 ||
      PyObject_SetAttrString(made.get(), "__dict__", copy.get()) < 0) {
    return PyRef();
  }
  return made;
}

std::pair<PyRef, PyRef> PartsOfUnreadVariable(PyObject* variable) {
  PyRef handle = PyRef::Steal(PyObject_GetAttr(variable, HandleName()));
  PyRef attributes = PyRef::Steal(PyObject_GetAttrString(variable, "__dict__"));
  PyErr_Clear();
  if (!handle || !attributes || !EagerTensor_CheckExact(handle.get()))
    return {};
  PyRef copy = PyRef::Steal(PyDict_Copy(attributes.get()));
  PyDict_SetItem(copy.get(), HandleName(), Py_None);
  return {std::move(handle), std::move(copy)};
}

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
