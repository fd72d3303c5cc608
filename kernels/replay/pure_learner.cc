// What was logged of a pure call, as a record (docs/design/0009).
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/outputs/call_log.h"
#include "kernels/outputs/outputs.h"
#include "kernels/plan/call_record.h"
#include "kernels/plan/library_objects.h"
#include "kernels/plan/plan.h"
#include "kernels/plan/pure_record.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/tf_python.h"
#include "kernels/replay/pure_call.h"

namespace terra {
namespace {

int FindOperand(const Operands& operands, const PyObject* object) {
  for (size_t i = 0; i < operands.size(); ++i) {
    if (operands[i].object == object || operands[i].handle.get() == object) {
      return static_cast<int>(i);
    }
  }
  return -1;
}

}  // namespace

namespace {

// Its class adds names to a tuple, and nothing of an instance's own.
bool IsNamedTuple(PyObject* value) {
  static PyObject* name = PyUnicode_InternFromString("_fields");
  return PyTuple_Check(value) && Py_TYPE(value)->tp_base == &PyTuple_Type &&
         Py_TYPE(value)->tp_dictoffset == 0 &&
         PyObject_HasAttr(reinterpret_cast<PyObject*>(Py_TYPE(value)), name);
}

// A function without an op may be there for what it does to Python.
bool HasTensor(const ResultPattern& result) {
  return result.kind == ResultPattern::Kind::kOperand ||
         result.kind == ResultPattern::Kind::kFolded ||
         std::any_of(result.items.begin(), result.items.end(), HasTensor);
}

}  // namespace

std::string PureLearner::Learn(const std::vector<LoggedStep>& steps,
                               PyObject* result,
                               const std::vector<TensorAttributes>& before,
                               PureRecord* record) {
  record_ = record;
  if (call_log_.num_obstacles() != learning_.num_obstacles) {
    return call_log_.obstacle();
  }
  if (!learning_.call.obstacle.empty()) return learning_.call.obstacle;
  if (cursor_.epoch() != learning_.epoch || cursor_.epoch_is_pending()) {
    return "an epoch ended in it";
  }
  const std::vector<int>& path = cursor_.path();
  size_t at = learning_.path_begin;
  for (const LoggedStep& logged : steps) {
    const bool is_op = logged.kind == PureKind::kOp;
    if (is_op && (at >= path.size() || path[at++] != logged.node)) {
      return "it has ops that run in Python";
    }
    const std::string problem = is_op ? LearnOp(logged) : LearnEvent(logged);
    if (!problem.empty()) return problem;
  }
  if (at != path.size()) return "it has ops that run in Python";
  std::string problem = LearnResult(result, &record->result);
  if (problem.empty()) problem = LearnChanges(before);
  if (problem.empty()) problem = LearnContext();
  if (at == learning_.path_begin && !HasTensor(record->result)) {
    return "it runs no op";
  }
  return problem.empty() && !learning_.is_taped ? LearnKept() : problem;
}

std::string PureLearner::LearnEvent(const LoggedStep& logged) {
  if (logged.kind == PureKind::kRecord) {
    record_->steps.back().record_attrs = logged.attrs;
    return "";
  }
  if (logged.kind == PureKind::kGradient) return LearnGradient(logged);
  PureStep step;
  step.kind = logged.kind;
  if (step.kind != PureKind::kAccess) {
    record_->steps.push_back(std::move(step));
    return "";
  }
  step.operand = FindOperand(operands_, logged.variable.get());
  if (step.operand < 0) step.variable = WeakRef::To(logged.variable.get());
  const bool is_its_own = step.operand < 0 && !takes_objects_;
  record_->steps.push_back(std::move(step));
  return is_its_own ? "it uses a variable that it was not given" : "";
}

std::string PureLearner::LearnOp(const LoggedStep& logged) {
  const PlanNode& node = plan_.nodes[logged.node];
  if (node.seeded) return absl::StrCat(node.name, " draws random numbers");
  if (logged.info == nullptr) return "it calls a function";
  if (learning_.is_taped && !ShapesAreKnown(logged.node)) {
    return absl::StrCat("the shape of ", node.name, " is known late");
  }
  PureStep step;
  step.node = logged.node;
  step.info = logged.info;
  step.route = logged.route;
  step.counts = logged.counts;
  step.attrs = logged.attrs;
  for (size_t i = 0; i < logged.inputs.size(); ++i) {
    step.inputs.emplace_back();
    const std::string problem =
        LearnInput(logged.inputs[i], node.inputs[i], &step.inputs.back());
    if (!problem.empty()) return problem;
    if (step.inputs.back().kind == TensorRef::Kind::kObject) {
      objects_[logged.inputs[i].outside.get()] = step.inputs.back();
    }
  }
  for (size_t i = 0; i < logged.inputs.size(); ++i) {
    if (node.inputs[i].kind == InputKind::kJoin) {
      joins_[node.inputs[i].a] = {step.inputs[i].kind, step.inputs[i].number};
    }
  }
  record_->steps.push_back(std::move(step));
  for (size_t i = 0; i < node.outputs.size(); ++i) {
    const int number = static_cast<int>(made_.size());
    made_[{logged.node, static_cast<int>(i)}] = number;
  }
  return "";
}

// A tape asks for them at once.
bool PureLearner::ShapesAreKnown(int number) const {
  const PlanNode& node = plan_.nodes[number];
  const bool are_planned =
      node.on_host ||
      std::all_of(node.outputs.begin(), node.outputs.end(),
                  [](const OutputSpec& spec) { return spec.shape_known; });
  for (size_t i = learning_.made_begin; !are_planned && i < outputs_.size();
       ++i) {
    const Made& made = outputs_[i];
    const bool is_late = made.node == number &&
                         !outputs_.SpecOf(made).shape_known &&
                         !made.shape.IsFullyDefined();
    if (is_late) return false;
  }
  return true;
}

std::string PureLearner::LearnInput(const LoggedInput& logged,
                                    const InputRef& expected, TensorRef* ref) {
  using Kind = TensorRef::Kind;
  if (logged.node >= 0) {
    const auto inner = made_.find({logged.node, logged.output});
    if (inner != made_.end()) {
      ref->kind = Kind::kMade;
      ref->number = inner->second;
      return LearnInnerJoin(expected, *ref);
    }
    for (size_t i = 0; i < operands_.size(); ++i) {
      const int32_t index = outputs_.Find(HandleOf(operands_[i].tensor()));
      if (index >= 0 && outputs_[index].Is(logged.node, logged.output)) {
        ref->kind = Kind::kOperand;
        ref->number = static_cast<int>(i);
        return LearnJoin(expected, ref);
      }
    }
    if (step_ != nullptr) {
      return LearnTaken({logged.node, logged.output, -1, PyRef()}, expected,
                        ref);
    }
    return "it uses a tensor that it was not given";
  }
  const int operand = FindOperand(operands_, logged.outside.get());
  if (operand >= 0) {
    ref->kind = Kind::kOperand;
    ref->number = operand;
    return LearnJoin(expected, ref);
  }
  const int name =
      step_ == nullptr ? -1 : step_->history.FindName(logged.outside.get());
  if (name >= 0 && name < step_->num_names) {
    return LearnTaken({-1, -1, name, PyRef()}, expected, ref);
  }
  if (expected.kind == InputKind::kConstant) {
    ref->object = plan_.constants[expected.a].tensor;
    return "";
  }
  if (takes_objects_ && (expected.kind == InputKind::kVariable ||
                         expected.kind == InputKind::kCaptured)) {
    ref->outside = WeakRef::To(logged.outside.get());
    return "";
  }
  // No op has made it, nor was it there before: it is of numbers in the key.
  if (!takes_objects_ && expected.kind == InputKind::kFeed &&
      learning_.call.Makes(logged.outside.get())) {
    ref->object = logged.outside;
    return "";
  }
  return "it uses a tensor that it was not given";
}

std::string PureLearner::LearnTaken(TensorSource source,
                                    const InputRef& expected, TensorRef* ref) {
  auto& taken = step_->taken;
  const auto known =
      std::find_if(taken.begin(), taken.end(), [&](const TensorSource& other) {
        return other.node == source.node && other.output == source.output &&
               other.name == source.name;
      });
  ref->kind = TensorRef::Kind::kOperand;
  ref->number = static_cast<int>(operands_.size() + (known - taken.begin()));
  if (known == taken.end()) taken.push_back(std::move(source));
  return LearnJoin(expected, ref);
}

// An op of the call takes what another has made. Here this was verified; in a
// replay nobody looks again: it must follow from the ops of the call alone.
std::string PureLearner::LearnInnerJoin(const InputRef& expected,
                                        const TensorRef& ref) const {
  if (expected.kind != InputKind::kJoin) return "";
  const JoinSpec& join = plan_.joins[expected.a];
  if (join.rule == JoinRule::kSelect) return "";  // decided for each op anew
  if (join.rule == JoinRule::kSame) {
    const auto decided = joins_.find(join.same);
    const bool is_same = decided != joins_.end() &&
                         decided->second == std::pair(ref.kind, ref.number);
    return is_same ? "" : "ways meet in it";
  }
  int latest = -1;
  for (const auto& [output, number] : made_) {
    const auto& webs = plan_.nodes[output.first].outputs[output.second].webs;
    if (std::find(webs.begin(), webs.end(), join.web) != webs.end()) {
      latest = std::max(latest, number);
    }
  }
  return latest == ref.number ? "" : "ways meet in it";
}

// What was the latest of a web before the call must be so at the op, too.
std::string PureLearner::LearnJoin(const InputRef& expected, TensorRef* ref) {
  if (expected.kind != InputKind::kJoin) return "";
  const JoinSpec& join = plan_.joins[expected.a];
  if (join.rule == JoinRule::kLatest) {
    for (const auto& [output, number] : made_) {
      const auto& webs = plan_.nodes[output.first].outputs[output.second].webs;
      if (std::find(webs.begin(), webs.end(), join.web) != webs.end()) {
        return "ways meet in it";
      }
    }
  }
  const auto decided = joins_.find(join.same);
  if (join.rule != JoinRule::kSame || decided == joins_.end()) return "";
  ref->is_verified = true;
  const bool is_same = decided->second == std::pair(ref->kind, ref->number);
  return is_same ? "" : "ways meet in it";
}

std::string PureLearner::LearnResult(PyObject* value, ResultPattern* pattern) {
  using Kind = ResultPattern::Kind;
  const int operand = FindOperand(operands_, value);
  if (operand >= 0) {
    pattern->kind = Kind::kOperand;
    pattern->number = operand;
    return operands_[operand].object == value ? "" : "it returns a handle";
  }
  if (EagerTensor_CheckExact(value)) return LearnTensor(value, pattern);
  if (value == Py_None || PyBool_Check(value)) {
    pattern->object = PyRef::Borrow(value);
    return "";
  }
  if (IsUnreadVariable(value)) {
    const auto [handle, attributes] = PartsOfUnreadVariable(value);
    if (!attributes || FindOperand(operands_, handle.get()) < 0) {
      return "it returns a variable that it was not given";
    }
    pattern->kind = Kind::kUnread;
    pattern->number = FindOperand(operands_, handle.get());
    pattern->object = attributes;
    return "";
  }
  const std::vector<PyObject*>& given = key_.containers();
  if (std::find(given.begin(), given.end(), value) != given.end()) {
    return "it returns a list or a dictionary that it was given";
  }
  if (PyDict_CheckExact(value)) return LearnDict(value, pattern);
  if (PyList_CheckExact(value) || PyTuple_CheckExact(value)) {
    pattern->kind = PyList_CheckExact(value) ? Kind::kList : Kind::kTuple;
    return LearnItems(value, pattern);
  }
  if (IsNamedTuple(value)) {
    pattern->kind = Kind::kNamedTuple;
    pattern->object =
        PyRef::Borrow(reinterpret_cast<PyObject*>(Py_TYPE(value)));
    return LearnItems(value, pattern);
  }
  if (!IsSlices(value)) {
    return absl::StrCat("it returns a ", Py_TYPE(value)->tp_name);
  }
  pattern->kind = Kind::kSlices;
  PyRef items = ItemsOfSlices(value);
  return items ? LearnItems(items.get(), pattern)
               : "it returns slices of another kind";
}

// A list's or a tuple's.
std::string PureLearner::LearnItems(PyObject* items, ResultPattern* pattern) {
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(items);
  for (Py_ssize_t i = 0; i < n; ++i) {
    pattern->items.emplace_back();
    const std::string problem =
        LearnResult(PySequence_Fast_GET_ITEM(items, i), &pattern->items.back());
    if (!problem.empty()) return problem;
  }
  return "";
}

std::string PureLearner::LearnDict(PyObject* value, ResultPattern* pattern) {
  PyRef keys = PyRef::Steal(PyDict_Keys(value));
  PyRef values = PyRef::Steal(PyDict_Values(value));
  const Py_ssize_t n = PyList_GET_SIZE(keys.get());
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* key = PyList_GET_ITEM(keys.get(), i);
    if (!PyUnicode_CheckExact(key) && !PyLong_CheckExact(key)) {
      return "it returns a dictionary with keys of another kind";
    }
  }
  pattern->kind = ResultPattern::Kind::kDict;
  pattern->object = PyRef::Steal(PyList_AsTuple(keys.get()));
  return LearnItems(values.get(), pattern);
}

