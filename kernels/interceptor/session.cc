#include "kernels/interceptor/session.h"

#include <array>
#include <chrono>
#include <random>
#include <stdexcept>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "kernels/graph_runner.h"
#include "kernels/interceptor/hooks.h"
#include "kernels/interceptor/tf_python.h"
#include "kernels/interceptor/waiting.h"
#include "tensorflow/core/common_runtime/dma_helper.h"
#include "tensorflow/core/framework/tensor_util.h"

namespace terra {
namespace {

using tensorflow::Tensor;
using tensorflow::TensorHandle;

constexpr int64_t kSweepBytes = 64 << 20;

bool CallController(PyObject* controller, const char* method,
                    const char* format, ...) {
  va_list va;
  va_start(va, format);
  PyRef args = PyRef::Steal(Py_VaBuildValue(format, va));
  va_end(va);
  if (!args) return false;
  PyRef callable = PyRef::Steal(PyObject_GetAttrString(controller, method));
  if (!callable) return false;
  PyRef result =
      PyRef::Steal(PyObject_CallObject(callable.get(), args.get()));
  return static_cast<bool>(result);
}

std::string Describe(const Call& call) {
  if (call.info != nullptr) return call.info->name;
  PyRef text = PyRef::Steal(PyObject_Str(call.py_name));
  const char* utf8 = text ? PyUnicode_AsUTF8(text.get()) : nullptr;
  if (utf8 == nullptr) {
    PyErr_Clear();
    return "?";
  }
  return utf8;
}

bool SameOp(const PlanNode& node, const Call& call) {
  if (node.info != nullptr || call.info != nullptr) {
    return node.info == call.info;
  }
  return node.name == Describe(call);
}

// A tensor of which nobody else can change the bytes.
Tensor OwnCopy(const Tensor& tensor) {
  const auto* buffer = tensorflow::DMAHelper::buffer(&tensor);
  if (buffer == nullptr) return tensor;
  auto* root = const_cast<tensorflow::TensorBuffer*>(buffer)->root_buffer();
  return root->OwnsMemory() ? tensor : tensorflow::tensor::DeepCopy(tensor);
}

struct SeedLedger {
  int64_t last_internal = -1;
  // (op, seed, seed2) -> 128-bit counter steps already used by delegated ops
  std::unordered_map<std::string, uint64_t> used;
};

SeedLedger& Seeds() {
  static auto* ledger = new SeedLedger;
  return *ledger;
}

uint64_t RandomKey() {
  static auto* engine = new std::mt19937_64(std::random_device{}());
  return (*engine)();
}

// The values of attributes seed and seed2.
bool FindSeeds(PyObject* attrs, int64_t* seed, int64_t* seed2) {
  int found = 0;
  const Py_ssize_t n = PyTuple_GET_SIZE(attrs);
  for (Py_ssize_t i = 0; i + 1 < n; i += 2) {
    PyObject* name = PyTuple_GET_ITEM(attrs, i);
    int64_t* target = nullptr;
    if (PyUnicode_CompareWithASCIIString(name, "seed") == 0) target = seed;
    if (PyUnicode_CompareWithASCIIString(name, "seed2") == 0) target = seed2;
    if (target == nullptr) continue;
    *target = PyLong_AsLongLong(PyTuple_GET_ITEM(attrs, i + 1));
    if (*target == -1 && PyErr_Occurred()) {
      PyErr_Clear();
      return false;
    }
    ++found;
  }
  return found == 2;
}

bool IsInternalPair(int64_t seed, int64_t seed2) {
  constexpr int64_t kMaxInt32 = 2147483647;  // as TensorFlow's random_seed.py
  if (seed == 0 && seed2 == 0) return true;
  const int64_t last = Seeds().last_internal;
  return last >= 0 && seed2 == last % kMaxInt32;
}

}  // namespace

void NoteInternalSeed(int64_t seed) { Seeds().last_internal = seed; }

void ClearSeedLedger() { Seeds().used.clear(); }

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
    variables_.resize(plan_->variables.size());
    slot_written_.assign(plan_->variables.size(), 0);
  }
  Live().push_back(this);
}

