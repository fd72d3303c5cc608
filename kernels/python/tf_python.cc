#include "kernels/python/tf_python.h"

#include <utility>
#include <vector>

#include "kernels/python/py_ref.h"
#include "kernels/python/tf_python.h"
#include "tensorflow/core/framework/types.h"

namespace terra {
namespace {

using tensorflow::Device;
using tensorflow::TensorHandle;

bool IsCpu(const Device* device) {
  return device == nullptr || device->device_type() == tensorflow::DEVICE_CPU;
}

Device* FindDevice(const std::string& name) {
  Device* device = nullptr;
  if (!Runtime().context->FindDeviceFromName(name.c_str(), &device).ok()) {
    return nullptr;
  }
  return device;
}

}  // namespace

EagerRuntime& Runtime() {
  static auto* runtime = new EagerRuntime;
  return *runtime;
}

std::string DeviceScope() {
  static PyObject* name = PyUnicode_InternFromString("device_name");
  PyRef device = PyRef::Steal(PyObject_GetAttr(Runtime().py_context, name));
  const char* text = device && PyUnicode_Check(device.get())
                         ? PyUnicode_AsUTF8(device.get())
                         : nullptr;
  PyErr_Clear();
  return text == nullptr ? "" : text;
}

Placement FindPlacement(const std::string& op_device,
                        const std::string& device) {
  Placement found = {FindDevice(op_device), FindDevice(device)};
  if (!IsCpu(found.op_device) || !IsCpu(found.device)) return {};
  // The first CPU has no pointer of its own, or readers wait for ever.
  found.device = Runtime().context->CanonicalDevice(found.device);
  return found;
}

TensorHandle* NewLocal(tensorflow::Tensor value, const Placement& placement) {
  if (placement.op_device == nullptr && placement.device == nullptr) {
    return TensorHandle::CreateLocalHandle(value);
  }
  return TensorHandle::CreateLocalHandle(std::move(value), placement.device,
                                         placement.op_device,
                                         Runtime().context);
}

TensorHandle* NewLocalLike(tensorflow::Tensor value,
                           const TensorHandle& other) {
  if (!IsCpu(other.device()) || !IsCpu(other.op_device())) {
    return TensorHandle::CreateLocalHandle(value);
  }
  return NewLocal(std::move(value), {other.op_device(), other.device()});
}

bool FindTensorIds(PyObject* tensors) {
  PyRef items = PyRef::Steal(PySequence_Tuple(tensors));
  if (!items) return false;
  std::vector<ptrdiff_t> found;
  const ptrdiff_t size = EagerTensorType->tp_basicsize;
  for (ptrdiff_t offset = sizeof(PyObject);
       offset + static_cast<ptrdiff_t>(sizeof(int64_t)) <= size;
       offset += alignof(int64_t)) {
    bool fits = true;
    Runtime().tensor_id_offset = offset;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(items.get()); ++i) {
      PyObject* tensor = PyTuple_GET_ITEM(items.get(), i);
      PyRef id = PyRef::Steal(PyObject_GetAttrString(tensor, "_id"));
      if (!id) return false;
      fits = fits && IdOf(tensor) == PyLong_AsLongLong(id.get());
    }
    if (fits) found.push_back(offset);
  }
  if (found.size() != 1) return false;
  Runtime().tensor_id_offset = found[0];
  return true;
}

}  // namespace terra
