// What a step knows of gradient tapes, and what they are told of it, and when.
#ifndef TERRA_KERNELS_TAPES_STEP_TAPES_H_
#define TERRA_KERNELS_TAPES_STEP_TAPES_H_

#include <cstdint>
#include <memory>
#include <unordered_map>

#include "absl/types/span.h"
#include "kernels/outputs/call_log.h"
#include "kernels/outputs/history.h"
#include "kernels/outputs/step_context.h"
#include "kernels/plan/library_gradient.h"
#include "kernels/python/py_ref.h"
#include "kernels/tapes/tape_event.h"
#include "kernels/tapes/tape_log.h"

namespace terra {

// Invariant: ops are only put off while all tapes that are active on the
// thread are known to be of this step; once a gradient of the user's has been
// seen, nothing is put off any more. What is put off is in the log, in order.
class StepTapes {
 public:
  StepTapes(const StepContext& context, History* history, CallLog* call_log)
      : context_(context), history_(history), call_log_(call_log) {}
  StepTapes(const StepTapes&) = delete;

  // The calling thread comes into the step.
  void Enter();
  // Tells tapes of an op that has run, now or when somebody looks at them.
  // False with an exception set.
  bool Tell(PyObject* name, absl::Span<const PyRef> inputs, PyObject* attrs,
            absl::Span<const PyRef> outputs);
  // Whether this thread's tapes can be told later.
  bool Defers();
  // The same of an op with a gradient function of the library's, if they can.
  void TellLater(const std::shared_ptr<const LibraryGradient>& gradient,
                 absl::Span<const PyRef> tensors) {
    log_.Add(gradient, tensors);
  }
  // Puts what tapes have not been told on them. False with an exception set.
  bool Flush() { return log_.is_empty() || log_.Flush(); }
  // Before a variable is watched.
  bool NoteAccess(PyObject* handle);
  // Something has happened to a tape: part of the history.
  void NoteEvent(TapeEvent event, PyObject* tape, PyObject* tensor);
  void NoteFlags(PyObject* flags);
  // From now on no gradient of this step is replayed.
  void NoteUserGradient() { runs_user_gradients_ = true; }
  bool runs_user_gradients() const { return runs_user_gradients_; }
  // Another object may be a tape that was there before.
  void Forget(PyObject* tape) { numbers_.erase(tape); }
  bool Knows(PyObject* tape) const { return numbers_.count(tape) > 0; }
  // Of one that it knows.
  int NumberOf(PyObject* tape) const { return numbers_.find(tape)->second; }
  // A tape has been made: others may be gone.
  void Prune() { log_.Prune(); }
  const TapeLog& log() const { return log_; }
  void Clear() { log_.Clear(); }

 private:
  const StepContext& context_;
  History* const history_;
  CallLog* const call_log_;
  TapeLog log_;
  std::unordered_map<PyObject*, int> numbers_;  // of tapes made in this step
  int num_made_ = 0;
  bool runs_user_gradients_ = false;
  bool has_outer_ = false;     // tapes that recorded before the step began
  int64_t version_ = -1;       // of the active tapes, when
  bool knows_active_ = false;  // this was found out
};

}  // namespace terra

#endif  // TERRA_KERNELS_TAPES_STEP_TAPES_H_
