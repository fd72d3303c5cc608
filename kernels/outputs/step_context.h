// What all parts of a session share: the plan that it follows, the step as the
// graph sees it, its Python side, and its mode.
#ifndef TERRA_KERNELS_OUTPUTS_STEP_CONTEXT_H_
#define TERRA_KERNELS_OUTPUTS_STEP_CONTEXT_H_

#include <memory>
#include <utility>

#include "kernels/plan/plan.h"
#include "kernels/python/lamp.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/thread.h"
#include "kernels/python/waiting.h"
#include "kernels/runner/step.h"

namespace terra {

class Session;

enum class Mode : int {
  kTracing = 1,
  kCoExecution = 2,
  kImperative = 3,
  kSeizing = 4,
};

// Invariant: there is a step exactly if there is a plan, and neither they nor
// the controller ever change; the mode is only set by the session, and by a
// trace that is abandoned. Touched with the GIL held; the mode may change
// wherever Python may run, another thread's too.
class StepContext {
 public:
  // `plan` may be null. `controller` is borrowed: it owns the session.
  StepContext(std::shared_ptr<Plan> plan, PyObject* controller,
              const Session* session)
      : plan_(std::move(plan)),
        step_(plan_ == nullptr ? nullptr : Step::Create(plan_->num_channels)),
        controller_(controller),
        session_(session),
        lamp_(Knobs().lights.load()),
        mode_(plan_ == nullptr ? Mode::kTracing : Mode::kCoExecution) {}
  StepContext(const StepContext&) = delete;

  Plan* plan() const { return plan_.get(); }
  Step* step() const { return step_.get(); }
  std::shared_ptr<Step> shared_step() const { return step_; }
  PyObject* controller() const { return controller_; }
  Mode mode() const { return mode_; }
  void set_mode(Mode mode) { mode_ = mode; }
  bool is_co_executing() const { return mode_ == Mode::kCoExecution; }
  // What is said is no change of the step.
  Lamp& lamp() const { return lamp_; }
  // Hands what was said to Python's logging. False with an exception set.
  bool LogLines() const;
  // The same behind a hook; `result` may be null, with an exception set.
  PyObject* Logged(PyObject* result) const {
    return lamp_.is_on() ? LogBehind(result) : result;
  }
  // Whether the calling thread is inside the step.
  bool is_of_thread() const { return CurrentThread().session == session_; }

  // Says which way is taken.
  void SendDecision(int channel, int64_t branch) const {
    Message message;
    message.index = branch;
    step_->Send(channel, std::move(message));
  }
  // The recorder has been interrupted: nothing is learned from this step.
  // Returns null.
  PyObject* AbandonTrace() {
    if (mode_ == Mode::kTracing) mode_ = Mode::kImperative;
    return nullptr;
  }

 private:
  PyObject* LogBehind(PyObject* result) const;

  const std::shared_ptr<Plan> plan_;
  const std::shared_ptr<Step> step_;
  PyObject* const controller_;
  const Session* const session_;
  mutable Lamp lamp_;
  Mode mode_;
};

}  // namespace terra

#endif  // TERRA_KERNELS_OUTPUTS_STEP_CONTEXT_H_
