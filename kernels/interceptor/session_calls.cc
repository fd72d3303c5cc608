// Session: library calls, followed once and then replayed (docs/design/0009).
#include "absl/strings/str_cat.h"
#include "kernels/interceptor/controller.h"
#include "kernels/interceptor/hooks.h"
#include "kernels/interceptor/python_scopes.h"
#include "kernels/interceptor/session.h"
#include "kernels/interceptor/tf_python.h"
#include "kernels/interceptor/waiting.h"

namespace terra {
namespace {

using tensorflow::TensorHandle;

constexpr size_t kMaxRecords = 4096;
constexpr int kMaxDepth = 8;  // of lists in lists

bool ReplayIsOn() { return Knobs().replays_calls.load(); }

bool HasName(const Binding& binding) {
  using Kind = Binding::Kind;
  return binding.kind == Kind::kFeed || binding.kind == Kind::kVariable ||
         binding.kind == Kind::kConstant || binding.kind == Kind::kJoinOutside;
}

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
  key->Mix(Event::kOutside, static_cast<uint64_t>(history_.NameOf(tensor)));
  key->Mix(Event::kType, static_cast<uint64_t>(handle->DataType()));
  if (handle->DataType() == tensorflow::DT_RESOURCE) return nullptr;
  if (!EnsureReadable(tensor, Reading::kShape)) {
    PyErr_Clear();
    return "a tensor that could not be read";
  }
  tensorflow::PartialTensorShape shape;
  if (!handle->Shape(&shape).ok()) return "a tensor of unknown shape";
  key->MixShape(shape);
  return nullptr;
}

const char* Session::MixArgument(PyObject* value, Hash* key, int depth) {
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
      PyErr_Clear();
      return "text that is no UTF-8";
    }
    key->Mix(Event::kText, std::hash<std::string>()(text));
    return nullptr;
  }
  const bool is_list = PyList_CheckExact(value);
  if (!is_list && !PyTuple_CheckExact(value)) {
    return "an argument of another kind";
  }
  if (depth >= kMaxDepth) return "lists nested deeply";
  // Looking at a tensor may run Python that changes the list: copy it.
  PyRef items = PyRef::Steal(PySequence_Tuple(value));
  const Py_ssize_t n = PyTuple_GET_SIZE(items.get());
  key->Mix(is_list ? Event::kList : Event::kTuple, static_cast<uint64_t>(n));
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* item = PyTuple_GET_ITEM(items.get(), i);
    const char* problem = MixArgument(item, key, depth + 1);
    if (problem != nullptr) return problem;
  }
  return nullptr;
}

const char* Session::KeyOf(const LibraryCall& call, uint64_t* key) {
  Hash hash(history_.hash().value());
  hash.Mix(reinterpret_cast<uintptr_t>(call.function));
  if (call.differentiates) {
    PyObject* tape = PyTuple_GET_ITEM(call.args, 0);
    hash.Mix(Event::kTape, static_cast<uint64_t>(tapes_.at(tape)));
  }
  for (PyObject* value : call.given) {
    const char* problem = MixArgument(value, &hash, 0);
    if (problem != nullptr) return problem;
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
  hash.Mix(Event::kOutside, static_cast<uint64_t>(history_.NameOf(tensor)));
}

void Session::MixShapeOf(PyObject* tensor) {
  tensorflow::PartialTensorShape shape;
  if (HandleOf(tensor)->DataType() != tensorflow::DT_RESOURCE &&
      HandleOf(tensor)->Shape(&shape).ok()) {
    history_.hash().MixShape(shape);
  }
}

// -------------------------------------------------------------- tapes, reads

void Session::NoteTapeEvent(TapeEvent event, PyObject* tape,
                            PyObject* tensor) {
  if (mode_ != Mode::kCoExecution) return;
  Hash& hash = history_.hash();
  hash.Mix(Event::kTape, static_cast<uint64_t>(event));
  if (event == TapeEvent::kNew) tapes_[tape] = num_tapes_++;
  if (tape != nullptr) {
    const auto known = tapes_.find(tape);
    hash.Mix(known == tapes_.end() ? ~0ull
                                   : static_cast<uint64_t>(known->second));
  }
  if (tensor == nullptr) return;
  if (EagerTensor_CheckExact(tensor)) {
    MixIdentity(tensor);
  } else {
    Obstruct("a tape was told of something that is no tensor");
    runs_user_gradients_ = true;
  }
}

void Session::NoteFlags(PyObject* flags) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(flags); ++i) {
    const int flag = PyObject_IsTrue(PyTuple_GET_ITEM(flags, i));
    history_.hash().Mix(Event::kNumber, static_cast<uint64_t>(flag));
  }
}

