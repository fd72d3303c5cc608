// What was logged of a pure call, as a record (docs/design/0009).
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/outputs/call_log.h"
#include "kernels/outputs/outputs.h"
#include "kernels/plan/call_record.h"
#include "kernels/plan/plan.h"
#include "kernels/plan/pure_record.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/python_scopes.h"
#include "kernels/python/tf_python.h"
#include "kernels/replay/pure_call.h"

namespace terra {
namespace {

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

int PureLearner::FindOperand(const PyObject* object) const {
  for (size_t i = 0; i < operands_.size(); ++i) {
    const Operand& operand = operands_[i];
    if (operand.object == object || operand.handle.get() == object) {
      return static_cast<int>(i);
    }
  }
  return -1;
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
  step.operand = FindOperand(logged.variable.get());
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
    if (i < logged.folded.size()) folded_[logged.folded[i]] = number;
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
  // Tapes know it as that op's result.
  const auto folded = folded_.find(IdOf(logged.outside.get()));
  if (folded != folded_.end()) {
    ref->kind = Kind::kMade;
    ref->number = folded->second;
    return LearnInnerJoin(expected, *ref);
  }
  const int operand = FindOperand(logged.outside.get());
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
  if (step_ != nullptr && IsFoldedBefore(logged.outside.get())) {
    return "it uses a shape that was computed before";
  }
  if (expected.kind == InputKind::kConstant) {
    // The plan's own may be a tensor of the program's, which a tape watches.
    ref->object = SameValueNewObject(plan_.constants[expected.a].tensor.get());
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

// Tapes connect it with the op that it is a result of.
bool PureLearner::IsFoldedBefore(PyObject* tensor) const {
  if (learning_.call.Makes(tensor)) return false;
  for (const int number : cursor_.path()) {
    for (const PyRef& folded : plan_.nodes[number].folded) {
      if (HandleOf(folded.get()) == HandleOf(tensor)) return true;
    }
  }
  return false;
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
  if (logged.node < 0) {
    const auto folded = folded_.find(IdOf(logged.outside.get()));
    if (folded != folded_.end()) {
      ref->kind = Kind::kMade;
      ref->number = folded->second;
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
