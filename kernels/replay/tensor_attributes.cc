#include "kernels/replay/tensor_attributes.h"

#include <array>

#include "kernels/outputs/outputs.h"
#include "kernels/python/python_scopes.h"
#include "kernels/python/tf_python.h"

namespace terra {
namespace {

PyObject* CarriedName(int which) {
  static PyObject* const names[kNumCarried] = {
      PyUnicode_InternFromString("_keras_mask"),
      PyUnicode_InternFromString("_keras_logits")};
  return names[which];
}

// A method that TensorFlow gives to slices of variables.
PyObject* AssignName() {
  static PyObject* name = PyUnicode_InternFromString("assign");
  return name;
}

// What `tf.Variable` sets of its handle, for good. Keys know handles by
// identity.
const std::array<PyObject*, 3>& NamesOfHandles() {
  static const auto* names = new std::array<PyObject*, 3>{
      PyUnicode_InternFromString("_parent_trackable"),
      PyUnicode_InternFromString("_name"),
      PyUnicode_InternFromString("_unique_id")};
  return *names;
}

// Whether it is the method that TensorFlow makes for a slice.
bool IsAssignOfSlice(PyObject* value) {
  if (!PyFunction_Check(value)) return false;
  PyObject* module =
      PyDict_GetItemString(PyFunction_GetGlobals(value), "__name__");
  return module != nullptr && PyUnicode_Check(module) &&
         PyUnicode_CompareWithASCIIString(
             module, "tensorflow.python.ops.array_ops") == 0;
}

// The same function with other cells. Null with an exception set.
PyRef WithClosure(PyObject* function, PyObject* cells) {
  static PyObject* name = PyUnicode_InternFromString("__qualname__");
  PyRef qualified = PyRef::Steal(PyObject_GetAttr(function, name));
  PyRef made = PyRef::Steal(PyFunction_NewWithQualName(
      PyFunction_GetCode(function), PyFunction_GetGlobals(function),
      qualified.get()));
  PyObject* defaults = PyFunction_GetDefaults(function);
  if (!made || PyFunction_SetClosure(made.get(), cells) < 0 ||
      PyFunction_SetDefaults(made.get(), defaults ? defaults : Py_None) < 0) {
    return PyRef();
  }
  return made;
}

}  // namespace

uint64_t TensorAttributes::kind() const {
  uint64_t kind = is_zeros + 2 * is_slice + 4 * has_others;
  for (const PyRef& value : carried) {
    kind = 3 * kind + (!value ? 0 : value.get() == Py_None ? 1 : 2);
  }
  return kind;
}

TensorAttributes AttributesOf(PyObject* tensor) {
  TensorAttributes found;
  if (!TensorHasAttributes(tensor)) return found;
  PyObject** attributes = _PyObject_GetDictPtr(tensor);
  if (attributes == nullptr || *attributes == nullptr) return found;
  Py_ssize_t num_others = PyDict_GET_SIZE(*attributes);
  if (num_others == 0) return found;
  for (int i = 0; i < kNumCarried; ++i) {
    PyObject* value = PyDict_GetItem(*attributes, CarriedName(i));
    if (value == nullptr) continue;
    found.carried[i] = PyRef::Borrow(value);
    num_others -= value == Py_None || EagerTensor_CheckExact(value);
  }
  if (HandleOf(tensor)->DataType() == tensorflow::DT_RESOURCE) {
    for (PyObject* name : NamesOfHandles()) {
      num_others -= PyDict_GetItem(*attributes, name) != nullptr;
    }
  }
  if (num_others == 0) return found;
  if (num_others == 1) {
    found.is_zeros = PyDict_GetItem(*attributes, ZerosMark()) == Py_True;
    PyObject* assign = PyDict_GetItem(*attributes, AssignName());
    found.is_slice = assign != nullptr && IsAssignOfSlice(assign);
  }
  found.has_others = !found.is_zeros && !found.is_slice;
  return found;
}

bool SetCarried(PyObject* tensor, int which, PyObject* value) {
  return PyObject_SetAttr(tensor, CarriedName(which), value) == 0;
}

bool MarkAsZeros(PyObject* tensor) {
  return PyObject_SetAttr(tensor, ZerosMark(), Py_True) == 0;
}

PyRef AssignOfSlice(const Outputs& outputs, PyObject* tensor,
                    PyObject* variable) {
  PyRef assign = PyRef::Steal(PyObject_GetAttr(tensor, AssignName()));
  PyObject* closure = assign ? PyFunction_GetClosure(assign.get()) : nullptr;
  if (closure == nullptr) return PyRef();
  const Py_ssize_t n = PyTuple_GET_SIZE(closure);
  PyRef cells = PyRef::Steal(PyTuple_New(n));
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* held = PyCell_GET(PyTuple_GET_ITEM(closure, i));
    if (held == nullptr ||
        (EagerTensor_CheckExact(held) && outputs.Find(HandleOf(held)) >= 0)) {
      return PyRef();
    }
    PyTuple_SET_ITEM(cells.get(), i,
                     PyCell_New(held == variable ? nullptr : held));
  }
  return WithClosure(assign.get(), cells.get());
}

bool MarkAsSlice(PyObject* tensor, PyObject* assign, PyObject* variable) {
  PyObject* closure = PyFunction_GetClosure(assign);
  const Py_ssize_t n = PyTuple_GET_SIZE(closure);
  PyRef cells = PyRef::Steal(PyTuple_New(n));
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* held = PyCell_GET(PyTuple_GET_ITEM(closure, i));
    PyTuple_SET_ITEM(cells.get(), i,
                     PyCell_New(held == nullptr ? variable : held));
  }
  PyRef made = WithClosure(assign, cells.get());
  return made && PyObject_SetAttr(tensor, AssignName(), made.get()) == 0;
}

}  // namespace terra