std::string PureLearner::LearnAttributes(const TensorAttributes& attributes,
                                         const TensorAttributes& before,
                                         ResultPattern* pattern) {
  constexpr int kMaxDepth = 8;
  if (depth_ == kMaxDepth) return "it returns a tensor with attributes";
  ++depth_;
  std::string problem;
  for (int i = 0; i < kNumCarried && problem.empty(); ++i) {
    PyObject* value = attributes.carried[i].get();
    if (value == before.carried[i].get()) continue;
    if (value == nullptr) return "it takes an attribute from a tensor";
    pattern->attributes.emplace_back();
    pattern->attributes.back().attribute = i;
    problem = LearnResult(value, &pattern->attributes.back());
  }
  --depth_;
  return problem;
}

// Of a layer whose own default says whether it trains, for one.
std::string PureLearner::LearnContext() {
  const bool is_clear =
      !takes_objects_ ||
      context_.FindChanges(KerasContext(), learning_.context_values.get(),
                           &record_->context_changes);
  return is_clear ? "" : "it changes what later layers inherit";
}

std::string PureLearner::LearnChanges(
    const std::vector<TensorAttributes>& before) {
  for (size_t i = 0; i < operands_.size(); ++i) {
    if (operands_[i].handle) continue;
    const TensorAttributes now = AttributesOf(operands_[i].object);
    if (now.has_others || now.is_zeros != before[i].is_zeros ||
        now.is_slice != before[i].is_slice) {
      return "it sets an attribute of a tensor that it was given";
    }
    ResultPattern change;
    change.kind = ResultPattern::Kind::kOperand;
    change.number = static_cast<int>(i);
    const std::string problem = LearnAttributes(now, before[i], &change);
    if (!problem.empty()) return problem;
    if (!change.attributes.empty()) {
      record_->changes.push_back(std::move(change));
    }
  }
  return "";
}