Session::~Session() { Release(); }

void Session::Launch() {
  std::vector<TFE_TensorHandle*> inputs;
  for (const PyRef& input : plan_->launch_inputs) {
    inputs.push_back(EagerTensor_Handle(input.get()));
  }
  const std::string error =
      GraphRunner::Get().Launch(Runtime().c_context, step_,
                                plan_->function_name, plan_->config_proto,
                                inputs);
  if (!error.empty()) throw std::runtime_error(error);
}

void Session::Commit(int channel) {
  step_->mailbox().Put(channel, Message());
}

void Session::MarkEpochClosed() {
  epoch_closed_ = !epoch_closed_;
  slot_written_.assign(slot_written_.size(), 0);
}

PyRef Session::Feed(int slot) const { return feeds_.at(slot); }

PyRef Session::Variable(int slot) const {
  const VariableSlot& v = plan_->variables.at(slot);
  return v.captured ? v.captured : variables_.at(slot);
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
  if (mode_ != Mode::kCoExecution || epoch_closed_) return false;
  for (char written : slot_written_) {
    if (written) return true;
  }
  return false;
}

bool Session::ConflictsWith(uint64_t key, bool writes) const {
  if (!live_ || plan_ == nullptr || key == 0) return false;
  if (mode_ != Mode::kCoExecution && !committed_) return false;
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

// ---------------------------------------------------------------- waiting

int Session::WaitReady(const Made& made) {
  if (made.ready->load(std::memory_order_acquire)) return 1;
  auto ready = made.ready;
  const int node = made.node;
  return WaitInSlices(
      &python_stall_s,
      [&](double slice_s) {
        return step_->state().Wait(slice_s, [&] { return ready->load(); });
      },
      [&](double waited_s) {
        return CallController(controller_, "on_stall", "(id)", node, waited_s);
      });
}

int Session::WaitChannel(int channel) {
  auto arrived = std::make_shared<std::atomic<bool>>(false);
  std::shared_ptr<Step> step = step_;
  step_->mailbox().Take(channel, [arrived, step](std::optional<Message> m) {
    if (m.has_value()) arrived->store(true);
    step->state().Notify();
  });
  return WaitInSlices(
      &python_stall_s,
      [&](double slice_s) {
        return step_->state().Wait(slice_s, [&] { return arrived->load(); });
      },
      [&](double waited_s) {
        return CallController(controller_, "on_stall", "(id)", position_,
                              waited_s);
      });
}

int Session::WaitEnded() {
  const int result = WaitInSlices(
      &python_stall_s,
      [&](double slice_s) {
        return step_->state().Wait(slice_s, [] { return false; });
      },
      [&](double waited_s) {
        return CallController(controller_, "on_stall", "(id)", -1, waited_s);
      });
  return result < 0 ? -1 : 1;
}

// ---------------------------------------------------------------- outputs

bool Session::IsReferenced(const Made& made) {
  return made.handle != nullptr && !made.handle->RefCountIsOne();
}

void Session::SetOutput(int index, PyObject* tensor) {
  Made& made = made_.at(index);
  if (made.ready->load()) return;
  const Tensor* value = nullptr;
  absl::Status status = HandleOf(tensor)->Tensor(&value);
  if (status.ok()) status = made.handle->SetTensor(Tensor(*value), nullptr);
  if (!status.ok()) made.handle->Poison(status, nullptr);
  made.ready->store(true, std::memory_order_release);
  if (step_ != nullptr) step_->state().Notify();
}

void Session::PoisonOutput(int index, const std::string& message, int code) {
  Made& made = made_.at(index);
  if (made.ready->load()) return;
  made.handle->Poison(
      absl::Status(static_cast<absl::StatusCode>(code), message), nullptr);
  made.ready->store(true, std::memory_order_release);
  if (step_ != nullptr) step_->state().Notify();
}

PyRef Session::OutputTensor(int index) const {
  TensorHandle* handle = made_.at(index).handle;
  handle->Ref();
  return PyRef::Steal(EagerTensorFromHandle(tensorflow::wrap(handle)));
}

void Session::RegisterReal(PyObject* tensor, int node, int output) {
  if (!EagerTensor_CheckExact(tensor)) return;
  TensorHandle* handle = HandleOf(tensor);
  handle->Ref();
  table_.Insert(handle, static_cast<int32_t>(made_.size()));
  made_.emplace_back(handle, node, output, -1, true);
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

void Session::AddReal(int node, PyObject* outputs) {
  const Py_ssize_t n = PyList_GET_SIZE(outputs);
  for (Py_ssize_t i = 0; i < n; ++i) {
    RegisterReal(PyList_GET_ITEM(outputs, i), node, static_cast<int>(i));
  }
}

PyRef Session::MakePending(const OutputSpec& spec, int node, int output) {
  tensorflow::EagerContext* context = Runtime().context;
  TensorHandle* handle = TensorHandle::CreateEmptyLocalHandle(
      nullptr, context->HostCPU(), nullptr, spec.dtype, context);
  if (spec.shape_known) {
    handle->SetInferenceShape(spec.context.get(), spec.shape_handle);
  }
  handle->Ref();  // ours
  table_.Insert(handle, static_cast<int32_t>(made_.size()));
  made_.emplace_back(handle, node, output, spec.fetch_channel, false);
  if (spec.fetch_channel >= 0) {
    handle->Ref();  // the receiver's
    auto ready = made_.back().ready;
    std::shared_ptr<Step> step = step_;
    step_->mailbox().Take(
        spec.fetch_channel,
        [handle, ready, step](std::optional<Message> message) {
          if (message.has_value()) {
            // Fails only when the handle has a value; then that one stays.
            absl::Status status =
                handle->SetTensor(std::move(message->tensor), nullptr);
            if (!status.ok()) handle->Poison(status, nullptr);
            ready->store(true, std::memory_order_release);
          }
          handle->Unref();
          step->state().Notify();
        });
  }
  return PyRef::Steal(EagerTensorFromHandle(tensorflow::wrap(handle)));
}

void Session::Release() {
  if (!live_) return;
  live_ = false;
  auto& live = Live();
  for (size_t i = 0; i < live.size(); ++i) {
    if (live[i] == this) {
      live.erase(live.begin() + i);
      break;
    }
  }
  table_.Clear();
  for (Made& made : made_) {
    if (made.handle != nullptr) made.handle->Unref();
    made.handle = nullptr;
  }
  made_.clear();
  feeds_.clear();
  variables_.clear();
  if (step_ != nullptr) step_->Unregister();
}

// ---------------------------------------------------------------- feeding

void Session::PutTensor(int channel, PyObject* tensor) {
  TensorHandle* handle = HandleOf(tensor);
  Message message;
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
    }
  }
  step_->mailbox().Put(channel, std::move(message));
}

