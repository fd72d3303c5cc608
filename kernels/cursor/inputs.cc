#include "kernels/cursor/inputs.h"

#include <algorithm>

#include "kernels/call/seeds.h"
#include "kernels/outputs/outputs.h"
#include "kernels/python/tf_python.h"
#include "kernels/runner/step.h"
#include "tensorflow/core/common_runtime/dma_helper.h"
#include "tensorflow/core/framework/tensor_util.h"

namespace terra {
namespace {

using tensorflow::Tensor;
using tensorflow::TensorHandle;

// A tensor of which nobody else can change the bytes.
Tensor OwnCopy(const Tensor& tensor) {
  const auto* buffer = tensorflow::DMAHelper::buffer(&tensor);
  if (buffer == nullptr) return tensor;
  auto* root = const_cast<tensorflow::TensorBuffer*>(buffer)->root_buffer();
  return root->OwnsMemory() ? tensor : tensorflow::tensor::DeepCopy(tensor);
}

}  // namespace

Inputs::Inputs(const StepContext& context, const Outputs& outputs,
               History* history)
    : context_(context), outputs_(outputs), history_(history) {
  if (context.plan() == nullptr) return;
  feeds_.resize(plan().feeds.size());
  feed_copies_.resize(plan().feeds.size());
  variables_.resize(plan().variables.size());
  is_fed_.assign(plan().variables.size(), 0);
  written_.assign(plan().variables.size(), 0);
  decided_.resize(plan().joins.size());
}

PyRef Inputs::Feed(int slot) const { return feeds_.at(slot); }

PyRef Inputs::FeedValue(int slot) const {
  return feed_copies_.at(slot) ? feed_copies_.at(slot) : feeds_.at(slot);
}

PyRef Inputs::Variable(int slot) const {
  const VariableSlot& v = plan().variables.at(slot);
  return v.captured ? PyRef::Borrow(v.captured.get()) : variables_.at(slot);
}

PyRef Inputs::PutTensor(int channel, PyObject* tensor) {
  TensorHandle* handle = HandleOf(tensor);
  Message message;
  PyRef copy;
  if (Outputs::IsPending(handle)) {
    handle->Ref();
    message.link.reset(handle);
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
  context_.step()->Send(channel, std::move(message));
  return copy;
}

void Inputs::BindJoin(int number, PyObject* tensor) {
  Decided& decided = decided_[number];
  decided.is_set = true;
  const int made = outputs_.Find(HandleOf(tensor));
  if (made >= 0) {
    decided.node = outputs_[made].node;
    decided.output = outputs_[made].output;
    bindings_.push_back(
        {Binding::Kind::kJoinMade, number, decided.node, decided.output});
  } else {
    decided.external = PyRef::Borrow(tensor);
    bindings_.push_back(
        {Binding::Kind::kJoinOutside, number, history_->NameOf(tensor), 0});
    history_->MixShapeOf(tensor);
  }
  history_->MixIdentity(tensor);
  TellJoin(number);
}

void Inputs::TellJoin(int number) {
  const JoinSpec& join = plan().joins[number];
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
  context_.SendDecision(join.channel, choice);
}

void Inputs::BindVariable(const VariableSlot& slot, PyObject* tensor) {
  if (slot.captured || variables_[slot.variable]) return;
  variables_[slot.variable] = PyRef::Borrow(tensor);
  const Tensor* value = nullptr;
  if (HandleOf(tensor)->Tensor(&value).ok()) {
    bound_.emplace_back(ResourceKey(*value), slot.variable);
  }
}

void Inputs::BindFeed(int slot, PyObject* tensor) {
  feeds_[slot] = PyRef::Borrow(tensor);
  const int channel = plan().feeds[slot].channel;
  if (channel >= 0) feed_copies_[slot] = PutTensor(channel, tensor);
}

void Inputs::FeedVariable(int slot, PyObject* tensor) {
  is_fed_[slot] = 1;
  PutTensor(plan().variables[slot].feed_channel, tensor);
}

void Inputs::BindInputs(const Call& call, const PlanNode& node) {
  using Kind = Binding::Kind;
  // An op that takes what it gets may get fewer inputs than it once had.
  const size_t num_inputs = std::min(node.inputs.size(), call.inputs.size());
  for (size_t i = 0; i < num_inputs; ++i) {
    const InputRef& ref = node.inputs[i];
    PyObject* tensor = call.inputs[i].get();
    if (ref.kind == InputKind::kFeed && feeds_[ref.a]) {
      history_->NoteOutside(tensor);
    } else if (ref.kind == InputKind::kFeed) {
      history_->MixIdentity(tensor);
      if (!plan().feeds[ref.a].shape.IsFullyDefined())
        history_->MixShapeOf(tensor);
      bindings_.push_back({Kind::kFeed, ref.a, history_->NameOf(tensor), 0});
      BindFeed(ref.a, tensor);
    } else if (ref.kind == InputKind::kVariable ||
               ref.kind == InputKind::kResource) {
      const VariableSlot& slot = plan().variables[ref.a];
      const bool is_new = !slot.captured && !variables_[slot.variable];
      BindVariable(slot, tensor);
      if (is_new) {
        history_->MixIdentity(tensor);
        bindings_.push_back(
            {Kind::kVariable, ref.a, history_->NameOf(tensor), 0});
      }
      if (ref.kind == InputKind::kResource) continue;
      if (slot.feed_channel >= 0 && !is_fed_[ref.a]) {
        bindings_.push_back({Kind::kVariableFeed, ref.a, 0, 0});
        FeedVariable(ref.a, tensor);
      }
      if (ref.b != 0) {
        written_[slot.variable] = ref.b;
        bindings_.push_back({Kind::kWrite, slot.variable, ref.b, 0});
      }
    } else if (ref.kind == InputKind::kJoin) {
      BindJoin(ref.a, tensor);
    } else if (ref.kind == InputKind::kAny) {
      history_->MixIdentity(tensor);
      if (outputs_.Find(HandleOf(tensor)) < 0) history_->MixShapeOf(tensor);
    } else if (ref.kind == InputKind::kConstant) {
      NoteConstant(ref.a, tensor);
    } else if (ref.kind == InputKind::kCaptured) {
      history_->NoteOutside(tensor);
    }
  }
}

void Inputs::NoteConstant(int slot, PyObject* tensor) {
  const int name = history_->NoteOutside(tensor);
  if (name < 0) return;  // made on the spot
  bindings_.push_back({Binding::Kind::kConstant, slot, name, 0});
}

void Inputs::PushSeeds(
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
  context_.step()->Send(node.seed_channel, std::move(message));
}

void Inputs::Rebind(const Binding& binding, PyObject* own) {
  using Kind = Binding::Kind;
  bindings_.push_back(binding);
  switch (binding.kind) {
    case Kind::kFeed:
      BindFeed(binding.slot, own != nullptr ? own : history_->Named(binding.a));
      break;
    case Kind::kVariable:
      BindVariable(plan().variables[binding.slot], history_->Named(binding.a));
      break;
    case Kind::kVariableFeed:
      FeedVariable(binding.slot, Variable(binding.slot).get());
      break;
    case Kind::kWrite:
      written_[binding.slot] = static_cast<char>(binding.a);
      break;
    case Kind::kJoinMade:
    case Kind::kJoinOutside: {
      Decided& decided = decided_[binding.slot];
      decided.is_set = true;
      if (binding.kind == Kind::kJoinMade) {
        decided.node = binding.a;
        decided.output = binding.b;
      } else {
        decided.external = PyRef::Borrow(history_->Named(binding.a));
      }
      TellJoin(binding.slot);
      break;
    }
    case Kind::kConstant:
      break;
  }
}

bool Inputs::HasWritten() const {
  return std::any_of(written_.begin(), written_.end(),
                     [](char how) { return how != 0; });
}

bool Inputs::Uses(uint64_t key, bool written_only, bool in_whole_plan) const {
  auto slot_counts = [&](int slot) {
    if (!written_only) return true;
    return in_whole_plan ? plan().variables[slot].written : written_[slot] != 0;
  };
  for (size_t i = 0; i < plan().variables.size(); ++i) {
    const VariableSlot& v = plan().variables[i];
    if (v.captured && v.key == key && slot_counts(i)) return true;
  }
  for (const auto& [bound_key, slot] : bound_) {
    if (bound_key == key && slot_counts(slot)) return true;
  }
  return false;
}

void Inputs::Clear() {
  feeds_.clear();
  feed_copies_.clear();
  variables_.clear();
  decided_.clear();
}

}  // namespace terra
