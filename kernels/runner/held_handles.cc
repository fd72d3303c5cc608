#include "kernels/runner/held_handles.h"

#include <atomic>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "tensorflow/core/framework/resource_handle.h"

namespace terra {
namespace {

using tensorflow::ResourceHandle;
using tensorflow::Tensor;
using tensorflow::Var;
using tensorflow::core::RefCountPtr;
using tensorflow::core::WeakPtr;

struct Held {
  explicit Held(const Tensor& tensor) {
    const auto& handle = tensor.scalar<ResourceHandle>()();
    if (handle.IsRefCounting() && handle.ValidateType<Var>().ok()) {
      variable = WeakPtr<Var>(handle.resource().get());
      without_variable.set_device(handle.device());
      without_variable.set_dtypes_and_shapes(handle.dtypes_and_shapes());
      without_variable.set_definition_stack_trace(
          handle.definition_stack_trace());
    } else {
      named = tensor;
    }
  }

  WeakPtr<Var> variable;  // null:
  Tensor named;           // the handle, which keeps nothing alive
  ResourceHandle without_variable;
};

struct Registry {
  std::mutex mu;
  std::unordered_map<int64_t, Held> handles;  // guarded by mu
};

Registry& GetRegistry() {
  static auto* registry = new Registry;
  return *registry;
}

std::atomic<int64_t> next_number{1};

}  // namespace

HeldHandle::HeldHandle(const Tensor& handle)
    : number_(next_number.fetch_add(1)) {
  Registry& r = GetRegistry();
  std::lock_guard<std::mutex> lock(r.mu);
  r.handles.emplace(number_, handle);
}

HeldHandle::~HeldHandle() {
  Registry& r = GetRegistry();
  std::lock_guard<std::mutex> lock(r.mu);
  r.handles.erase(number_);
}

RefCountPtr<Var> HeldHandle::FindVariable(int64_t number) {
  Registry& r = GetRegistry();
  std::lock_guard<std::mutex> lock(r.mu);
  const auto it = r.handles.find(number);
  return it == r.handles.end() ? nullptr : it->second.variable.GetNewRef();
}

bool HeldHandle::Find(int64_t number, Tensor* handle) {
  RefCountPtr<Var> variable = FindVariable(number);
  Registry& r = GetRegistry();
  std::lock_guard<std::mutex> lock(r.mu);
  const auto it = r.handles.find(number);
  if (it == r.handles.end()) return false;
  const Held& held = it->second;
  if (variable == nullptr) {
    *handle = held.named;
    return handle->dtype() == tensorflow::DT_RESOURCE;
  }
  const ResourceHandle& like = held.without_variable;
  *handle = Tensor(tensorflow::DT_RESOURCE, tensorflow::TensorShape({}));
  handle->scalar<ResourceHandle>()() = ResourceHandle::MakeRefCountingHandle(
      variable.release(), like.device(), like.dtypes_and_shapes(),
      like.definition_stack_trace());
  return true;
}

}  // namespace terra