void Session::BindInputs(const Call& call, const PlanNode& node) {
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    const InputRef& ref = node.inputs[i];
    PyObject* tensor = call.inputs[i].get();
    if (ref.kind == InputKind::kFeed && !feeds_[ref.a]) {
      feeds_[ref.a] = PyRef::Borrow(tensor);
      PutTensor(plan_->feeds[ref.a].channel, tensor);
    } else if (ref.kind == InputKind::kVariable) {
      const VariableSlot& slot = plan_->variables[ref.a];
      if (!slot.captured && !variables_[ref.a]) {
        variables_[ref.a] = PyRef::Borrow(tensor);
        const Tensor* value = nullptr;
        if (HandleOf(tensor)->Tensor(&value).ok()) {
          bound_.emplace_back(ResourceKey(*value), ref.a);
        }
        PutTensor(slot.feed_channel, tensor);
      }
      if (ref.b != 0) slot_written_[ref.a] = 1;
    }
  }
}

void Session::PushSeeds(const Call& call, const PlanNode& node, int index) {
  int64_t seed = 0;
  int64_t seed2 = 0;
  FindSeeds(call.attrs.get(), &seed, &seed2);
  std::array<uint64_t, 3> state;
  if (seed == 0 && seed2 == 0) {
    state = {RandomKey(), 0, RandomKey()};
  } else {
    int64_t elements = 1;
    for (const OutputSpec& out : node.outputs) {
      if (out.shape_known) elements = out.shape.num_elements();
    }
    // Eager's kernel skips 256 samples an element, 4 a counter step.
    uint64_t& used =
        Seeds().used[absl::StrCat(node.name, ":", seed, ":", seed2)];
    state = {static_cast<uint64_t>(seed), used, static_cast<uint64_t>(seed2)};
    used += static_cast<uint64_t>(elements) * 64;
  }
  seeds_.emplace_back(index, state);
  Message message;
  message.tensor = Tensor(tensorflow::DT_UINT64, {3});
  for (int i = 0; i < 3; ++i) {
    message.tensor.flat<uint64_t>()(i) = state[i];
  }
  step_->mailbox().Put(node.seed_channel, std::move(message));
}