std::string PureLearner::LearnTensor(PyObject* tensor, ResultPattern* pattern) {
  const TensorAttributes attributes = AttributesOf(tensor);
  if (attributes.has_others) return "it returns a tensor with attributes";
  pattern->is_zeros = attributes.is_zeros;
  if (attributes.is_slice) {
    // What it holds besides follows from the key if no tensor was given.
    if (operands_.size() == 1) {
      pattern->assign = AssignOfSlice(outputs_, tensor, operands_[0].object);
    }
    if (!pattern->assign) {
      PyErr_Clear();
      return "it returns a slice that depends on a tensor";
    }
  }
  const std::string problem =
      LearnAttributes(attributes, TensorAttributes(), pattern);
  if (!problem.empty()) return problem;
  pattern->kind = ResultPattern::Kind::kMade;
  const int32_t index = outputs_.Find(HandleOf(tensor));
  if (index >= 0) {
    const Made& made = outputs_[index];
    const auto inner = made_.find({made.node, made.output});
    if (inner == made_.end())
      return "it returns a tensor that no op of it made";
    pattern->number = inner->second;
    results_.insert(inner->second);
    return "";
  }
  for (const auto& [output, number] : made_) {
    const PlanNode& node = plan_.nodes[output.first];
    if (node.kind == NodeKind::kFolded &&
        HandleOf(node.folded[output.second].get()) == HandleOf(tensor)) {
      pattern->number = number;
      return "";
    }
  }
  if (!learning_.call.Makes(tensor)) {
    return "it returns a tensor that no op of it made";
  }
  pattern->kind = ResultPattern::Kind::kFolded;  // of numbers in the key
  pattern->object = PyRef::Borrow(tensor);
  return "";
}

