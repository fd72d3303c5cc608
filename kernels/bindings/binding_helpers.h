// What the files of the Python module share: conversions between Python and
// TensorFlow.
#ifndef TERRA_KERNELS_BINDINGS_BINDING_HELPERS_H_
#define TERRA_KERNELS_BINDINGS_BINDING_HELPERS_H_

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/python/py_ref.h"
#include "kernels/python/tf_python.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/framework/tensor_shape.h"

namespace terra {

namespace py = pybind11;

inline PyRef RefOf(const py::handle& object) {
  return PyRef::Borrow(object.ptr());
}

inline py::object ObjectOf(PyRef ref) {
  if (!ref) return py::none();
  return py::reinterpret_steal<py::object>(ref.release());
}

inline void CheckTensor(const py::handle& object) {
  if (!EagerTensor_CheckExact(object.ptr())) {
    throw py::type_error("expected an EagerTensor");
  }
}

inline tensorflow::Tensor ValueOf(const py::handle& object) {
  CheckTensor(object);
  const tensorflow::Tensor* value = nullptr;
  const absl::Status status = HandleOf(object.ptr())->Tensor(&value);
  if (!status.ok()) throw std::runtime_error(std::string(status.message()));
  return *value;
}

// None is an unknown rank, -1 an unknown dimension.
inline tensorflow::PartialTensorShape ShapeOf(const py::object& dims) {
  if (dims.is_none()) return tensorflow::PartialTensorShape();
  return tensorflow::PartialTensorShape(dims.cast<std::vector<int64_t>>());
}

struct Plan;
// What the cursor follows, as plain data: a dictionary with a list for each
// table (Python: runtime/plan_tables.py).
py::dict TablesOf(const Plan& plan);

// Adds the class Plan to the module.
void BindPlan(py::module_& m);
// Adds the class Session, and Mode.
void BindSession(py::module_& m);
// Adds what runs steps, and Monitor.
void BindStepRun(py::module_& m);

}  // namespace terra

#endif  // TERRA_KERNELS_BINDINGS_BINDING_HELPERS_H_