// ---------------------------------------------------------------- matching

const char* Session::VerifyVariable(const InputRef& ref, PyObject* tensor,
                                    std::string* detail) {
  const VariableSlot& slot = plan_->variables[ref.a];
  PyObject* expected =
      slot.captured ? slot.captured.get() : variables_[ref.a].get();
  if (expected != nullptr) {
    if (HandleOf(expected) == HandleOf(tensor)) return nullptr;
    *detail = "another variable";
    return "variable_changed";
  }
  const Tensor* value = nullptr;
  if (!HandleOf(tensor)->Tensor(&value).ok() ||
      value->dtype() != tensorflow::DT_RESOURCE) {
    *detail = "not a variable";
    return "variable_changed";
  }
  const uint64_t key = ResourceKey(*value);
  for (const VariableSlot& other : plan_->variables) {
    if (other.captured && other.key == key) {
      *detail = "the variable of another place";
      return "variable_changed";
    }
  }
  for (const auto& [bound_key, bound_slot] : bound_) {
    if (bound_key == key && bound_slot != ref.a) {
      *detail = "the variable of another place";
      return "variable_changed";
    }
  }
  // The handle knows the variable's type and shape.
  PyRef same = PyRef::Steal(PyObject_CallFunction(
      slot.accepts.get(), "O", tensor));
  if (!same) {
    PyErr_Clear();
    *detail = "a variable of unknown type";
    return "variable_changed";
  }
  if (same.get() == Py_True) return nullptr;
  *detail = "a variable of another type or shape";
  return "variable_changed";
}

const char* Session::VerifyFeed(const InputRef& ref, PyObject* tensor,
                                std::string* detail) {
  TensorHandle* handle = HandleOf(tensor);
  if (FindMade(handle) >= 0) {
    *detail = "a tensor of this step where an outside one was expected";
    return "dataflow_changed";
  }
  if (feeds_[ref.a]) {
    if (HandleOf(feeds_[ref.a].get()) == handle) return nullptr;
    *detail = "another tensor than at this tensor's first use";
    return "dataflow_changed";
  }
  const FeedSlot& slot = plan_->feeds[ref.a];
  tensorflow::PartialTensorShape shape;
  // Outputs of earlier steps may be pending: a known shape does not wait.
  if (!EnsureReadable(tensor, Reading::kShape)) {
    PyErr_Clear();
    *detail = "a tensor that could not be read";
    return "feed_changed";
  }
  if (!handle->Shape(&shape).ok() || handle->DataType() != slot.dtype ||
      !slot.shape.IsCompatibleWith(shape)) {
    *detail = absl::StrCat(
        tensorflow::DataTypeString(handle->DataType()), shape.DebugString(),
        " where ", tensorflow::DataTypeString(slot.dtype),
        slot.shape.DebugString(), " was expected");
    return "feed_changed";
  }
  return nullptr;
}

