#include "kernels/outputs/call_log.h"

#include <utility>

#include "kernels/python/tf_python.h"

namespace terra {

void CallLog::BeginPure(PureLearning* learning) {
  learning->log_begin = log_.size();
  pure_.push_back(learning);
  Begin();
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
  if (num_learning_ == 0 || !EagerTensor_CheckExact(tensor)) return;
  const int32_t index = outputs_.Find(HandleOf(tensor));
  if (index < 0 && !shape_only &&
      plan_->constant_of.count(HandleOf(tensor)) == 0) {
    for (PureLearning* learning : pure_) {
      if (IdOf(tensor) >= learning->first_id) continue;  // made in it
      learning->obstacle = "its Python reads a tensor from outside";
    }
  }
  if (index >= 0) {
    if (shape_only && outputs_.ShapeIsKnown(index)) return;
    Obstruct("its Python reads a result of the step");
  } else if (!shape_only && (history_.FindName(tensor) >= 0 ||
                             plan_->fixed.count(HandleOf(tensor)) > 0)) {
    Obstruct("its Python reads a tensor from outside");
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