void Session::NoteRead(PyObject* tensor, bool shape_only) {
  if (num_learning_ == 0 || !EagerTensor_CheckExact(tensor)) return;
  const int32_t index = FindMade(HandleOf(tensor));
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
  if (CurrentThread().num_watchers > 0) return "the variables it uses were being watched";
  if (!call.differentiates) return "";
  if (runs_user_gradients_) return "it runs a gradient of the user's";
  return KnowsTape(PyTuple_GET_ITEM(call.args, 0))
             ? ""
             : "the tape was not made in this step";
}

PyObject* Session::OnLibraryCall(const LibraryCall& call) {
  auto run = [&] { return PyObject_Call(call.function, call.args, call.kwargs); };
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
    ++plan_->not_replayed[{call.name, problem}];
    return run();
  }
  const auto known = plan_->calls.find(key);
  if (known == plan_->calls.end()) return RunAndLearn(call, key);
  const std::shared_ptr<const CallRecord> record = known->second;
  if (!record->refusal.empty()) {
    ++plan_->not_replayed[{call.name, record->refusal}];
    if (record->tries_left > 0) return RunAndLearn(call, key);
    return run();
  }
  if (!ResumeEpoch()) return nullptr;
  const int fits = mode_ == Mode::kCoExecution ? Fits(*record) : 0;
  if (fits < 0) return nullptr;
  if (fits == 0 || mode_ != Mode::kCoExecution) {
    ++plan_->not_replayed[{call.name, "an argument was another constant"}];
    return run();
  }
  return ReplayCall(*record);
}