// Somebody may have kept what was made in the call besides its result. (On a
// tape all of it is kept, as it is again by the tape in a replay.)
std::string PureLearner::LearnKept() {
  for (size_t i = learning_.made_begin; i < outputs_.size(); ++i) {
    const Made& made = outputs_[i];
    const bool waits = made.fetch_channel >= 0 && !made.ready->load();
    if (waits || !IsReferenced(made)) continue;
    const auto inner = made_.find({made.node, made.output});
    if (inner == made_.end() || results_.count(inner->second) == 0) {
      return absl::StrCat("the result of ", plan_.nodes[made.node].name,
                          " is kept somewhere");
    }
  }
  return "";
}

bool PureLearner::LearnHeld(const LoggedInput& logged, TensorRef* ref) const {
  using Kind = TensorRef::Kind;
  if (logged.node >= 0) {
    const auto inner = made_.find({logged.node, logged.output});
    if (inner != made_.end()) {
      ref->kind = Kind::kMade;
      ref->number = inner->second;
      return true;
    }
  }
  for (size_t i = 0; i < operands_.size(); ++i) {
    PyObject* tensor = operands_[i].tensor();
    const int32_t index = outputs_.Find(HandleOf(tensor));
    const bool is_it =
        logged.node < 0
            ? tensor == logged.outside.get()
            : index >= 0 && outputs_[index].Is(logged.node, logged.output);
    if (!is_it) continue;
    ref->kind = Kind::kOperand;
    ref->number = static_cast<int>(i);
    return true;
  }
  const auto known = objects_.find(logged.outside.get());
  if (logged.node >= 0 || known == objects_.end()) return false;
  *ref = known->second;
  return true;
}

std::string PureLearner::LearnGradient(const LoggedStep& logged) {
  PureStep step;
  step.kind = logged.kind;
  step.gradient = logged.gradient;
  for (const LoggedInput& input : logged.inputs) {
    step.inputs.emplace_back();
    if (!LearnHeld(input, &step.inputs.back())) {
      return "a gradient function in it holds a tensor that it was not given";
    }
  }
  record_->steps.push_back(std::move(step));
  return "";
}

}  // namespace terra
