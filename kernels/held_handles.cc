#include "kernels/held_handles.h"

#include <atomic>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace terra {
namespace {

struct Registry {
  std::mutex mu;
  std::unordered_map<int64_t, tensorflow::Tensor> handles;  // guarded by mu
};

Registry& GetRegistry() {
  static auto* registry = new Registry;
  return *registry;
}

std::atomic<int64_t> next_number{1};

}  // namespace

HeldHandle::HeldHandle(const tensorflow::Tensor& handle)
    : number_(next_number.fetch_add(1)) {
  Registry& r = GetRegistry();
  std::lock_guard<std::mutex> lock(r.mu);
  r.handles.emplace(number_, handle);
}

HeldHandle::~HeldHandle() {
  Registry& r = GetRegistry();
  tensorflow::Tensor last;  // maybe of the variable: destroyed after the lock
  std::lock_guard<std::mutex> lock(r.mu);
  auto it = r.handles.find(number_);
  last = std::move(it->second);
  r.handles.erase(it);
}

bool HeldHandle::Find(int64_t number, tensorflow::Tensor* handle) {
  Registry& r = GetRegistry();
  std::lock_guard<std::mutex> lock(r.mu);
  auto it = r.handles.find(number);
  if (it == r.handles.end()) return false;
  *handle = it->second;
  return true;
}

}  // namespace terra