const char* Session::VerifyInput(const InputRef& ref, PyObject* tensor,
                                 std::string* detail) {
  TensorHandle* handle = HandleOf(tensor);
  switch (ref.kind) {
    case InputKind::kOutput: {
      const int32_t index = FindMade(handle);
      if (index >= 0 && made_[index].node == ref.a &&
          made_[index].output == ref.b) {
        return nullptr;
      }
      *detail = absl::StrCat("expected output ", ref.b, " of op ", ref.a);
      return "dataflow_changed";
    }
    case InputKind::kVariable:
      return VerifyVariable(ref, tensor, detail);
    case InputKind::kConstant: {
      ConstantSlot& constant = plan_->constants[ref.a];
      if (HandleOf(constant.tensor.get()) == handle) return nullptr;
      if (FindMade(handle) >= 0) {
        *detail = "a tensor of this step where a constant was expected";
        return "dataflow_changed";
      }
      const Tensor* value = nullptr;
      if (!EnsureReadable(tensor, Reading::kValue)) PyErr_Clear();
      if (handle->Tensor(&value).ok() && ConstantMatches(constant, *value)) {
        return nullptr;
      }
      *detail = value == nullptr
                    ? "a constant that could not be read"
                    : absl::StrCat(constant.value.SummarizeValue(4), " became ",
                                   value->SummarizeValue(4));
      return "constant_changed";
    }
    case InputKind::kCaptured:
      if (HandleOf(plan_->captured[ref.a].get()) == handle) return nullptr;
      *detail = "another tensor object";
      return "capture_changed";
    case InputKind::kFeed:
      return VerifyFeed(ref, tensor, detail);
    case InputKind::kAny:
      return nullptr;
  }
  return "dataflow_changed";
}

const char* Session::VerifySeeds(const Call& call, PlanNode* node,
                                 std::string* detail) {
  if (!node->seeded) return nullptr;
  int64_t seed = 0;
  int64_t seed2 = 0;
  if (FindSeeds(call.attrs.get(), &seed, &seed2) &&
      IsInternalPair(seed, seed2)) {
    return nullptr;
  }
  *detail = "an op-level seed";
  return "attributes_changed";
}

const char* Session::Verify(const Call& call, PlanNode* node,
                            std::string* detail) {
  if (!SameOp(*node, call)) {
    *detail = absl::StrCat(Describe(call), " where ", node->name,
                           " was expected");
    return "new_path";
  }
  if (node->counts != call.counts) {
    *detail = "another number of inputs";
    return "new_path";
  }
  if (plan_->check_devices) {
    PyRef device = PyRef::Steal(
        PyObject_GetAttrString(Runtime().py_context, "device_name"));
    const char* text = device && PyUnicode_Check(device.get())
                           ? PyUnicode_AsUTF8(device.get())
                           : "";
    PyErr_Clear();
    if (node->device != text) {
      *detail = text;
      return "device_changed";
    }
  }
  // What Python runs itself may have other attributes every time.
  const int same =
      node->kind == NodeKind::kImperative ? 1 : AttributesMatch(node, call);
  if (same < 0) PyErr_Clear();
  if (same != 1) {
    *detail = "attributes";
    return "attributes_changed";
  }
  for (size_t i = 0; i < node->inputs.size(); ++i) {
    const char* reason =
        VerifyInput(node->inputs[i], call.inputs[i].get(), detail);
    if (reason != nullptr) return reason;
  }
  return VerifySeeds(call, node, detail);
}

bool Session::Diverge(const char* reason, const std::string& detail) {
  return CallController(controller_, "on_divergence", "(ss)", reason,
                        detail.c_str());
}

// ---------------------------------------------------------------- running

