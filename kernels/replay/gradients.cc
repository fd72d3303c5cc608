#include "kernels/replay/gradients.h"

#include <algorithm>

#include "kernels/outputs/readable.h"
#include "kernels/plan/hash.h"
#include "kernels/python/tf_python.h"
#include "kernels/tapes/tape_event.h"

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

void Gradients::NoteUnknown() {
  tapes_.NoteEvent(TapeEvent::kCustomGradient, nullptr, nullptr);
  tapes_.NoteUserGradient();
}

bool Gradients::Note(const std::shared_ptr<const LibraryGradient>& gradient,
                     absl::Span<const PyRef> tensors) {
  Hash& hash = history_.hash();
  hash.Mix(Event::kTape, static_cast<uint64_t>(TapeEvent::kLibraryGradient));
  hash.Mix(gradient->hash());
  for (const PyRef& tensor : tensors) {
    if (history_.MixTensor(tensor.get(), &hash) != nullptr) return false;
  }
  call_log_.LogGradient(gradient, tensors);
  return true;
}

PyObject* Gradients::OnRecordOperation(PyObject* original, PyObject* args,
                                       PyObject* kwargs) {
  // (op, outputs, inputs, ...)
  for (Py_ssize_t i = 1; i < std::min<Py_ssize_t>(PyTuple_GET_SIZE(args), 3);
       ++i) {
    if (!KnowShapes(PyTuple_GET_ITEM(args, i))) return nullptr;
  }
  if (context_.is_co_executing() && !IsOfGraph(args)) {
    std::vector<PyRef> tensors;
    const auto gradient = kwargs == nullptr
                              ? LibraryGradient::Of(original, args, &tensors)
                              : nullptr;
    if (gradient == nullptr || !Note(gradient, tensors)) {
      NoteUnknown();
    } else if (tapes_.Defers()) {
      tapes_.TellLater(gradient, tensors);
      Py_RETURN_NONE;
    }
  }
  return Session::FlushAllTapes() ? PyObject_Call(original, args, kwargs)
                                  : nullptr;
}

bool Gradients::Replay(const PureStep& step, const Operands& operands,
                       const Tensors& made) {
  using Kind = TensorRef::Kind;
  std::vector<PyRef> tensors;
  for (const TensorRef& ref : step.inputs) {
    tensors.push_back(ref.kind == Kind::kObject ? PyRef::Borrow(ref.get())
                      : ref.kind == Kind::kMade
                          ? made[ref.number]
                          : PyRef::Borrow(operands[ref.number].tensor()));
  }
  if (context_.is_co_executing() && !Note(step.gradient, tensors)) {
    NoteUnknown();
  }
  if (tapes_.Defers()) {
    tapes_.TellLater(step.gradient, tensors);
    return true;
  }
  return tapes_.Flush() && step.gradient->Record(tensors.data());
}

}  // namespace terra
