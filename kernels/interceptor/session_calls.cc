// Session: library calls, known ones replayed (docs/design/0009).
#include <functional>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/interceptor/controller.h"
#include "kernels/interceptor/hooks.h"
#include "kernels/interceptor/python_scopes.h"
#include "kernels/interceptor/session.h"
#include "kernels/interceptor/state_guard.h"
#include "kernels/interceptor/tf_python.h"
#include "kernels/interceptor/waiting.h"
#include "tensorflow/core/util/determinism.h"

namespace terra {
namespace {

using tensorflow::TensorHandle;

constexpr int kMaxDepth = 8;  // of lists in lists

bool ReplayIsOn() { return Knobs().replays_calls.load(); }

}  // namespace

// ---------------------------------------------------------------- arguments

const char* Session::MixTensor(PyObject* tensor, Hash* key) {
  TensorHandle* handle = HandleOf(tensor);
  const int32_t index = FindMade(handle);
  if (index >= 0) {
    key->Mix(Event::kMadeHere, static_cast<uint64_t>(made_[index].node));
    key->Mix(static_cast<uint64_t>(made_[index].output));
    return nullptr;
  }
  const auto fixed = plan_->fixed.find(handle);
  if (fixed != plan_->fixed.end()) {
    key->Mix(Event::kFixed, static_cast<uint64_t>(fixed->second));
  }
  history_.MixName(tensor, key);
  key->Mix(Event::kType, static_cast<uint64_t>(handle->DataType()));
  if (handle->DataType() == tensorflow::DT_RESOURCE) return nullptr;
  if (!EnsureReadable(tensor, Reading::kShape)) {
    ClearOwnError();
    return "a tensor that could not be read";
  }
  tensorflow::PartialTensorShape shape;
  if (!handle->Shape(&shape).ok()) return "a tensor of unknown shape";
  key->MixShape(shape);
  return nullptr;
}

const char* Session::MixArgument(PyObject* value, Hash* key, int depth) {
  if (value == Py_None && takes_objects_ && depth > 0) {
    return "a gradient is None, of which Keras warns";
  }
  if (value == Py_None || PyBool_Check(value)) {
    key->Mix(Event::kObject, reinterpret_cast<uintptr_t>(value));
    return nullptr;
  }
  if (EagerTensor_CheckExact(value)) return MixTensor(value, key);
  if (PyLong_CheckExact(value)) {
    int overflow = 0;
    const long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (overflow != 0) return "a number of more than 64 bits";
    key->Mix(Event::kNumber, static_cast<uint64_t>(number));
    return nullptr;
  }
  if (PyUnicode_CheckExact(value)) {
    const char* text = PyUnicode_AsUTF8(value);
    if (text == nullptr) {
      ClearOwnError();
      return "text that is no UTF-8";
    }
    key->Mix(Event::kText, std::hash<std::string>()(text));
    return nullptr;
  }
  if (PyFloat_CheckExact(value)) {
    const double number = PyFloat_AS_DOUBLE(value);
    uint64_t bits;
    std::memcpy(&bits, &number, sizeof(bits));
    key->Mix(Event::kReal, bits);
    return nullptr;
  }
  const bool is_list = PyList_CheckExact(value);
  if (is_list || PyTuple_CheckExact(value)) {
    key->Mix(is_list ? Event::kList : Event::kTuple);
    // Looking at a tensor may run Python that changes the list: copy it.
    PyRef items = PyRef::Steal(PySequence_Tuple(value));
    return MixItems(items.get(), key, depth);
  }
  if (IsSlices(value)) {
    PyRef items = ItemsOfSlices(value);
    if (!items) return "slices of another kind";
    key->Mix(Event::kSlices);
    return MixItems(items.get(), key, depth);
  }
  if (!takes_objects_) return "an argument of another kind";
  key->Mix(Event::kObject, reinterpret_cast<uintptr_t>(value));
  objects_.push_back(value);
  return nullptr;
}

const char* Session::MixItems(PyObject* items, Hash* key, int depth) {
  if (depth >= kMaxDepth) return "lists nested deeply";
  const Py_ssize_t n = PyTuple_GET_SIZE(items);
  key->Mix(static_cast<uint64_t>(n));
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* item = PyTuple_GET_ITEM(items, i);
    const char* problem = MixArgument(item, key, depth + 1);
    if (problem != nullptr) return problem;
  }
  return nullptr;
}