bool TapeIsActive() {
  PyRef empty = PyRef::Steal(TFE_Py_TapeSetIsEmpty());
  return empty.get() != Py_True;
}

namespace {

bool RunsPython(const Call& call) {
  return call.info == nullptr ||
         call.info->name.find("PyFunc") != std::string::npos;
}

// attrs + inferred attributes + the marker that names the forward op.
PyRef TapeAttrs(const Call& call, int node) {
  PyRef list = PyRef::Steal(PySequence_List(call.attrs.get()));
  auto append = [&](PyObject* name, PyRef value) {
    PyList_Append(list.get(), name);
    PyList_Append(list.get(), value.get());
  };
  size_t next = 0;
  const OpInfo& info = *call.info;
  for (size_t i = 0; i < info.args.size(); ++i) {
    const OpInfo::Arg& arg = info.args[i];
    const int n = call.counts[i] < 0 ? 1 : call.counts[i];
    if (arg.kind == OpInfo::ArgKind::kRepeated) {
      PyRef name = PyRef::Steal(PyUnicode_FromString(arg.number_attr.c_str()));
      append(name.get(), PyRef::Steal(PyLong_FromLong(n)));
    }
    if (arg.kind == OpInfo::ArgKind::kHeterogeneous) {
      PyRef name = PyRef::Steal(PyUnicode_FromString(arg.list_attr.c_str()));
      PyRef types = PyRef::Steal(PyList_New(n));
      for (int k = 0; k < n; ++k) {
        PyList_SET_ITEM(types.get(), k,
                        PyLong_FromLong(HandleOf(call.inputs[next + k].get())
                                            ->DataType()));
      }
      append(name.get(), std::move(types));
    } else if (arg.type_attr >= 0 && n > 0) {
      PyRef name = PyRef::Steal(PyUnicode_FromString(
          info.type_attrs[arg.type_attr].name.c_str()));
      append(name.get(), PyRef::Steal(PyLong_FromLong(
                             HandleOf(call.inputs[next].get())->DataType())));
    }
    next += n;
  }
  static PyObject* marker = PyUnicode_InternFromString("_terra_node");
  append(marker, PyRef::Steal(PyLong_FromLong(node)));
  return PyRef::Steal(PyList_AsTuple(list.get()));
}

}  // namespace

PyObject* ExecuteAndRecord(const Call& call, int node) {
  NestedScope nested;
  if (call.route == Route::kFull || RunsPython(call) || !TapeIsActive()) {
    return Execute(call);
  }
  TFE_Py_TapeSetStopOnThread();
  PyRef result = PyRef::Steal(Execute(call));
  TFE_Py_TapeSetRestartOnThread();
  if (!result) return nullptr;
  PyRef outputs = OutputList(result.get());
  PyRef inputs = call.InputTuple();
  PyRef attrs = TapeAttrs(call, node);
  PyRef recorded = PyRef::Steal(TFE_Py_RecordGradient(
      call.info->py_name.get(), inputs.get(), attrs.get(), outputs.get(),
      Py_None));
  if (!recorded) return nullptr;
  return result.release();
}

bool Session::RecordOnTape(const Call& call, const PlanNode& node,
                           const std::vector<PyRef>& outputs) {
  PyRef list = PyRef::Steal(PyList_New(outputs.size()));
  for (size_t i = 0; i < outputs.size(); ++i) {
    PyList_SET_ITEM(list.get(), i, PyRef(outputs[i]).release());
  }
  PyRef inputs = call.InputTuple();
  PyRef recorded = PyRef::Steal(
      TFE_Py_RecordGradient(node.info->py_name.get(), inputs.get(),
                            node.tape_attrs.get(), list.get(), Py_None));
  return static_cast<bool>(recorded);
}

