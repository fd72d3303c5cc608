// The session of a step: what the PythonRunner's thread is doing between the
// entry and the return of one call of a decorated function.
//
// Modes:
//   kTracing      ops run for real and are recorded by the controller
//   kCoExecution  ops are matched against the plan and delegated
//   kImperative   ops run for real, nothing is recorded
//   kSeizing      the step diverges: the owner waits until it is settled
// A session starts in one of the first two. kCoExecution goes over to
// kTracing or kImperative when it diverges; that is the controller's doing
// (Python: runtime/session.py), which replays the open epoch first.
//
// All members are touched with the GIL held, except where the flags of outputs
// and the Step say otherwise. The owner thread matches; another thread may
// observe (readers, drain) and, through the controller, seize.
#ifndef TERRA_KERNELS_SESSION_SESSION_H_
#define TERRA_KERNELS_SESSION_SESSION_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/call/call.h"
#include "kernels/cursor/commits.h"
#include "kernels/cursor/cursor.h"
#include "kernels/cursor/inputs.h"
#include "kernels/cursor/matcher.h"
#include "kernels/outputs/call_log.h"
#include "kernels/outputs/history.h"
#include "kernels/outputs/outputs.h"
#include "kernels/outputs/step_context.h"
#include "kernels/outputs/waits.h"
#include "kernels/plan/plan.h"
#include "kernels/python/py_ref.h"
#include "kernels/runner/step.h"
#include "kernels/session/execution.h"
#include "kernels/tapes/step_tapes.h"

namespace terra {

// Invariant: the session is among the live ones from when it is launched, or
// entered if it has no plan, until it is released; so are its outputs.
class Session {
 public:
  // `plan` may be null (a session that only traces). `controller` is borrowed:
  // it owns the session.
  Session(std::shared_ptr<Plan> plan, PyObject* controller);
  ~Session();
  Session(const Session&) = delete;

  static std::vector<Session*>& Live();
  // In the child of a fork: no session of the parent's is live here.
  static void ForgetLive();

  Mode mode() const { return context_.mode(); }
  void set_mode(Mode mode);
  Plan* plan() const { return context_.plan(); }
  Step* step() const { return context_.step(); }
  PyObject* controller() const { return context_.controller(); }
  bool is_live() const { return is_live_; }
  bool has_entered() const { return has_entered_; }

  StepContext& context() { return context_; }
  Waits& waits() { return waits_; }
  Outputs& outputs() { return outputs_; }
  History& history() { return history_; }
  CallLog& call_log() { return call_log_; }
  Inputs& inputs() { return inputs_; }
  Cursor& cursor() { return cursor_; }
  Matcher& matcher() { return matcher_; }
  Commits& commits() { return commits_; }
  StepTapes& tapes() { return tapes_; }
  Execution& execution() { return execution_; }

  // The calling thread comes into the step.
  void Enter();
  // Starts the graph. Returns why it could not, or nothing.
  std::string Launch();
  // The hooks' entry. New reference, or null with an exception set.
  PyObject* OnCall(const Call& call) { return execution_.OnCall(call); }
  // Cancels the graph, also one that was not started. Needs the GIL, and lets
  // it go.
  void Cancel();
  // Goes on recording what a step does that has left its graph.
  void GoOnTracing();
  // Whether nothing is left to be done by the thread that ran the step.
  bool IsOver() const;
  // The last resort where the controller cannot end the step: cancels it, and
  // poisons what is pending.
  void Abandon();
  // Drops every handle and feed; readers no longer find this session. False if
  // that has been done.
  bool Release();

  // Whether an op outside the step that touches the resource must not run
  // before this step is settled.
  bool ConflictsWith(uint64_t resource_key, bool writes) const;
  // Whether some variable will hold another value once this step is settled:
  // for ops that may read variables unseen (dataset iterators).
  bool HasUnsettledWrites() const;
  // Puts what tapes have not been told of any session on them. False with an
  // exception set.
  static bool FlushAllTapes();

 private:
  // Whether the step may still be undone.
  bool is_open() const {
    return mode() == Mode::kCoExecution || mode() == Mode::kSeizing;
  }
  void Join();

  StepContext context_;
  Waits waits_;
  Outputs outputs_;
  History history_;
  CallLog call_log_;
  Inputs inputs_;
  Cursor cursor_;
  Matcher matcher_;
  Commits commits_;
  StepTapes tapes_;
  Execution execution_;
  bool is_live_ = true;
  bool has_entered_ = false;
  bool was_launched_ = false;
};

}  // namespace terra

#endif  // TERRA_KERNELS_SESSION_SESSION_H_
