// What this library uses of TensorFlow's Python runtime, of one minor version
// (docs/contributing.md says what to look at when there is another). Some is
// declared here because the wheel carries the symbols but not all of the
// headers.
#ifndef TERRA_KERNELS_PYTHON_TF_PYTHON_H_
#define TERRA_KERNELS_PYTHON_TF_PYTHON_H_

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "tensorflow/c/eager/c_api.h"
#include "tensorflow/c/eager/tfe_context_internal.h"
#include "tensorflow/c/eager/tfe_tensorhandle_internal.h"
#include "tensorflow/core/common_runtime/eager/context.h"
#include "tensorflow/core/common_runtime/eager/tensor_handle.h"
#include "tensorflow/python/eager/pywrap_tfe.h"

// From tensorflow/python/eager/pywrap_tensor.h and pywrap_tfe.cc.
void RaiseFallbackException(const char* message);
extern PyTypeObject* EagerTensorType;

namespace tensorflow {
TFE_TensorHandle* ConvertToEagerTensor(TFE_Context* ctx, PyObject* value,
                                       DataType dtype, const char* device_name);
}  // namespace tensorflow

namespace terra {

// The local tensor handle behind an EagerTensor.
inline tensorflow::TensorHandle* HandleOf(const PyObject* eager_tensor) {
  return tensorflow::TensorHandleFromInterface(
      tensorflow::unwrap(EagerTensor_Handle(eager_tensor)));
}

// The process's eager context, given by Python at the first step (and again if
// TensorFlow has made another), and what else Python gives.
struct EagerRuntime {
  TFE_Context* c_context = nullptr;
  tensorflow::EagerContext* context = nullptr;
  PyObject* py_context = nullptr;          // context.context()
  PyObject* execute = nullptr;             // TFE_Py_Execute
  PyObject* execute_cancelable = nullptr;  // TFE_Py_ExecuteCancelable
  PyObject* record_gradient = nullptr;     // TFE_Py_RecordGradient
  PyObject* variable_watcher = nullptr;    // ...VariableWatcherVariableAccessed
  PyObject* resource_variable_type = nullptr;  // BaseResourceVariable
  ptrdiff_t tensor_id_offset = 0;           // where an EagerTensor keeps its id
  PyObject* shape_type = nullptr;           // TensorShape
  PyObject* indexed_slices_type = nullptr;  // IndexedSlices
  PyObject* variable_type = nullptr;        // ResourceVariable
  PyObject* unread_variable_type = nullptr;  // _UnreadVariable
  PyObject* symbolic_tensor_type = nullptr;  // SymbolicTensor
  PyObject* dtype_type = nullptr;            // DType
  PyObject* numpy_scalar_type = nullptr;     // numpy.generic
  PyObject* keras_state = nullptr;           // Keras' module of global state
  PyObject* keras_variable_type = nullptr;   // its Variable for TensorFlow
  PyObject* next_id = nullptr;               // Python: of tensors
  PyObject* canonical_attributes =
      nullptr;                            // Python: see Plan::AttributesMatch
  PyObject* result_attributes = nullptr;  // Python: see ResultsFit
};

EagerRuntime& Runtime();

// Whether an object is a tensor of a graph that is being built.
inline bool IsSymbolic(PyObject* object) {
  return PyObject_TypeCheck(
      object, reinterpret_cast<PyTypeObject*>(Runtime().symbolic_tensor_type));
}

// The name of the calling thread's device scope; "" where there is none.
std::string DeviceScope();

// Where a tensor says that it is: what ran the op, and whose memory holds it.
// Both null: on the host.
struct Placement {
  tensorflow::Device* op_device = nullptr;
  tensorflow::Device* device = nullptr;
};

// That of an op's result, by the names that it has in Python. Only CPUs count:
// the values of others are handed over in the host's memory.
Placement FindPlacement(const std::string& op_device,
                        const std::string& device);

// A handle of a value that is in the host's memory.
tensorflow::TensorHandle* NewLocal(tensorflow::Tensor value,
                                   const Placement& placement);
// The same, where another tensor is.
tensorflow::TensorHandle* NewLocalLike(tensorflow::Tensor value,
                                       const tensorflow::TensorHandle& other);

// The number by which tapes know an EagerTensor: one for each Python object.
// Several objects may share a handle (TensorFlow caches those of scalars).
inline int64_t IdOf(const PyObject* eager_tensor) {
  int64_t id;
  std::memcpy(
      &id,
      reinterpret_cast<const char*>(eager_tensor) + Runtime().tensor_id_offset,
      sizeof(id));
  return id;
}

// Finds out where, by tensors whose ids are known. False if that is not clear.
bool FindTensorIds(PyObject* tensors);

}  // namespace terra

#endif  // TERRA_KERNELS_PYTHON_TF_PYTHON_H_