PyObject* Session::Delegate(const Call& call, PlanNode* node) {
  const bool records = call.route == Route::kFast && !node->outputs.empty() &&
                       node->kind == NodeKind::kDelegated && TapeIsActive();
  for (const OutputSpec& spec : node->outputs) {
    // The tape asks for the shape at once, holding the GIL.
    if (records && !spec.shape_known && spec.fetch_channel < 0) {
      if (!Diverge("unplanned_materialization",
                   absl::StrCat("the tape needs the shape of ", node->name))) {
        return nullptr;
      }
      return OnCall(call);
    }
  }
  std::vector<PyRef> outputs;
  outputs.reserve(node->outputs.size());
  if (node->kind == NodeKind::kFolded) {
    outputs = node->folded;
  } else {
    BindInputs(call, *node);
    if (node->seeded) PushSeeds(call, *node, position_);
    for (size_t i = 0; i < node->outputs.size(); ++i) {
      outputs.push_back(
          MakePending(node->outputs[i], position_, static_cast<int>(i)));
    }
  }
  const size_t first_made = made_.size() - outputs.size();
  ++position_;
  ++num_matched;
  if (records) {
    for (size_t i = 0; i < node->outputs.size(); ++i) {
      if (node->outputs[i].shape_known) continue;
      const int ready = WaitReady(made_[first_made + i]);
      if (ready < 0) return nullptr;
      if (ready == 0 && !Diverge("op_error", node->name)) return nullptr;
    }
    if (!RecordOnTape(call, *node, outputs)) return nullptr;
  }
  return WrapOutputs(call, std::move(outputs)).release();
}

// 1 when every input has a value; 0 when the session diverged instead; -1
// with an exception set.
int Session::AwaitInputs(const Call& call) {
  for (const PyRef& input : call.inputs) {
    const int32_t index = FindMade(HandleOf(input.get()));
    if (index < 0) {
      if (!EnsureReadable(input.get(), Reading::kValue)) return -1;
      continue;
    }
    Made& made = made_[index];
    if (!made.ready->load()) {
      if (made.fetch_channel < 0) {
        return Diverge("unplanned_materialization",
                       "an input of " + Describe(call))
                   ? 0
                   : -1;
      }
      const int ready = WaitReady(made);
      if (ready < 0) return -1;
      if (ready == 0) return Diverge("op_error", Describe(call)) ? 0 : -1;
    }
    made.seen = true;
  }
  return 1;
}

PyObject* Session::RunImperative(const Call& call, PlanNode* node) {
  const int index = position_;
  if (node->closes_epoch &&
      !CallController(controller_, "on_epoch_close", "(i)", index)) {
    return nullptr;
  }
  if (mode_ != Mode::kCoExecution) return OnCall(call);
  if (node->check_channel >= 0) {
    const int ok = WaitChannel(node->check_channel);
    if (ok < 0) return nullptr;
    if (ok == 0) {
      if (!Diverge("op_error", "before " + Describe(call))) return nullptr;
      return OnCall(call);
    }
  }
  const int awaited = AwaitInputs(call);
  if (awaited < 0) return nullptr;
  if (awaited == 0) return OnCall(call);
  PyRef result = PyRef::Steal(ExecuteAndRecord(call, index));
  if (!result) return nullptr;
  PyRef outputs = OutputList(result.get());
  const size_t n = PyList_GET_SIZE(outputs.get());
  bool as_planned = n == node->outputs.size();
  for (size_t i = 0; as_planned && i < n; ++i) {
    PyObject* tensor = PyList_GET_ITEM(outputs.get(), i);
    const OutputSpec& spec = node->outputs[i];
    tensorflow::PartialTensorShape shape;
    as_planned = EagerTensor_CheckExact(tensor) &&
                 HandleOf(tensor)->DataType() == spec.dtype &&
                 HandleOf(tensor)->Shape(&shape).ok() &&
                 spec.shape.IsCompatibleWith(shape);
  }
  if (mode_ == Mode::kCoExecution && !as_planned &&
      !Diverge("feed_changed", "the result of " + Describe(call))) {
    return nullptr;
  }
  if (mode_ != Mode::kCoExecution) {
    // Diverged, or seized while the op ran: it belongs to the new trace.
    if (mode_ == Mode::kTracing) {
      PyRef inputs = call.InputTuple();
      PyRef counts = call.CountTuple();
      if (!CallController(controller_, "on_op", "(OiOOO)", call.py_name,
                          call.route == Route::kFast ? 1 : 0, call.attrs.get(),
                          inputs.get(), counts.get())) {
        return nullptr;
      }
      AddReal(index, outputs.get());
      if (!CallController(controller_, "on_result", "(iO)", index,
                          outputs.get())) {
        return nullptr;
      }
    }
    return result.release();
  }
  for (size_t i = 0; i < n; ++i) {
    PyObject* tensor = PyList_GET_ITEM(outputs.get(), i);
    RegisterReal(tensor, index, static_cast<int>(i));
    const int channel = node->outputs[i].feed_channel;
    if (channel >= 0) PutTensor(channel, tensor);
  }
  if (node->closes_epoch &&
      !CallController(controller_, "on_epoch_resume", "(i)", index)) {
    return nullptr;
  }
  ++position_;
  return result.release();
}

