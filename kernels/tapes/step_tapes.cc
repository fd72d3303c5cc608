#include "kernels/tapes/step_tapes.h"

#include "kernels/plan/hash.h"
#include "kernels/plan/pure_record.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"
#include "kernels/python/waiting.h"

namespace terra {

void StepTapes::Enter() {
  PyRef stopped = PyRef::Steal(TFE_Py_TapeSetIsStopped());
  has_outer_ = TapeIsActive() || stopped.get() == Py_True;
  // Hooks may have been off when one was left.
  if (!has_outer_) ActiveTapes::OfThread().Clear();
}

bool StepTapes::Defers() {
  if (!context_.is_co_executing() || call_log_->is_learning() ||
      CurrentThread().num_accumulators > 0 || runs_user_gradients_ ||
      has_outer_ || !Knobs().replays_calls.load()) {
    return false;
  }
  const ActiveTapes& active = ActiveTapes::OfThread();
  if (active.version() != version_) {
    version_ = active.version();
    knows_active_ = !active.tapes().empty();
    for (PyObject* tape : active.tapes()) {
      knows_active_ = knows_active_ && Knows(tape);
    }
  }
  return knows_active_;
}

bool StepTapes::Tell(PyObject* name, absl::Span<const PyRef> inputs,
                     PyObject* attrs, absl::Span<const PyRef> outputs) {
  if (Defers()) {
    log_.Add(name, inputs, attrs, outputs);
    return true;
  }
  return Flush() && log_.Record(name, inputs, attrs, outputs);
}

bool StepTapes::NoteAccess(PyObject* handle) {
  if (!context_.is_co_executing()) return true;
  if (!EagerTensor_CheckExact(handle)) return Flush();
  return !log_.NoteAccess(IdOf(handle)) || Flush();
}

void StepTapes::NoteEvent(TapeEvent event, PyObject* tape, PyObject* tensor) {
  if (!context_.is_co_executing()) return;
  if (event == TapeEvent::kStop) {
    call_log_->LogEvent(PureKind::kStop, nullptr);
  } else if (event == TapeEvent::kRestart) {
    call_log_->LogEvent(PureKind::kRestart, nullptr);
  } else if (event != TapeEvent::kVariableAccessed) {
    call_log_->ObstructPure("it uses a tape");
  }
  Hash& hash = history_->hash();
  hash.Mix(Event::kTape, static_cast<uint64_t>(event));
  if (event == TapeEvent::kNew) numbers_[tape] = num_made_++;
  if (tape != nullptr) {
    const auto known = numbers_.find(tape);
    hash.Mix(known == numbers_.end() ? ~0ull
                                     : static_cast<uint64_t>(known->second));
  }
  if (tensor == nullptr) return;
  if (EagerTensor_CheckExact(tensor)) {
    history_->MixIdentity(tensor);
  } else if (!IsSymbolic(tensor)) {
    call_log_->Obstruct("a tape was told of something that is no tensor");
    runs_user_gradients_ = true;
  }
}

void StepTapes::NoteFlags(PyObject* flags) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(flags); ++i) {
    const int flag = PyObject_IsTrue(PyTuple_GET_ITEM(flags, i));
    history_->hash().Mix(Event::kNumber, static_cast<uint64_t>(flag));
  }
}

}  // namespace terra
