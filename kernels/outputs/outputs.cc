#include "kernels/outputs/outputs.h"

#include <optional>
#include <unordered_map>

#include "kernels/python/tf_python.h"
#include "kernels/runner/step.h"

namespace terra {
namespace {

using tensorflow::TensorHandle;

constexpr int64_t kSweepBytes = 64 << 20;

}  // namespace

Outputs::Outputs(StepContext* context, Waits* waits)
    : context_(context), waits_(waits) {
  if (context->plan() != nullptr) {
    table_.Reserve(context->plan()->num_made_before);
  }
}

std::vector<Outputs*>& Outputs::Live() {
  static auto* live = new std::vector<Outputs*>;
  return *live;
}

void Outputs::Add(TensorHandle* handle, int node, int output, int channel,
                  PyObject* marker, bool is_ready) {
  handle->Ref();  // ours
  table_.Insert(handle, static_cast<int32_t>(made_.size()));
  made_.emplace_back(handle, node, output, channel, marker,
                     &ready_->emplace_back(is_ready));
}

void Outputs::Finish(Made* made) {
  made->ready->store(true, std::memory_order_release);
  if (context_->step() != nullptr) context_->step()->state().Notify();
}

void Outputs::Set(int index, PyObject* tensor) {
  Made& made = made_.at(index);
  if (made.ready->load()) return;
  const tensorflow::Tensor* value = nullptr;
  absl::Status status = HandleOf(tensor)->Tensor(&value);
  if (status.ok()) {
    status = made.handle->SetTensor(tensorflow::Tensor(*value),
                                    made.handle->device());
  }
  if (!status.ok()) made.handle->Poison(status, made.handle->device());
  Finish(&made);
}

void Outputs::Poison(int index, const std::string& message, int code) {
  Made& made = made_.at(index);
  if (made.ready->load()) return;
  made.handle->Poison(
      absl::Status(static_cast<absl::StatusCode>(code), message),
      made.handle->device());
  Finish(&made);
}

PyRef Outputs::Tensor(int index) const {
  TensorHandle* handle = made_.at(index).handle;
  handle->Ref();
  return PyRef::Steal(EagerTensorFromHandle(tensorflow::wrap(handle)));
}

void Outputs::AddReal(PyObject* tensor, int node, int output,
                      PyObject* marker) {
  if (!EagerTensor_CheckExact(tensor)) return;
  TensorHandle* handle = HandleOf(tensor);
  Add(handle, node, output, -1, marker, true);
  made_.back().is_told = true;  // FinishReal's matter
  const tensorflow::Tensor* value = nullptr;
  if (handle->Tensor(&value).ok()) real_bytes_ += value->TotalBytes();
  if (real_bytes_ > kSweepBytes) SweepDead();
}

// Their addresses may be reused, so they leave the table.
void Outputs::SweepDead() {
  table_.Clear();
  for (size_t i = 0; i < made_.size(); ++i) {
    Made& made = made_[i];
    if (made.handle == nullptr) continue;
    if (made.ready->load() && made.handle->RefCountIsOne()) {
      made.handle->Unref();
      made.handle = nullptr;
    } else {
      table_.Insert(made.handle, static_cast<int32_t>(i));
    }
  }
  real_bytes_ = 0;
}

void Outputs::AddAllReal(int node, PyObject* marker, PyObject* outputs) {
  const Py_ssize_t n = PyList_GET_SIZE(outputs);
  for (Py_ssize_t i = 0; i < n; ++i) {
    AddReal(PyList_GET_ITEM(outputs, i), node, static_cast<int>(i), marker);
  }
}

PyRef Outputs::AddPending(const OutputSpec& spec, int node, int output,
                          PyObject* marker,
                          const tensorflow::PartialTensorShape& inferred) {
  TensorHandle* handle = NewPending(spec.dtype, spec.placement);
  if (spec.shape_known) {
    // Cheaper than telling it.
    handle->CopyInferenceShape(spec.shaped.get()).IgnoreError();
  } else if (inferred.IsFullyDefined()) {
    TellShape(inferred, handle);
  }
  Add(handle, node, output, spec.fetch_channel, marker, false);
  if (!spec.shape_known) made_.back().shape = inferred;
  made_.back().is_told = spec.shape_known || inferred.IsFullyDefined();
  if (spec.fetch_channel >= 0) {
    handle->Ref();  // the receiver's
    std::shared_ptr<std::atomic<bool>> ready(ready_, made_.back().ready);
    std::shared_ptr<Step> step = context_->shared_step();
    context_->step()->mailbox().Take(
        spec.fetch_channel,
        [handle, ready, step](std::optional<Message> message) {
          if (message.has_value()) {
            // Fails only when the handle has a value; then that one stays.
            absl::Status status =
                handle->SetTensor(std::move(message->tensor), handle->device());
            if (!status.ok()) handle->Poison(status, handle->device());
            ready->store(true, std::memory_order_release);
          }
          handle->Unref();
          step->state().Notify();
        });
  }
  return PyRef::Steal(EagerTensorFromHandle(tensorflow::wrap(handle)));
}

Waited Outputs::WaitReady(const Made& made) {
  if (made.ready->load(std::memory_order_acquire)) return Waited::kReady;
  return waits_->ForValue({ready_, made.ready}, made.node);
}

bool Outputs::IsReadyOutside(const TensorHandle* handle) {
  for (const Outputs* other : Live()) {
    const int32_t index = other->Find(handle);
    if (index >= 0) return (*other)[index].ready->load();
  }
  return true;
}

bool Outputs::IsPending(const TensorHandle* handle) {
  for (const Outputs* other : Live()) {
    const int32_t index = other->Find(handle);
    if (index >= 0 && !(*other)[index].ready->load()) return true;
  }
  return false;
}

void Outputs::Renumber(const std::vector<int>& path) {
  std::unordered_map<int, int> place;
  for (size_t i = 0; i < path.size(); ++i) place[path[i]] = i;
  for (Made& made : made_) {
    const auto it = place.find(made.node);
    made.node = it == place.end() ? -1 : it->second;
  }
}

void Outputs::Clear() {
  table_.Clear();
  for (Made& made : made_) {
    if (made.handle != nullptr) made.handle->Unref();
    made.handle = nullptr;
  }
  made_.clear();
  markers_.clear();
}

}  // namespace terra