PyRef Session::GuardObjects(const std::vector<PyObject*>& objects) {
  if (objects.empty()) return PyRef();
  PyRef list = PyRef::Steal(PyList_New(objects.size()));
  for (size_t i = 0; i < objects.size(); ++i) {
    PyList_SET_ITEM(list.get(), i, PyRef::Borrow(objects[i]).release());
  }
  return PyRef::Steal(
      PyObject_CallMethod(controller_, "guard", "O", list.get()));
}

const char* Session::KeyOf(const LibraryCall& call, uint64_t* key) {
  Hash hash(history_.hash().value());
  hash.Mix(tensorflow::OpDeterminismRequired());
  hash.Mix(reinterpret_cast<uintptr_t>(call.function));
  if (call.differentiates) {
    PyObject* tape = PyTuple_GET_ITEM(call.args, 0);
    hash.Mix(Event::kTape, static_cast<uint64_t>(tapes_.at(tape)));
  }
  takes_objects_ = call.takes_objects;
  if (takes_objects_) hash.Mix(PureKey::HashOfKerasContext());
  objects_.clear();
  for (PyObject* value : call.given) {
    const char* problem = MixArgument(value, &hash, 0);
    if (problem != nullptr) return problem;
  }
  if (plan_->check_devices) {
    hash.Mix(std::hash<std::string>()(DeviceScope()));
  }
  hash.Mix(static_cast<uint64_t>(position()));
  *key = hash.value();
  return nullptr;
}

// What an op's outside input is, in the history.
void Session::MixIdentity(PyObject* tensor) {
  TensorHandle* handle = HandleOf(tensor);
  Hash& hash = history_.hash();
  const int32_t index = FindMade(handle);
  if (index >= 0) {
    hash.Mix(Event::kMadeHere, static_cast<uint64_t>(made_[index].node));
    hash.Mix(static_cast<uint64_t>(made_[index].output));
    return;
  }
  const auto fixed = plan_->fixed.find(handle);
  if (fixed != plan_->fixed.end()) {
    hash.Mix(Event::kFixed, static_cast<uint64_t>(fixed->second));
  }
  history_.MixName(tensor, &hash);
}

void Session::MixShapeOf(PyObject* tensor) {
  tensorflow::PartialTensorShape shape;
  if (HandleOf(tensor)->DataType() != tensorflow::DT_RESOURCE &&
      HandleOf(tensor)->Shape(&shape).ok()) {
    history_.hash().MixShape(shape);
  }
}

// -------------------------------------------------------------------- reads

void Session::NoteRead(PyObject* tensor, bool shape_only) {
  if (num_learning_ == 0 || !EagerTensor_CheckExact(tensor)) return;
  const int32_t index = FindMade(HandleOf(tensor));
  if (index < 0 && !shape_only &&
      plan_->constant_of.count(HandleOf(tensor)) == 0) {
    for (PureLearning* learning : pure_learnings_) {
      if (IdOf(tensor) >= learning->first_id) continue;  // made in it
      learning->obstacle = "its Python reads a tensor from outside";
    }
  }
  if (index >= 0) {
    if (shape_only && ShapeIsKnown(made_[index])) return;
    Obstruct("its Python reads a result of the step");
  } else if (!shape_only && (history_.FindName(tensor) >= 0 ||
                             plan_->fixed.count(HandleOf(tensor)) > 0)) {
    Obstruct("its Python reads a tensor from outside");
  }
}

// ------------------------------------------------------------------- calling

