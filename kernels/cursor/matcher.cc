#include "kernels/cursor/matcher.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/call/seeds.h"
#include "kernels/outputs/readable.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"

namespace terra {
namespace {

using tensorflow::Tensor;
using tensorflow::TensorHandle;

bool SameOp(const PlanNode& node, const Call& call) {
  if (node.info != nullptr || call.info != nullptr) {
    return node.info == call.info;
  }
  // Functions that are made anew have other names, and Python may run any.
  return node.name == kAnyFunction || node.name == Describe(call);
}

// Whether two handles are ready and of one resource.
bool AreOfOneResource(PyObject* a, PyObject* b) {
  const Tensor *value_a = nullptr, *value_b = nullptr;
  if (!HandleOf(a)->Tensor(&value_a).ok()) return false;
  if (!HandleOf(b)->Tensor(&value_b).ok()) return false;
  if (value_b->dtype() != tensorflow::DT_RESOURCE) return false;
  const uint64_t key = ResourceKey(*value_a);
  return key != 0 && key == ResourceKey(*value_b);
}

}  // namespace

namespace {

Reason VerifyShape(PyObject* tensor, tensorflow::DataType dtype,
                   const tensorflow::PartialTensorShape& expected,
                   std::string* detail) {
  TensorHandle* handle = HandleOf(tensor);
  tensorflow::PartialTensorShape shape;
  // Outputs of earlier steps may be pending: a known shape does not wait.
  if (!EnsureReadable(tensor, Reading::kShape)) {
    ClearOwnError();
    *detail = "a tensor that could not be read";
    return Reason::kFeedChanged;
  }
  if (handle->Shape(&shape).ok() && handle->DataType() == dtype &&
      expected.IsCompatibleWith(shape)) {
    return Reason::kNone;
  }
  *detail = absl::StrCat(tensorflow::DataTypeString(handle->DataType()),
                         shape.DebugString(), " where ",
                         tensorflow::DataTypeString(dtype),
                         expected.DebugString(), " was expected");
  return Reason::kFeedChanged;
}

template <typename Integer>
bool AreWithin(const Tensor& tensor, std::pair<int64_t, int64_t> allowed) {
  const auto items = tensor.flat<Integer>();
  bool are_within = true;
  for (int64_t i = 0; i < items.size(); ++i) {
    const int64_t item = static_cast<int64_t>(items(i));
    are_within &= item >= allowed.first && item < allowed.second;
  }
  return are_within;
}

// Whether all items of an integer tensor are at least the first of two numbers
// and below the second.
bool AreAllowed(const Tensor& tensor, std::pair<int64_t, int64_t> allowed) {
  switch (tensor.dtype()) {
    case tensorflow::DT_INT32:
      return AreWithin<int32_t>(tensor, allowed);
    case tensorflow::DT_INT64:
      return AreWithin<int64_t>(tensor, allowed);
    case tensorflow::DT_INT16:
      return AreWithin<int16_t>(tensor, allowed);
    case tensorflow::DT_UINT16:
      return AreWithin<uint16_t>(tensor, allowed);
    case tensorflow::DT_INT8:
      return AreWithin<int8_t>(tensor, allowed);
    case tensorflow::DT_UINT8:
      return AreWithin<uint8_t>(tensor, allowed);
    default:
      return false;
  }
}

}  // namespace

Reason Matcher::VerifyVariable(const InputRef& ref, PyObject* tensor,
                               Claims* claims, std::string* detail) {
  const VariableSlot& slot = plan().variables[ref.a];
  PyObject* expected =
      slot.captured ? slot.captured.get() : inputs_.FindBound(slot.variable);
  // A captured one that is gone is no longer what the program uses here.
  if (expected == nullptr && !slot.captured) {
    expected = claims->Variable(slot.variable);
  }
  if (slot.captured || expected != nullptr) {
    // A function may return a handle that it has taken, as another tensor.
    if (expected != nullptr && (HandleOf(expected) == HandleOf(tensor) ||
                                AreOfOneResource(expected, tensor))) {
      return Reason::kNone;
    }
    *detail = "another variable";
    return Reason::kVariableChanged;
  }
  const Tensor* value = nullptr;
  if (!HandleOf(tensor)->Tensor(&value).ok() ||
      value->dtype() != tensorflow::DT_RESOURCE) {
    *detail = "not a variable";
    return Reason::kVariableChanged;
  }
  const uint64_t key = ResourceKey(*value);
  bool is_of_another_place = claims->IsClaimedByOther(key, slot.variable);
  for (const VariableSlot& other : plan().variables) {
    is_of_another_place |= other.captured && other.key == key;
  }
  for (const auto& [bound_key, bound_slot] : inputs_.bound()) {
    is_of_another_place |= bound_key == key && bound_slot != slot.variable;
  }
  if (is_of_another_place) {
    *detail = "the variable of another place";
    return Reason::kVariableChanged;
  }
  if (ref.kind == InputKind::kResource) {
    claims->AddVariable(slot.variable, tensor, key);
    return Reason::kNone;
  }
  // The handle knows the variable's type and shape.
  PyRef same =
      PyRef::Steal(PyObject_CallFunction(slot.accepts.get(), "O", tensor));
  if (!same) {
    ClearOwnError();
    *detail = "a variable of unknown type";
    return Reason::kVariableChanged;
  }
  if (same.get() == Py_True) {
    claims->AddVariable(slot.variable, tensor, key);
    return Reason::kNone;
  }
  *detail = "a variable of another type or shape";
  return Reason::kVariableChanged;
}

Reason Matcher::VerifyFeed(const InputRef& ref, PyObject* tensor,
                           Claims* claims, std::string* detail) {
  TensorHandle* handle = HandleOf(tensor);
  if (outputs_.Find(handle) >= 0) {
    *detail = "a tensor of this step where an outside one was expected";
    return Reason::kDataflowChanged;
  }
  PyObject* expected = inputs_.FindFeed(ref.a);
  if (expected == nullptr) expected = claims->Feed(ref.a);
  if (expected != nullptr) {
    if (HandleOf(expected) == handle) return Reason::kNone;
    *detail = "another tensor than at this tensor's first use";
    return Reason::kDataflowChanged;
  }
  const Reason problem = VerifyNewFeed(ref, tensor, detail);
  if (problem == Reason::kNone) claims->AddFeed(ref.a, tensor);
  return problem;
}

Reason Matcher::VerifyNewFeed(const InputRef& ref, PyObject* tensor,
                              std::string* detail) {
  TensorHandle* handle = HandleOf(tensor);
  const FeedSlot& slot = plan().feeds[ref.a];
  const Reason problem = VerifyShape(tensor, slot.dtype, slot.shape, detail);
  if (problem != Reason::kNone || !slot.allowed.has_value()) return problem;
  // Of an earlier step it may be pending: that one has not failed, either.
  if (!EnsureReadable(tensor, Reading::kValue)) ClearOwnError();
  const Tensor* value = nullptr;
  if (handle->Tensor(&value).ok() && AreAllowed(*value, *slot.allowed)) {
    return Reason::kNone;
  }
  refused_feed_ = ref.a;
  *detail =
      absl::StrCat(value == nullptr ? "a tensor that could not be read"
                                    : value->SummarizeValue(8),
                   " is not in [", std::max<int64_t>(slot.allowed->first, 0),
                   ", ", slot.allowed->second, ")");
  return Reason::kIndexOutOfRange;
}

Reason Matcher::VerifyInput(const InputRef& ref, PyObject* tensor,
                            Claims* claims, std::string* detail) {
  TensorHandle* handle = HandleOf(tensor);
  switch (ref.kind) {
    case InputKind::kOutput: {
      const int32_t index = outputs_.Find(handle);
      if (index >= 0 && outputs_[index].Is(ref.a, ref.b)) {
        return Reason::kNone;
      }
      *detail = absl::StrCat("expected output ", ref.b, " of op ", ref.a);
      return Reason::kDataflowChanged;
    }
    case InputKind::kVariable:
      return VerifyVariable(ref, tensor, claims, detail);
    case InputKind::kConstant: {
      ConstantSlot& constant = plan().constants[ref.a];
      if (HandleOf(constant.tensor.get()) == handle) return Reason::kNone;
      if (outputs_.Find(handle) >= 0) {
        *detail = "a tensor of this step where a constant was expected";
        return Reason::kDataflowChanged;
      }
      const Tensor* value = nullptr;
      if (!EnsureReadable(tensor, Reading::kValue)) ClearOwnError();
      if (handle->Tensor(&value).ok() && ConstantMatches(constant, *value)) {
        return Reason::kNone;
      }
      *detail = value == nullptr
                    ? "a constant that could not be read"
                    : absl::StrCat(constant.value.SummarizeValue(4), " became ",
                                   value->SummarizeValue(4));
      return Reason::kConstantChanged;
    }
    case InputKind::kCaptured:
      if (PyObject* captured = plan().captured[ref.a].get();
          captured != nullptr && HandleOf(captured) == handle) {
        return Reason::kNone;
      }
      *detail = "another tensor object";
      return Reason::kCaptureChanged;
    case InputKind::kFeed:
      return VerifyFeed(ref, tensor, claims, detail);
    case InputKind::kResource:
      return VerifyVariable(ref, tensor, claims, detail);
    case InputKind::kJoin:
      return VerifyJoin(ref, tensor, detail);
    case InputKind::kAny:
      return Reason::kNone;
  }
  return Reason::kDataflowChanged;
}

Reason Matcher::VerifyJoin(const InputRef& ref, PyObject* tensor,
                           std::string* detail) {
  const JoinSpec& join = plan().joins[ref.a];
  TensorHandle* handle = HandleOf(tensor);
  const int32_t index = outputs_.Find(handle);
  bool fits = false;
  if (join.rule == JoinRule::kSame) {
    const Decided& other = inputs_.decided()[join.same];
    if (other.is_set && other.node >= 0) {
      fits = index >= 0 && outputs_[index].Is(other.node, other.output);
    } else {
      fits = other.is_set && HandleOf(other.external.get()) == handle;
    }
  } else if (index < 0) {
    if (!join.allows_external) {
      *detail = "a tensor from outside of the step";
      return Reason::kDataflowChanged;
    }
    return VerifyShape(tensor, join.dtype, join.shape, detail);
  } else if (join.rule == JoinRule::kLatest) {
    fits = cursor_.IsLatest(join.web, outputs_[index].node,
                            outputs_[index].output);
  } else {
    const auto made =
        std::make_pair(outputs_[index].node, outputs_[index].output);
    for (const auto& alternative : join.alternatives) {
      fits = fits || alternative == made;
    }
  }
  if (fits) return Reason::kNone;
  *detail = "another op's output than any of those that were known there";
  return Reason::kDataflowChanged;
}

Reason Matcher::VerifySeeds(const Call& call, PlanNode* node,
                            std::string* detail) {
  if (!node->seeded) return Reason::kNone;
  int64_t seed = 0;
  int64_t seed2 = 0;
  if (FindSeeds(call.attrs.get(), &seed, &seed2) &&
      IsInternalPair(seed, seed2)) {
    return Reason::kNone;
  }
  *detail = "an op-level seed";
  return Reason::kAttributesChanged;
}

Reason Matcher::Verify(const Call& call, PlanNode* node, std::string* detail) {
  if (!SameOp(*node, call)) {
    *detail =
        absl::StrCat(Describe(call), " where ", node->name, " was expected");
    return Reason::kNewPath;
  }
  static const Counts kAnyCounts = {-2};
  if (node->counts != call.counts && node->counts != kAnyCounts) {
    *detail = "another number of inputs";
    return Reason::kNewPath;
  }
  if (plan().check_devices) {
    std::string device = DeviceScope();
    if (node->device != device) {
      *detail = std::move(device);
      return Reason::kDeviceChanged;
    }
  }
  // What Python runs itself may have other attributes every time.
  const int same =
      node->kind == NodeKind::kImperative ? 1 : AttributesMatch(node, call);
  if (same < 0) ClearOwnError();
  if (same != 1) {
    *detail = "attributes";
    return Reason::kAttributesChanged;
  }
  const size_t num_inputs = std::min(node->inputs.size(), call.inputs.size());
  Claims claims;
  for (size_t i = 0; i < num_inputs; ++i) {
    const InputRef& ref = node->inputs[i];
    // The epochs were planned for the ways that were traced.
    if (ref.kind == InputKind::kVariable &&
        plan().levels[node->level].epoch == cursor_.epoch()) {
      const char written =
          inputs_.how_written(plan().variables[ref.a].variable);
      // A function reads it itself, so that no value of it can be handed on.
      const bool is_function = node->info == nullptr;
      if (written == kInPlace || (is_function && written != 0)) {
        *detail = "a variable that was written in place before";
        return Reason::kNewPath;
      }
    }
    const Reason reason =
        VerifyInput(ref, call.inputs[i].get(), &claims, detail);
    if (reason != Reason::kNone) return reason;
  }
  if (node->ChecksWrite() && !WriteFits(call, *node)) {
    *detail = "what is written has another shape, or none that is known yet";
    return Reason::kWriteChanged;
  }
  return VerifySeeds(call, node, detail);
}

std::vector<KnownInput> Matcher::KnownInputs(const Call& call) const {
  std::vector<KnownInput> inputs(call.inputs.size());
  for (size_t i = 0; i < call.inputs.size(); ++i) {
    TensorHandle* handle = HandleOf(call.inputs[i].get());
    const int32_t index = outputs_.Find(handle);
    if (index >= 0) {
      const Made& made = outputs_[index];
      const OutputSpec& spec = plan().nodes[made.node].outputs[made.output];
      inputs[i].shape = made.shape.IsFullyDefined() ? made.shape : spec.shape;
      if (!made.ready->load(std::memory_order_acquire)) continue;
    } else if (!EnsureReadable(call.inputs[i].get(), Reading::kShape)) {
      ClearOwnError();
      continue;
    } else if (!Outputs::IsReadyOutside(handle)) {
      tensorflow::PartialTensorShape shape;
      if (handle->Shape(&shape).ok()) inputs[i].shape = shape;
      continue;
    }
    const Tensor* value = nullptr;
    if (!handle->Tensor(&value).ok()) continue;
    inputs[i].shape = value->shape();
    inputs[i].value = value;
  }
  return inputs;
}

bool Matcher::WriteFits(const Call& call, const PlanNode& node) {
  const std::vector<KnownInput> inputs = KnownInputs(call);
  for (const KnownInput& input : inputs) {
    if (!input.shape.IsFullyDefined()) return false;
  }
  std::vector<tensorflow::PartialTensorShape> outputs;
  return InferShapes(*node.shape_rule, inputs, &outputs);
}

}  // namespace terra
