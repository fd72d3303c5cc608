// How a session runs its ops.
#ifndef TERRA_KERNELS_SESSION_EXECUTION_H_
#define TERRA_KERNELS_SESSION_EXECUTION_H_

#include <string>

#include "kernels/call/call.h"
#include "kernels/cursor/cursor.h"
#include "kernels/cursor/inputs.h"
#include "kernels/cursor/matcher.h"
#include "kernels/outputs/call_log.h"
#include "kernels/outputs/history.h"
#include "kernels/outputs/outputs.h"
#include "kernels/outputs/step_context.h"
#include "kernels/outputs/waits.h"
#include "kernels/plan/plan.h"
#include "kernels/plan/reason.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/waiting.h"
#include "kernels/tapes/step_tapes.h"

namespace terra {

class Session;

// Invariant: it has no state of its own. An op that has been run is known to
// the outputs, the history, the tapes and, in co-execution, to the cursor;
// where Python may have run in between, the mode is looked at again, and the op
// goes through OnCall once more if it has changed. What returns an object
// returns a new reference, or null with an exception set.
class Execution {
 public:
  // The session's parts have to be there.
  explicit Execution(Session* session);
  Execution(const Execution&) = delete;

  // An op of the user's, by what the mode says.
  PyObject* OnCall(const Call& call);
  // Delegates an op to the graph. With `flat`, results may be added there, and
  // None is what is returned.
  PyObject* Delegate(const Call& call, int number, Tensors* flat = nullptr);
  // Before an op that checks what it writes, and whose inputs nobody has
  // verified: leaves co-execution if it may not fit. False with an exception
  // set.
  bool SettleWrite(const Call& call, int number);
  // Behind an op, if it is the last one of a `try`: waits until what can fail
  // in that has failed or has not. False with an exception set.
  bool LeaveTry(int number);
  // While the session is being seized by another thread, waits. False with an
  // exception set.
  bool AwaitSeizure();

 private:
  Plan& plan() const { return *context_.plan(); }
  PyObject* Trace(const Call& call);
  PyObject* CoExecute(const Call& call);
  // The same, and says what became of it (telling.cc).
  PyObject* CoExecuteAndTell(const Call& call);
  // Calls the controller. False with an exception set. The second is what a
  // wait without a result then is.
  bool Diverge(Reason reason, const std::string& detail);

  Waited DivergeWaiting(Reason reason, const std::string& detail) {
    return Diverge(reason, detail) ? Waited::kEnded : Waited::kError;
  }

  // What is known of an op's results follows from its inputs' shapes.
  void NoteShapeUses(const Call& call);
  // The shapes of an op's results that the plan does not know.
  std::vector<tensorflow::PartialTensorShape> InferOutputs(
      const Call& call, const PlanNode& node);
  PyObject* RunImperative(const Call& call, int number);
  // Whether all inputs have their values; kEnded when the session has diverged
  // instead.
  Waited AwaitInputs(const Call& call);
  PyObject* FinishReal(const Call& call, int number, int index, PyRef result);
  // Writes an op down that has run although its session left co-execution.
  bool RecordAfterwards(const Call& call, int index, PyObject* marker,
                        PyObject* outputs);
  // The same for one that has raised.
  bool RecordError(const Call& call, int index, PyObject* type);
  // An imperative op has raised. The graph has been told that Python took this
  // way, and if the program catches the error, it goes on another.
  void LeaveAfterError(const Call& call);
  // The same where steps are known to go on behind an op that has raised: the
  // graph gets something in the place of its results, of which nothing is used.
  // False if this step cannot; with the error set in either case.
  bool PassAfterError(int number);

  // Ops whose results the cursor knows (host_ops.cc).
  PyObject* RunOnHost(const Call& call, int number);
  // As AwaitInputs, or only for the shapes.
  Waited AwaitKnown(const Call& call, bool shapes_only);
  void TellShapes(const Call& call);
  void NoteShapeValues(const Call& call, const PlanNode& node);
  PyRef AskForShapes(const Call& call, const PlanNode& node);

  // Runs the call for real; tapes do not hear of it yet (recording.cc).
  PyObject* ExecuteUntold(const Call& call);
  // Tells them, with a marker that names the op. What forward accumulators then
  // run are ops of the step: this op has to be a part of it by now.
  bool TellOfReal(const Call& call, PyObject* marker, PyObject* result);

  Session& session_;
  StepContext& context_;
  Waits& waits_;
  Outputs& outputs_;
  History& history_;
  CallLog& call_log_;
  Inputs& inputs_;
  Cursor& cursor_;
  Matcher& matcher_;
  StepTapes& tapes_;
};

}  // namespace terra

#endif  // TERRA_KERNELS_SESSION_EXECUTION_H_