std::string Session::WhyNotNow(const LibraryCall& call) const {
  if (TapeIsActive()) return "a tape was recording it";
  if (CurrentThread().num_watchers > 0)
    return "the variables it uses were being watched";
  if (!call.differentiates) return "";
  if (runs_user_gradients_) return "it runs a gradient of the user's";
  return KnowsTape(PyTuple_GET_ITEM(call.args, 0))
             ? ""
             : "the tape was not made in this step";
}

PyObject* Session::OnLibraryCall(const LibraryCall& call) {
  auto run = [&]() -> PyObject* {
    if (call.differentiates && !FlushAllTapes()) return nullptr;
    return PyObject_Call(call.function, call.args, call.kwargs);
  };
  if (!AwaitSeizure()) return nullptr;
  if (mode_ != Mode::kCoExecution || bound_for_ >= 0 || !ReplayIsOn()) {
    return run();
  }
  std::string problem = WhyNotNow(call);
  uint64_t key = 0;
  if (problem.empty()) {
    const char* in_arguments = KeyOf(call, &key);
    if (mode_ != Mode::kCoExecution) return run();
    if (in_arguments != nullptr) problem = in_arguments;
  }
  if (!problem.empty()) {
    ++plan_->counts->not_replayed[{call.name, problem}];
    return run();
  }
  const std::shared_ptr<const CallRecord> record = plan_->calls.Find(key);
  if (record == nullptr || !record->anchors.AreAlive()) {
    return RunAndLearn(call, key);
  }
  if (!record->refusal.empty()) {
    ++plan_->counts->not_replayed[{call.name, record->refusal}];
    if (record->tries_left > 0) return RunAndLearn(call, key);
    return run();
  }
  if (!ResumePending()) return nullptr;
  const int fits = mode_ == Mode::kCoExecution ? Fits(*record) : 0;
  if (fits < 0) return nullptr;
  if (fits == 0 || mode_ != Mode::kCoExecution) {
    ++plan_->counts
          ->not_replayed[{call.name, "something it depends on has changed"}];
    return RunAndLearn(call, key);
  }
  PyRef result = PyRef::Steal(ReplayCall(*record));
  for (const int node : record->path) {
    if (result && !LeaveTry(plan_->nodes[node].exit_channel, node)) {
      return nullptr;
    }
  }
  return result.release();
}

int Session::Fits(const CallRecord& record) {
  using Kind = Binding::Kind;
  std::string detail;
  Claims claims;
  if (record.guard && !GuardOf(record.guard.get())->IsUnchanged()) return 0;
  for (const Binding& binding : record.bindings) {
    const char* problem = nullptr;
    if (binding.HasName() && history_.Named(binding.a) == nullptr) return 0;
    if (binding.kind == Kind::kConstant || binding.kind == Kind::kFeed) {
      const auto kind =
          binding.kind == Kind::kFeed ? InputKind::kFeed : InputKind::kConstant;
      problem = VerifyInput({kind, binding.slot, 0}, history_.Named(binding.a),
                            &claims, &detail);
    } else if (binding.kind == Kind::kVariable) {
      problem = VerifyVariable({InputKind::kVariable, binding.slot, 0},
                               history_.Named(binding.a), &claims, &detail);
    } else if (binding.kind == Kind::kJoinOutside) {
      problem = VerifyInput({InputKind::kJoin, binding.slot, 0},
                            history_.Named(binding.a), &claims, &detail);
    }
    if (problem != nullptr || mode_ != Mode::kCoExecution) return 0;
  }
  return PyErr_Occurred() ? -1 : 1;
}