PyObject* Session::Trace(const Call& call) {
  PyRef inputs = call.InputTuple();
  PyRef counts = call.CountTuple();
  PyRef index = PyRef::Steal(PyObject_CallMethod(
      controller_, "on_op", "OiOOO", call.py_name,
      call.route == Route::kFast ? 1 : 0, call.attrs.get(), inputs.get(),
      counts.get()));
  if (!index) return nullptr;
  const int node = static_cast<int>(PyLong_AsLong(index.get()));
  for (const PyRef& input : call.inputs) {
    // A tensor of an earlier step may still be pending.
    if (FindMade(HandleOf(input.get())) < 0 &&
        !EnsureReadable(input.get(), Reading::kValue)) {
      return nullptr;
    }
  }
  PyRef result = PyRef::Steal(ExecuteAndRecord(call, node));
  if (!result) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    const bool noted = CallController(controller_, "on_error", "(i)", node);
    if (noted) PyErr_Restore(type, value, traceback);
    return nullptr;
  }
  PyRef outputs = OutputList(result.get());
  AddReal(node, outputs.get());
  if (!CallController(controller_, "on_result", "(iO)", node,
                      outputs.get())) {
    return nullptr;
  }
  return result.release();
}

PyObject* Session::OnCall(const Call& call) {
  const int64_t delay_us = Delays().python_us.load(std::memory_order_relaxed);
  if (delay_us > 0) {
    ReleaseGil release;
    SleepAtRandom(delay_us);
  }
  if (mode_ == Mode::kImperative) return Execute(call);
  if (mode_ == Mode::kTracing) return Trace(call);
  const char* reason = nullptr;
  std::string detail;
  if (position_ >= static_cast<int>(plan_->nodes.size())) {
    reason = "new_path";
    detail = Describe(call) + " where the step was expected to end";
  } else {
    PlanNode* node = &plan_->nodes[position_];
    reason = Verify(call, node, &detail);
    if (reason == nullptr && mode_ == Mode::kCoExecution) {
      if (node->kind == NodeKind::kImperative) return RunImperative(call, node);
      if (!node->closes_epoch) return Delegate(call, node);
      // A read after an in-place write: the write is applied first.
      if (!CallController(controller_, "on_epoch_close", "(i)", position_) ||
          (mode_ == Mode::kCoExecution &&
           !CallController(controller_, "on_epoch_resume", "(i)",
                           position_))) {
        return nullptr;
      }
      return mode_ == Mode::kCoExecution ? Delegate(call, node) : OnCall(call);
    }
  }
  // Verify may have waited, and this step may have been seized meanwhile.
  if (mode_ == Mode::kCoExecution && !Diverge(reason, detail)) return nullptr;
  return OnCall(call);
}

}  // namespace terra
