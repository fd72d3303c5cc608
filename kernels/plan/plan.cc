#include "kernels/plan/plan.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "kernels/plan/hash.h"
#include "kernels/python/thread.h"
#include "tensorflow/core/framework/resource_handle.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/framework/tensor.pb.h"

namespace terra {
namespace {

constexpr size_t kMaxAttributeVariants = 8;

bool IsSeedName(PyObject* key) {
  return PyUnicode_CompareWithASCIIString(key, "seed") == 0 ||
         PyUnicode_CompareWithASCIIString(key, "seed2") == 0;
}

// 1 equal, 0 not, -1 exception. 1 and True and 1.0 are not equal here.
int SameValue(PyObject* a, PyObject* b) {
  if (a == b) return 1;
  if (Py_TYPE(a) != Py_TYPE(b)) return 0;
  if (PyFloat_CheckExact(a)) {
    const double x = PyFloat_AS_DOUBLE(a);
    const double y = PyFloat_AS_DOUBLE(b);
    return std::memcmp(&x, &y, sizeof(x)) == 0;
  }
  if (PyList_CheckExact(a) || PyTuple_CheckExact(a)) {
    const Py_ssize_t n = PySequence_Fast_GET_SIZE(a);
    if (PySequence_Fast_GET_SIZE(b) != n) return 0;
    for (Py_ssize_t i = 0; i < n; ++i) {
      const int same = SameValue(PySequence_Fast_GET_ITEM(a, i),
                                 PySequence_Fast_GET_ITEM(b, i));
      if (same != 1) return same;
    }
    return 1;
  }
  return PyObject_RichCompareBool(a, b, Py_EQ);
}

int SameTuple(PyObject* expected, PyObject* actual, bool skip_seeds) {
  if (expected == actual) return 1;
  const Py_ssize_t n = PyTuple_GET_SIZE(expected);
  if (PyTuple_GET_SIZE(actual) != n) return 0;
  for (Py_ssize_t i = 0; i + 1 < n; i += 2) {
    PyObject* name = PyTuple_GET_ITEM(expected, i);
    int same = SameValue(name, PyTuple_GET_ITEM(actual, i));
    if (same == 1 && !(skip_seeds && IsSeedName(name))) {
      same = SameValue(PyTuple_GET_ITEM(expected, i + 1),
                       PyTuple_GET_ITEM(actual, i + 1));
    }
    if (same != 1) return same;
  }
  return 1;
}

// Whether a function of TensorFlow's has results of these types. A function
// whose types depend on its attributes may.
bool FunctionReturns(PyObject* py_name,
                     const std::vector<OutputSpec>& outputs) {
  const char* name = PyBytes_Check(py_name) ? PyBytes_AS_STRING(py_name)
                                            : PyUnicode_AsUTF8(py_name);
  if (name == nullptr) {
    ClearOwnError();
    return true;
  }
  const auto record = Runtime().context->FindRecord(name);
  if (record == nullptr) return true;
  const auto& results = record->fdef().signature().output_arg();
  const auto is_given = [](const auto& result) {
    return result.type() == tensorflow::DT_INVALID;
  };
  if (std::any_of(results.begin(), results.end(), is_given)) return true;
  return std::equal(results.begin(), results.end(), outputs.begin(),
                    outputs.end(), [](const auto& result, const auto& spec) {
                      return result.type() == spec.dtype;
                    });
}

}  // namespace

tensorflow::TensorHandle* NewPending(tensorflow::DataType dtype,
                                     const Placement& placement) {
  tensorflow::EagerContext* context = Runtime().context;
  tensorflow::Device* op_device =
      placement.op_device == nullptr ? context->HostCPU() : placement.op_device;
  return tensorflow::TensorHandle::CreateEmptyLocalHandle(
      placement.device, op_device, nullptr, dtype, context);
}

void TellShape(const tensorflow::PartialTensorShape& shape,
               tensorflow::TensorHandle* pending) {
  using tensorflow::shape_inference::DimensionHandle;
  using tensorflow::shape_inference::DimensionOrConstant;
  using tensorflow::shape_inference::InferenceContext;
  static const auto* def = new tensorflow::OpDef;
  static const auto* node = new tensorflow::NodeDef;
  InferenceContext context(
      0, tensorflow::AttrSlice(*node), *def,
      std::vector<tensorflow::PartialTensorShape>{},
      std::vector<const tensorflow::Tensor*>{},
      std::vector<tensorflow::PartialTensorShape>{},
      std::vector<std::unique_ptr<std::vector<
          std::pair<tensorflow::PartialTensorShape, tensorflow::DataType>>>>{});
  std::vector<DimensionHandle> dims;
  for (int i = 0; i < shape.dims(); ++i) {
    dims.push_back(context.MakeDim(DimensionOrConstant(shape.dim_size(i))));
  }
  pending->SetInferenceShape(&context, context.MakeShape(dims));
}

void OutputSpec::SetShape(const tensorflow::PartialTensorShape& new_shape) {
  shape = new_shape;
  shape_known = shape.IsFullyDefined();
  if (!shape_known) return;
  shape_hash = HashOfShape(shape);
  shaped.reset(NewPending(dtype, placement));
  TellShape(shape, shaped.get());
}

PyRef Plan::Hold() const {
  const size_t n = launch_inputs.size() + captured.size();
  PyRef held = PyRef::Steal(PyTuple_New(static_cast<Py_ssize_t>(n)));
  Py_ssize_t place = 0;
  for (const auto* tensors : {&launch_inputs, &captured}) {
    for (const WeakRef& tensor : *tensors) {
      if (!held || tensor.get() == nullptr) return PyRef();
      PyTuple_SET_ITEM(held.get(), place++,
                       PyRef::Borrow(tensor.get()).release());
    }
  }
  return held;
}

int AttributesMatch(PlanNode* node, const Call& call) {
  for (const auto& [route, attrs] : node->attrs) {
    if (route != call.route) continue;
    const int same = SameTuple(attrs.get(), call.attrs.get(), node->seeded);
    // An odd value (an array, NaN) is left to the canonical form.
    if (same < 0) ClearOwnError();
    if (same == 1) return 1;
  }
  PyRef route = PyRef::Steal(PyBool_FromLong(call.route == Route::kFast));
  PyRef canonical = PyRef::Steal(
      PyObject_CallFunctionObjArgs(Runtime().canonical_attributes, call.py_name,
                                   call.attrs.get(), route.get(), nullptr));
  if (!canonical) return -1;
  const int same =
      PyObject_RichCompareBool(canonical.get(), node->canonical.get(), Py_EQ);
  if (same == 1 && node->attrs.size() < kMaxAttributeVariants) {
    node->attrs.emplace_back(call.route, call.attrs);
  }
  return same;
}

bool ResultsFit(PlanNode* node, const Call& call) {
  if (node->info != call.info) return false;
  if (call.info == nullptr) return FunctionReturns(call.py_name, node->outputs);
  int same = -1;
  if (!node->result_attributes) {
    same = AttributesMatch(node, call);
  } else {
    PyRef attributes = PyRef::Steal(PyObject_CallFunctionObjArgs(
        Runtime().result_attributes, call.py_name, call.attrs.get(), nullptr));
    if (attributes) {
      same = PyObject_RichCompareBool(attributes.get(),
                                      node->result_attributes.get(), Py_EQ);
    }
  }
  if (same < 0) ClearOwnError();
  return same == 1;
}

bool ConstantMatches(const ConstantSlot& constant,
                     const tensorflow::Tensor& tensor) {
  const tensorflow::Tensor& value = constant.value;
  if (value.dtype() != tensor.dtype() || value.shape() != tensor.shape()) {
    return false;
  }
  if (value.dtype() == tensorflow::DT_STRING) {
    const auto a = value.flat<tensorflow::tstring>();
    const auto b = tensor.flat<tensorflow::tstring>();
    for (int64_t i = 0; i < a.size(); ++i) {
      if (a(i) != b(i)) return false;
    }
    return true;
  }
  const auto a = value.tensor_data();
  const auto b = tensor.tensor_data();
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size()) == 0);
}

uint64_t ResourceKey(const tensorflow::Tensor& tensor) {
  if (tensor.dtype() != tensorflow::DT_RESOURCE || tensor.NumElements() < 1) {
    return 0;
  }
  const auto& handle = tensor.flat<tensorflow::ResourceHandle>()(0);
  if (handle.IsRefCounting()) {
    return reinterpret_cast<uintptr_t>(handle.resource().get());
  }
  return std::hash<std::string>()(handle.container() + "\n" + handle.name() +
                                  "\n" + handle.maybe_type_name()) |
         1;
}

}  // namespace terra