int Session::Fits(const CallRecord& record) {
  using Kind = Binding::Kind;
  std::string detail;
  for (const Binding& binding : record.bindings) {
    const char* problem = nullptr;
    if (HasName(binding) && history_.Named(binding.a) == nullptr) return 0;
    if (binding.kind == Kind::kConstant || binding.kind == Kind::kFeed) {
      const auto kind = binding.kind == Kind::kFeed ? InputKind::kFeed
                                                    : InputKind::kConstant;
      problem = VerifyInput({kind, binding.slot, 0},
                            history_.Named(binding.a), &detail);
    } else if (binding.kind == Kind::kVariable) {
      problem = VerifyVariable({InputKind::kVariable, binding.slot, 0},
                               history_.Named(binding.a), &detail);
    } else if (binding.kind == Kind::kJoinOutside) {
      problem = VerifyInput({InputKind::kJoin, binding.slot, 0},
                            history_.Named(binding.a), &detail);
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
  std::vector<PyRef> made;
  made.reserve(record.made.size());
  for (const CallRecord::Output& output : record.made) {
    PlanNode& node = plan_->nodes[output.node];
    made.push_back(MakePending(node.outputs[output.output], output.node,
                               output.output, node.marker.get(),
                               output.shape));
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
  ++num_replayed;
  return MakeResult(record.result, made).release();
}

PyRef Session::MakeResult(const ResultPattern& pattern,
                          const std::vector<PyRef>& made) const {
  using Kind = ResultPattern::Kind;
  switch (pattern.kind) {
    case Kind::kObject:
      return pattern.object;
    case Kind::kMade:
      return made[pattern.number];
    case Kind::kFolded:
      return SameValueNewObject(pattern.object.get());
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
    PyObject* item = MakeResult(pattern.items[i], made).release();
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

// ------------------------------------------------------------------ learning

PyObject* Session::RunAndLearn(const LibraryCall& call, uint64_t key) {
  const Learning learning{position(),      at_,
                          epoch_,          made_.size(),
                          bindings_.size(), history_.num_names(),
                          num_obstacles_};
  PyRef keep_alive = PyRef::Borrow(controller_);
  ++num_learning_;
  PyRef result =
      PyRef::Steal(PyObject_Call(call.function, call.args, call.kwargs));
  --num_learning_;
  if (!result) return nullptr;
  if (!live_ || mode_ != Mode::kCoExecution || bound_for_ >= 0) {
    return result.release();
  }
  const std::shared_ptr<CallRecord> record = Learn(learning, result.get());
  if (record == nullptr) return nullptr;
  auto& calls = plan_->calls;
  const auto before = calls.find(key);
  if (!record->refusal.empty()) {
    ++plan_->not_replayed[{call.name, record->refusal}];
    record->tries_left =
        before == calls.end() ? 2 : before->second->tries_left - 1;
  }
  if (calls.size() >= kMaxRecords) calls.clear();
  calls[key] = record;
  return result.release();
}

std::shared_ptr<CallRecord> Session::Learn(const Learning& learning,
                                           PyObject* result) {
  auto record = std::make_shared<CallRecord>();
  record->begin = learning.begin;
  if (num_obstacles_ != learning.num_obstacles) record->refusal = obstacle_;
  if (record->refusal.empty()) record->refusal = LearnPath(learning, &*record);
  if (record->refusal.empty()) {
    record->refusal = LearnBindings(learning, &*record);
  }
  if (record->refusal.empty()) {
    record->refusal = LearnResult(result, learning, &*record, &record->result);
  }
  if (record->refusal.empty()) record->refusal = LearnKept(learning, *record);
  record->history_after = history_.hash().value();
  record->num_names_after = history_.num_names();
  record->names_after =
      PyRef::Steal(PyObject_CallMethod(controller_, "names", nullptr));
  return record->names_after ? record : nullptr;
}

std::string Session::LearnPath(const Learning& learning, CallRecord* record) {
  if (epoch_ != learning.epoch || epoch_is_pending_) {
    return "an epoch ended in it";
  }
  int at = learning.at;
  for (size_t i = learning.begin; i < path_.size(); ++i) {
    const int number = path_[i];
    const PlanNode& node = plan_->nodes[number];
    if (node.kind == NodeKind::kImperative || node.on_host) {
      return absl::StrCat(node.name, " runs in Python");
    }
    if (node.seeded) return absl::StrCat(node.name, " draws random numbers");
    for (const auto& decision : Decisions(at, number)) {
      record->decisions.push_back(decision);
    }
    for (size_t k = 0; k < node.outputs.size(); ++k) {
      for (int web : node.outputs[k].webs) {
        record->latest.push_back({web, number, static_cast<int>(k)});
      }
    }
    if (node.shape_rule != nullptr && DependsOnNumbers(node)) {
      return absl::StrCat("the shape of ", node.name, " depends on a value");
    }
    record->path.push_back(number);
    at = number;
  }
  return "";
}

// Whether an integer that is no constant may say what shape results have.
bool Session::DependsOnNumbers(const PlanNode& node) const {
  for (const InputRef& ref : node.inputs) {
    tensorflow::DataType dtype = tensorflow::DT_INVALID;
    if (ref.kind == InputKind::kOutput) {
      dtype = plan_->nodes[ref.a].outputs[ref.b].dtype;
    } else if (ref.kind == InputKind::kFeed) {
      dtype = plan_->feeds[ref.a].dtype;
    } else if (ref.kind == InputKind::kJoin) {
      dtype = plan_->joins[ref.a].dtype;
    }
    if (dtype == tensorflow::DT_INT32 || dtype == tensorflow::DT_INT64) {
      return true;
    }
  }
  return false;
}

std::string Session::LearnBindings(const Learning& learning,
                                   CallRecord* record) {
  using Kind = Binding::Kind;
  for (size_t i = learning.num_bindings; i < bindings_.size(); ++i) {
    const Binding& binding = bindings_[i];
    if (HasName(binding) && binding.a >= learning.num_names) {
      if (binding.kind == Kind::kConstant) continue;  // its own
      return "it makes a tensor of a value that varies";
    }
    record->bindings.push_back(binding);
  }
  return "";
}

std::string Session::LearnResult(PyObject* value, const Learning& learning,
                                 CallRecord* record, ResultPattern* pattern) {
  using Kind = ResultPattern::Kind;
  if (value == Py_None || PyBool_Check(value) || PyLong_CheckExact(value) ||
      PyUnicode_CheckExact(value)) {
    pattern->object = PyRef::Borrow(value);
    return "";
  }
  if (EagerTensor_CheckExact(value)) {
    return LearnTensor(value, learning, record, pattern);
  }
  PyRef items;
  if (PyList_CheckExact(value) || PyTuple_CheckExact(value)) {
    pattern->kind = PyList_CheckExact(value) ? Kind::kList : Kind::kTuple;
    items = PyRef::Borrow(value);
  } else if (reinterpret_cast<PyObject*>(Py_TYPE(value)) ==
             Runtime().indexed_slices_type) {
    pattern->kind = Kind::kSlices;
    items = PyRef::Steal(PyTuple_New(3));
    const char* names[] = {"_values", "_indices", "_dense_shape"};
    for (int i = 0; i < 3; ++i) {
      PyObject* item = PyObject_GetAttrString(value, names[i]);
      if (item == nullptr) {
        PyErr_Clear();
        return "it returns slices of another kind";
      }
      PyTuple_SET_ITEM(items.get(), i, item);
    }
  } else {
    return absl::StrCat("it returns a ", Py_TYPE(value)->tp_name);
  }
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(items.get());
  for (Py_ssize_t i = 0; i < n; ++i) {
    pattern->items.emplace_back();
    const std::string problem =
        LearnResult(PySequence_Fast_GET_ITEM(items.get(), i), learning, record,
                    &pattern->items.back());
    if (!problem.empty()) return problem;
  }
  return "";
}

std::string Session::LearnTensor(PyObject* tensor, const Learning& learning,
                                 CallRecord* record, ResultPattern* pattern) {
  using Kind = ResultPattern::Kind;
  const int32_t index = FindMade(HandleOf(tensor));
  if (index >= 0 && static_cast<size_t>(index) >= learning.num_made) {
    const Made& made = made_[index];
    pattern->kind = Kind::kMade;
    auto& all = record->made;
    for (size_t i = 0; i < all.size(); ++i) {
      if (all[i].node == made.node && all[i].output == made.output) {
        pattern->number = static_cast<int>(i);
        return "";
      }
    }
    pattern->number = static_cast<int>(all.size());
    all.push_back({made.node, made.output, made.shape});
    return "";
  }
  if (index >= 0) return "it returns a tensor that was there before";
  const int name = history_.FindName(tensor);
  if (name >= 0 && name < learning.num_names) {
    pattern->kind = Kind::kOutside;
    pattern->number = name;
    return history_.Named(name) == tensor
               ? ""
               : "it returns another object of a tensor";
  }
  for (size_t i = learning.begin; i < path_.size(); ++i) {
    for (const PyRef& folded : plan_->nodes[path_[i]].folded) {
      if (HandleOf(folded.get()) != HandleOf(tensor)) continue;
      pattern->kind = Kind::kFolded;
      pattern->object = folded;
      return "";
    }
  }
  return "it returns a tensor that no op made";
}

// Somebody may have kept what was made in the call besides its result.
std::string Session::LearnKept(const Learning& learning,
                               const CallRecord& record) const {
  for (size_t i = learning.num_made; i < made_.size(); ++i) {
    const Made& made = made_[i];
    if (!IsReferenced(made) || (made.fetch_channel >= 0 && !made.ready->load())) {
      continue;
    }
    bool is_result = false;
    for (const CallRecord::Output& output : record.made) {
      is_result = is_result || (output.node == made.node &&
                                output.output == made.output);
    }
    if (!is_result) {
      return absl::StrCat("the result of ", plan_->nodes[made.node].name,
                          " is kept somewhere");
    }
  }
  return "";
}

}  // namespace terra
