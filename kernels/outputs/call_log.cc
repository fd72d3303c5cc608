#include "kernels/outputs/call_log.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/python/tf_python.h"

namespace terra {

void CallLog::BeginPure(PureLearning* learning) {
  learning->log_begin = log_.size();
  pure_.push_back(learning);
  Begin(&learning->call);
}

std::vector<LoggedStep> CallLog::EndPure() {
  End();
  std::vector<LoggedStep> steps(log_.begin() + pure_.back()->log_begin,
                                log_.end());
  pure_.pop_back();
  if (pure_.empty()) log_.clear();
  return steps;
}

LoggedInput CallLog::LoggedFrom(const PyRef& tensor) const {
  LoggedInput logged;
  const int32_t index = outputs_.Find(HandleOf(tensor.get()));
  if (index >= 0) {
    logged.node = outputs_[index].node;
    logged.output = outputs_[index].output;
  } else {
    logged.outside = tensor;
  }
  return logged;
}

void CallLog::LogOp(const Call& call, int number) {
  LoggedStep step;
  step.node = number;
  step.info = call.info;
  step.route = call.route;
  step.counts = call.counts;
  step.attrs = call.attrs;
  for (const PyRef& input : call.inputs) {
    step.inputs.push_back(LoggedFrom(input));
  }
  log_.push_back(std::move(step));
}

void CallLog::LogFolded(absl::Span<const PyRef> results) {
  for (const PyRef& result : results) {
    log_.back().folded.push_back(IdOf(result.get()));
  }
}

void CallLog::LogEvent(PureKind kind, PyObject* variable) {
  if (pure_.empty()) return;
  LoggedStep step;
  step.kind = kind;
  if (variable != nullptr) step.variable = PyRef::Borrow(variable);
  log_.push_back(std::move(step));
}

void CallLog::LogRecord(PyObject* name, PyObject* inputs, PyObject* attrs) {
  if (pure_.empty()) return;
  const LoggedStep* op = log_.empty() ? nullptr : &log_.back();
  PyRef tensors = PyRef::Steal(PySequence_Tuple(inputs));
  bool fits = tensors && op != nullptr && op->kind == PureKind::kOp &&
              op->route == Route::kFull && op->info == OpInfo::Of(name);
  const size_t n = fits ? PyTuple_GET_SIZE(tensors.get()) : 0;
  fits = fits && n == op->inputs.size();
  for (size_t i = 0; fits && i < n; ++i) {
    PyObject* tensor = PyTuple_GET_ITEM(tensors.get(), i);
    const LoggedInput& input = op->inputs[i];
    if (!EagerTensor_CheckExact(tensor)) {
      fits = false;
    } else if (input.node < 0) {
      fits = tensor == input.outside.get();
    } else {
      const int32_t index = outputs_.Find(HandleOf(tensor));
      fits = index >= 0 && outputs_[index].Is(input.node, input.output);
    }
  }
  PyErr_Clear();
  if (!fits) {
    ObstructPure("Python records an op of its own on the tape");
    return;
  }
  LoggedStep step;
  step.kind = PureKind::kRecord;
  step.attrs = PyRef::Borrow(attrs);
  log_.push_back(std::move(step));
}

void CallLog::NoteRead(PyObject* tensor, bool shape_only) {
  if (learned_.empty() || !EagerTensor_CheckExact(tensor)) return;
  const int32_t index = outputs_.Find(HandleOf(tensor));
  if (index < 0 && !shape_only &&
      plan_->constant_of.count(HandleOf(tensor)) == 0) {
    for (PureLearning* learning : pure_) {
      if (learning->call.Makes(tensor)) continue;
      learning->call.obstacle = "its Python reads a tensor from outside";
    }
  }
  if (index >= 0 && shape_only) {
    NoteShapeUse(index);
  } else if (index >= 0) {
    for (CallLearning* learning : learned_) {
      if (IsDetermined(*learning, tensor)) continue;
      learning->obstacle = "its Python reads a result of the step";
    }
  } else if (!shape_only && (history_.FindName(tensor) >= 0 ||
                             plan_->fixed.count(HandleOf(tensor)) > 0)) {
    Obstruct("its Python reads a tensor from outside");
  }
}

bool CallLog::IsDetermined(const CallLearning& learning,
                           PyObject* tensor) const {
  const int32_t index = outputs_.Find(HandleOf(tensor));
  if (index < 0) {
    return learning.Makes(tensor) ||
           (learning.has_history && history_.KnowsValue(tensor));
  }
  return plan_->nodes[outputs_[index].node].of_shapes ||
         learning.determined.count(index) > 0;
}

void CallLog::NoteShapeUse(PyObject* tensor) {
  const int32_t index = outputs_.Find(HandleOf(tensor));
  if (index >= 0) NoteShapeUse(index);
}

void CallLog::NoteShapeUse(int32_t index) {
  if (outputs_[index].is_told) return;
  for (CallLearning* learning : learned_) {
    if (static_cast<size_t>(index) < learning->num_made) continue;
    learning->obstacle =
        absl::StrCat("the shape of ", plan_->nodes[outputs_[index].node].name,
                     " is known late");
  }
}

void CallLog::NoteShapeValue(PyObject* tensor, const std::string& op) {
  const int32_t index = outputs_.Find(HandleOf(tensor));
  const std::string source = index < 0
                                 ? "a tensor from outside"
                                 : plan_->nodes[outputs_[index].node].name;
  for (CallLearning* learning : learned_) {
    if (IsDetermined(*learning, tensor)) continue;
    learning->obstacle =
        absl::StrCat("the shape of ", op, " depends on the value of ", source);
  }
}

void CallLog::NoteKnownResults(const Call& call, const PlanNode& node) {
  for (CallLearning* learning : learned_) {
    bool all = !node.of_shapes;  // those are known as such
    for (size_t i = 0; all && i < call.inputs.size(); ++i) {
      all = node.inputs[i].kind == InputKind::kConstant ||
            IsDetermined(*learning, call.inputs[i].get());
    }
    for (size_t i = 0; all && i < node.outputs.size(); ++i) {
      const size_t index = outputs_.size() - node.outputs.size() + i;
      learning->determined.insert(static_cast<int32_t>(index));
    }
  }
}

void CallLog::LogGradient(
    const std::shared_ptr<const LibraryGradient>& gradient,
    absl::Span<const PyRef> tensors) {
  if (pure_.empty()) return;
  LoggedStep step;
  step.kind = PureKind::kGradient;
  step.gradient = gradient;
  for (const PyRef& tensor : tensors) step.inputs.push_back(LoggedFrom(tensor));
  log_.push_back(std::move(step));
}

}  // namespace terra
