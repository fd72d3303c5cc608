// Session: gradient functions of the library's that tapes are handed with an op
// (docs/design/0009).
#include <algorithm>

#include "kernels/interceptor/hooks.h"
#include "kernels/interceptor/session.h"
#include "kernels/interceptor/tf_python.h"

namespace terra {
namespace {

// Whether (op, outputs, inputs, ...) is an op of a graph that is being built.
// No gradient of a tensor of the step goes through it.
bool IsOfGraph(PyObject* args) {
  PyObject* outputs =
      PyTuple_GET_SIZE(args) > 1 ? PyTuple_GET_ITEM(args, 1) : Py_None;
  if (!PyList_Check(outputs) && !PyTuple_Check(outputs)) return false;
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(outputs);
  for (Py_ssize_t i = 0; i < n; ++i) {
    if (EagerTensor_CheckExact(PySequence_Fast_GET_ITEM(outputs, i))) {
      return false;
    }
  }
  return n > 0;
}

// Whether the shapes of a list's tensors are known, or can be from now on: a
// tape asks for them at once, and holds the GIL while it waits.
bool KnowShapes(PyObject* list) {
  PyRef tensors = PyRef::Steal(PySequence_Tuple(list));
  for (Py_ssize_t i = 0; tensors && i < PyTuple_GET_SIZE(tensors.get()); ++i) {
    PyObject* tensor = PyTuple_GET_ITEM(tensors.get(), i);
    if (!EnsureReadable(tensor, Reading::kShape)) return false;
  }
  PyErr_Clear();
  return true;
}

}  // namespace

void Session::NoteUnknownGradient() {
  NoteTapeEvent(TapeEvent::kCustomGradient, nullptr, nullptr);
  NoteUserGradient();
}

bool Session::NoteGradient(
    const std::shared_ptr<const LibraryGradient>& gradient,
    absl::Span<const PyRef> tensors) {
  Hash& hash = history_.hash();
  hash.Mix(Event::kTape, static_cast<uint64_t>(TapeEvent::kLibraryGradient));
  hash.Mix(gradient->hash());
  for (const PyRef& tensor : tensors) {
    if (MixTensor(tensor.get(), &hash) != nullptr) return false;
  }
  if (pure_learnings_.empty()) return true;
  LoggedStep step;
  step.kind = PureKind::kGradient;
  step.gradient = gradient;
  for (const PyRef& tensor : tensors) step.inputs.push_back(LoggedFrom(tensor));
  log_.push_back(std::move(step));
  return true;
}

PyObject* Session::OnRecordOperation(PyObject* original, PyObject* args,
                                     PyObject* kwargs) {
  // (op, outputs, inputs, ...)
  for (Py_ssize_t i = 1; i < std::min<Py_ssize_t>(PyTuple_GET_SIZE(args), 3);
       ++i) {
    if (!KnowShapes(PyTuple_GET_ITEM(args, i))) return nullptr;
  }
  if (mode_ == Mode::kCoExecution && !IsOfGraph(args)) {
    std::vector<PyRef> tensors;
    const auto gradient = kwargs == nullptr
                              ? LibraryGradient::Of(original, args, &tensors)
                              : nullptr;
    if (gradient == nullptr || !NoteGradient(gradient, tensors)) {
      NoteUnknownGradient();
    } else if (DefersTapes()) {
      tape_log_.Add(gradient, tensors);
      Py_RETURN_NONE;
    }
  }
  return FlushAllTapes() ? PyObject_Call(original, args, kwargs) : nullptr;
}

// ------------------------------------------------------------------ pure calls

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
    const int32_t index = session_.FindMade(HandleOf(tensor));
    const bool is_it = logged.node < 0
                           ? tensor == logged.outside.get()
                           : index >= 0 &&
                                 session_.made_[index].node == logged.node &&
                                 session_.made_[index].output == logged.output;
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

bool Session::ReplayGradient(const PureStep& step, const Operands& operands,
                             const Tensors& made) {
  using Kind = TensorRef::Kind;
  std::vector<PyRef> tensors;
  for (const TensorRef& ref : step.inputs) {
    tensors.push_back(ref.kind == Kind::kObject ? PyRef::Borrow(ref.get())
                      : ref.kind == Kind::kMade
                          ? made[ref.number]
                          : PyRef::Borrow(operands[ref.number].tensor()));
  }
  if (mode_ == Mode::kCoExecution && !NoteGradient(step.gradient, tensors)) {
    NoteUnknownGradient();
  }
  if (DefersTapes()) {
    tape_log_.Add(step.gradient, tensors);
    return true;
  }
  return FlushTapes() && step.gradient->Record(tensors.data());
}

}  // namespace terra