void Session::Rebind(const Binding& binding) {
  using Kind = Binding::Kind;
  bindings_.push_back(binding);
  switch (binding.kind) {
    case Kind::kFeed:
      BindFeed(binding.slot, history_.Named(binding.a));
      break;
    case Kind::kVariable:
      BindVariable(plan_->variables[binding.slot], history_.Named(binding.a));
      break;
    case Kind::kVariableFeed:
      FeedVariable(binding.slot, Variable(binding.slot).get());
      break;
    case Kind::kWrite:
      slot_written_[binding.slot] = static_cast<char>(binding.a);
      break;
    case Kind::kJoinMade:
    case Kind::kJoinOutside: {
      Decided& decided = decided_[binding.slot];
      decided.is_set = true;
      if (binding.kind == Kind::kJoinMade) {
        decided.node = binding.a;
        decided.output = binding.b;
      } else {
        decided.external = PyRef::Borrow(history_.Named(binding.a));
      }
      TellJoin(binding.slot);
      break;
    }
    case Kind::kConstant:
      break;
  }
}

PyObject* Session::ReplayCall(const CallRecord& record) {
  GcPause no_python_in_between;
  for (const auto& [channel, branch] : record.decisions) {
    SendDecision(channel, branch);
  }
  for (const Binding& binding : record.bindings) Rebind(binding);
  Tensors made;
  made.reserve(record.made.size());
  for (const CallRecord::Output& output : record.made) {
    PlanNode& node = plan_->nodes[output.node];
    made.push_back(MakePending(node.outputs[output.output], output.node,
                               output.output, node.marker.get(), output.shape));
  }
  for (const auto& [web, node, output] : record.latest) {
    web_latest_[web] = {node, output};
  }
  if (!record.path.empty()) {
    path_.insert(path_.end(), record.path.begin(), record.path.end());
    at_ = record.path.back();
    num_matched += static_cast<int64_t>(record.path.size());
  }
  history_.JumpTo(record.history_after, record.num_names_after);
  names_ = record.names_after;
  ++*record.num_replayed;
  return MakeResult(record.result, made, {}).release();
}

PyRef Session::MakeResult(const ResultPattern& pattern, const Tensors& made,
                          const Operands& operands) const {
  using Kind = ResultPattern::Kind;
  switch (pattern.kind) {
    case Kind::kObject:
      return pattern.object;
    case Kind::kMade:
    case Kind::kFolded: {
      PyRef tensor = pattern.kind == Kind::kMade
                         ? made[pattern.number]
                         : SameValueNewObject(pattern.object.get());
      if (tensor && pattern.is_zeros && !MarkAsZeros(tensor.get())) {
        return PyRef();
      }
      if (tensor && pattern.assign &&
          !MarkAsSlice(tensor.get(), pattern.assign.get(),
                       operands[0].object)) {
        return PyRef();
      }
      if (tensor && !pattern.items.empty()) {  // Keras' logits
        PyRef logits = MakeResult(pattern.items.front(), made, operands);
        if (!logits || !SetLogits(tensor.get(), logits.get())) return PyRef();
      }
      return tensor;
    }
    case Kind::kUnread:
      return MakeUnreadVariable(pattern.object.get(),
                                operands.empty()
                                    ? Variable(pattern.number).get()
                                    : operands[pattern.number].tensor());
    case Kind::kOperand:
      return PyRef::Borrow(operands[pattern.number].object);
    case Kind::kOutside:
      return PyRef::Borrow(history_.Named(pattern.number));
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kSlices:
      break;
  }
  const bool is_list = pattern.kind == Kind::kList;
  const size_t n = pattern.items.size();
  PyRef items = PyRef::Steal(is_list ? PyList_New(n) : PyTuple_New(n));
  for (size_t i = 0; i < n; ++i) {
    PyObject* item = MakeResult(pattern.items[i], made, operands).release();
    if (item == nullptr) return PyRef();
    if (is_list) {
      PyList_SET_ITEM(items.get(), i, item);
    } else {
      PyTuple_SET_ITEM(items.get(), i, item);
    }
  }
  if (pattern.kind != Kind::kSlices) return items;
  return PyRef::Steal(
      PyObject_CallObject(Runtime().indexed_slices_type, items.get()));
}

}  // namespace terra
