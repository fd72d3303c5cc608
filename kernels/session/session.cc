#include "kernels/session/session.h"

#include <algorithm>

#include "kernels/call/seeds.h"
#include "kernels/core/step_state.h"
#include "kernels/python/tf_python.h"
#include "tensorflow/core/common_runtime/dma_helper.h"
#include "tensorflow/core/framework/tensor_util.h"

namespace terra {
namespace {

using tensorflow::Tensor;
using tensorflow::TensorHandle;

constexpr int64_t kSweepBytes = 64 << 20;

// A tensor of which nobody else can change the bytes.
Tensor OwnCopy(const Tensor& tensor) {
  const auto* buffer = tensorflow::DMAHelper::buffer(&tensor);
  if (buffer == nullptr) return tensor;
  auto* root = const_cast<tensorflow::TensorBuffer*>(buffer)->root_buffer();
  return root->OwnsMemory() ? tensor : tensorflow::tensor::DeepCopy(tensor);
}

}  // namespace

std::vector<Session*>& Session::Live() {
  static auto* live = new std::vector<Session*>;
  return *live;
}

Session::Session(std::shared_ptr<Plan> plan, PyObject* controller)
    : plan_(std::move(plan)),
      controller_(controller),
      mode_(plan_ == nullptr ? Mode::kTracing : Mode::kCoExecution) {
  if (plan_ != nullptr) {
    step_ = Step::Create(plan_->num_channels);
    feeds_.resize(plan_->feeds.size());
    feed_copies_.resize(plan_->feeds.size());
    variables_.resize(plan_->variables.size());
    is_fed_.assign(plan_->variables.size(), 0);
    slot_written_.assign(plan_->variables.size(), 0);
    web_latest_.assign(plan_->num_webs, {-1, -1});
    decided_.resize(plan_->joins.size());
    table_.Reserve(plan_->num_made_before);
    path_.reserve(plan_->num_ops_before);
  }
}

Session::~Session() { Release(); }

PyRef Session::Feed(int slot) const { return feeds_.at(slot); }

PyRef Session::FeedValue(int slot) const {
  return feed_copies_.at(slot) ? feed_copies_.at(slot) : feeds_.at(slot);
}

PyRef Session::Variable(int slot) const {
  const VariableSlot& v = plan_->variables.at(slot);
  return v.captured ? PyRef::Borrow(v.captured.get()) : variables_.at(slot);
}

bool Session::HasUnsettledWrites() const {
  if (!live_ || plan_ == nullptr) return false;
  if (committed_) {
    if (step_->state().phase() == StepState::Phase::kDone) return false;
    for (const VariableSlot& v : plan_->variables) {
      if (v.written) return true;
    }
    return false;
  }
  const bool open = mode_ == Mode::kCoExecution || mode_ == Mode::kSeizing;
  if (!open || epoch_closed_) return false;
  for (char written : slot_written_) {
    if (written) return true;
  }
  return false;
}

bool Session::ConflictsWith(uint64_t key, bool writes) const {
  if (!live_ || plan_ == nullptr || key == 0) return false;
  const bool open = mode_ == Mode::kCoExecution || mode_ == Mode::kSeizing;
  if (!open && !committed_) return false;
  if (!committed_ && epoch_closed_) return false;
  if (step_->state().phase() == StepState::Phase::kDone) return false;
  auto slot_conflicts = [&](int slot) {
    if (writes) return true;
    return committed_ ? plan_->variables[slot].written
                      : slot_written_[slot] != 0;
  };
  for (size_t i = 0; i < plan_->variables.size(); ++i) {
    const VariableSlot& v = plan_->variables[i];
    if (v.captured && v.key == key && slot_conflicts(i)) return true;
  }
  for (const auto& [bound_key, slot] : bound_) {
    if (bound_key == key && slot_conflicts(slot)) return true;
  }
  return false;
}

// ---------------------------------------------------------------- outputs

void Session::SetOutput(int index, PyObject* tensor) {
  Made& made = made_.at(index);
  if (made.ready->load()) return;
  const Tensor* value = nullptr;
  absl::Status status = HandleOf(tensor)->Tensor(&value);
  if (status.ok()) {
    status = made.handle->SetTensor(Tensor(*value), made.handle->device());
  }
  if (!status.ok()) made.handle->Poison(status, made.handle->device());
  made.ready->store(true, std::memory_order_release);
  if (step_ != nullptr) step_->state().Notify();
}

void Session::PoisonOutput(int index, const std::string& message, int code) {
  Made& made = made_.at(index);
  if (made.ready->load()) return;
  made.handle->Poison(
      absl::Status(static_cast<absl::StatusCode>(code), message),
      made.handle->device());
  made.ready->store(true, std::memory_order_release);
  if (step_ != nullptr) step_->state().Notify();
}

PyRef Session::OutputTensor(int index) const {
  TensorHandle* handle = made_.at(index).handle;
  handle->Ref();
  return PyRef::Steal(EagerTensorFromHandle(tensorflow::wrap(handle)));
}

void Session::RegisterReal(PyObject* tensor, int node, int output,
                           PyObject* marker) {
  if (!EagerTensor_CheckExact(tensor)) return;
  TensorHandle* handle = HandleOf(tensor);
  handle->Ref();
  table_.Insert(handle, static_cast<int32_t>(made_.size()));
  made_.emplace_back(handle, node, output, -1, marker, NewReady(true));
  const Tensor* value = nullptr;
  if (handle->Tensor(&value).ok()) real_bytes_ += value->TotalBytes();
  if (real_bytes_ > kSweepBytes) SweepDead();
}

// Frees outputs that nobody else holds, so that tracing needs no more memory
// than eager. Their addresses may be reused, so they leave the table.
void Session::SweepDead() {
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

void Session::AddReal(int node, PyObject* marker, PyObject* outputs) {
  const Py_ssize_t n = PyList_GET_SIZE(outputs);
  for (Py_ssize_t i = 0; i < n; ++i) {
    RegisterReal(PyList_GET_ITEM(outputs, i), node, static_cast<int>(i),
                 marker);
  }
}

PyRef Session::MakePending(const OutputSpec& spec, int node, int output,
                           PyObject* marker,
                           const tensorflow::PartialTensorShape& inferred) {
  TensorHandle* handle = NewPending(spec.dtype, spec.placement);
  if (spec.shape_known) {
    // Cheaper than telling it.
    handle->CopyInferenceShape(spec.shaped.get()).IgnoreError();
  } else if (inferred.IsFullyDefined()) {
    TellShape(inferred, handle);
  }
  handle->Ref();  // ours
  table_.Insert(handle, static_cast<int32_t>(made_.size()));
  made_.emplace_back(handle, node, output, spec.fetch_channel, marker,
                     NewReady(false));
  if (!spec.shape_known) made_.back().shape = inferred;
  NoteProduced(spec, node, output);
  if (spec.fetch_channel >= 0) {
    handle->Ref();  // the receiver's
    std::shared_ptr<std::atomic<bool>> ready(ready_, made_.back().ready);
    std::shared_ptr<Step> step = step_;
    step_->mailbox().Take(
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

// ---------------------------------------------------------------- feeding

PyRef Session::PutTensor(int channel, PyObject* tensor) {
  TensorHandle* handle = HandleOf(tensor);
  Message message;
  PyRef copy;
  for (Session* other : Live()) {
    const int32_t index = other->FindMade(handle);
    if (index >= 0 && !other->made_[index].ready->load()) {
      handle->Ref();
      message.link.reset(handle);
      break;
    }
  }
  if (message.link == nullptr) {
    const Tensor* value = nullptr;
    if (!handle->Tensor(&value).ok()) {
      handle->Ref();  // poisoned: the graph fails where eager would
      message.link.reset(handle);
    } else {
      message.tensor = OwnCopy(*value);
      if (message.tensor.data() != value->data()) {
        copy = PyRef::Steal(EagerTensorFromHandle(
            tensorflow::wrap(NewLocalLike(message.tensor, *handle))));
      }
    }
  }
  step_->Send(channel, std::move(message));
  return copy;
}

void Session::BindJoin(int number, PyObject* tensor) {
  Decided& decided = decided_[number];
  decided.is_set = true;
  const int made = FindMade(HandleOf(tensor));
  if (made >= 0) {
    decided.node = made_[made].node;
    decided.output = made_[made].output;
    bindings_.push_back(
        {Binding::Kind::kJoinMade, number, decided.node, decided.output});
  } else {
    decided.external = PyRef::Borrow(tensor);
    bindings_.push_back(
        {Binding::Kind::kJoinOutside, number, history_.NameOf(tensor), 0});
  }
  MixIdentity(tensor);
  TellJoin(number);
}

void Session::TellJoin(int number) {
  const JoinSpec& join = plan_->joins[number];
  if (join.channel < 0) return;
  Decided& decided = decided_[number];
  if (decided.node < 0) {
    decided.external_copy = PutTensor(join.channel, decided.external.get());
    return;
  }
  int64_t choice = 0;
  for (size_t i = 0; i < join.alternatives.size(); ++i) {
    if (join.alternatives[i] == std::make_pair(decided.node, decided.output)) {
      choice = static_cast<int64_t>(i);
    }
  }
  SendDecision(join.channel, choice);
}

void Session::BindVariable(const VariableSlot& slot, PyObject* tensor) {
  if (slot.captured || variables_[slot.variable]) return;
  variables_[slot.variable] = PyRef::Borrow(tensor);
  const Tensor* value = nullptr;
  if (HandleOf(tensor)->Tensor(&value).ok()) {
    bound_.emplace_back(ResourceKey(*value), slot.variable);
  }
}

void Session::BindFeed(int slot, PyObject* tensor) {
  feeds_[slot] = PyRef::Borrow(tensor);
  const int channel = plan_->feeds[slot].channel;
  if (channel >= 0) feed_copies_[slot] = PutTensor(channel, tensor);
}

void Session::FeedVariable(int slot, PyObject* tensor) {
  is_fed_[slot] = 1;
  PutTensor(plan_->variables[slot].feed_channel, tensor);
}

void Session::BindInputs(const Call& call, const PlanNode& node) {
  using Kind = Binding::Kind;
  // An op that takes what it gets may get fewer inputs than it once had.
  const size_t num_inputs = std::min(node.inputs.size(), call.inputs.size());
  for (size_t i = 0; i < num_inputs; ++i) {
    const InputRef& ref = node.inputs[i];
    PyObject* tensor = call.inputs[i].get();
    if (ref.kind == InputKind::kFeed && feeds_[ref.a]) {
      NoteOutside(tensor);
    } else if (ref.kind == InputKind::kFeed) {
      MixIdentity(tensor);
      if (!plan_->feeds[ref.a].shape.IsFullyDefined()) MixShapeOf(tensor);
      bindings_.push_back({Kind::kFeed, ref.a, history_.NameOf(tensor), 0});
      BindFeed(ref.a, tensor);
    } else if (ref.kind == InputKind::kVariable ||
               ref.kind == InputKind::kResource) {
      const VariableSlot& slot = plan_->variables[ref.a];
      const bool is_new = !slot.captured && !variables_[slot.variable];
      BindVariable(slot, tensor);
      if (is_new) {
        MixIdentity(tensor);
        bindings_.push_back(
            {Kind::kVariable, ref.a, history_.NameOf(tensor), 0});
      }
      if (ref.kind == InputKind::kResource) continue;
      if (slot.feed_channel >= 0 && !is_fed_[ref.a]) {
        bindings_.push_back({Kind::kVariableFeed, ref.a, 0, 0});
        FeedVariable(ref.a, tensor);
      }
      if (ref.b != 0) {
        slot_written_[slot.variable] = ref.b;
        bindings_.push_back({Kind::kWrite, slot.variable, ref.b, 0});
      }
    } else if (ref.kind == InputKind::kJoin) {
      BindJoin(ref.a, tensor);
    } else if (ref.kind == InputKind::kAny) {
      MixIdentity(tensor);
    } else if (ref.kind == InputKind::kConstant) {
      NoteConstant(ref.a, tensor);
    } else if (ref.kind == InputKind::kCaptured) {
      NoteOutside(tensor);
    }
  }
}

int Session::NoteOutside(PyObject* tensor) {
  const int name = history_.FindName(tensor);
  if (name >= 0) {
    history_.hash().Mix(Event::kOutside, static_cast<uint64_t>(name));
  }
  return name;
}

void Session::NoteConstant(int slot, PyObject* tensor) {
  const int name = NoteOutside(tensor);
  if (name < 0) return;  // made on the spot
  bindings_.push_back({Binding::Kind::kConstant, slot, name, 0});
}

void Session::PushSeeds(
    const Call& call, const PlanNode& node, int index,
    const std::vector<tensorflow::PartialTensorShape>& inferred) {
  int64_t seed = 0;
  int64_t seed2 = 0;
  FindSeeds(call.attrs.get(), &seed, &seed2);
  int64_t num_elements = 1;
  for (size_t i = 0; i < node.outputs.size(); ++i) {
    const OutputSpec& out = node.outputs[i];
    const bool is_inferred = !out.shape_known && i < inferred.size();
    const auto& shape = is_inferred ? inferred[i] : out.shape;
    if (shape.IsFullyDefined()) num_elements = shape.num_elements();
  }
  const auto state = DrawState(node.name, seed, seed2, num_elements);
  seeds_.emplace_back(index, state);
  Message message;
  message.tensor = Tensor(tensorflow::DT_UINT64, {3});
  for (int i = 0; i < 3; ++i) {
    message.tensor.flat<uint64_t>()(i) = state[i];
  }
  step_->Send(node.seed_channel, std::move(message));
}

}  // namespace terra
