// What all that replays and learns calls works on.
#ifndef TERRA_KERNELS_REPLAY_PARTS_H_
#define TERRA_KERNELS_REPLAY_PARTS_H_

#include <string>

#include "absl/types/span.h"
#include "kernels/call/call.h"
#include "kernels/cursor/cursor.h"
#include "kernels/cursor/inputs.h"
#include "kernels/cursor/matcher.h"
#include "kernels/outputs/call_log.h"
#include "kernels/outputs/history.h"
#include "kernels/outputs/outputs.h"
#include "kernels/outputs/step_context.h"
#include "kernels/plan/call_record.h"
#include "kernels/plan/plan.h"
#include "kernels/plan/pure_record.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/state_guard.h"
#include "kernels/session/execution.h"
#include "kernels/session/session.h"
#include "kernels/tapes/step_tapes.h"

namespace terra {

// The parts of a session, for as long as a call of it is looked at. Invariant:
// nothing is kept here from one call to the next; that is in the plan.
class ReplayParts {
 protected:
  explicit ReplayParts(Session* session)
      : session_(*session),
        context_(session->context()),
        outputs_(session->outputs()),
        history_(session->history()),
        call_log_(session->call_log()),
        inputs_(session->inputs()),
        cursor_(session->cursor()),
        matcher_(session->matcher()),
        tapes_(session->tapes()),
        execution_(session->execution()) {}
  ReplayParts(const ReplayParts&) = delete;

  Plan& plan() const { return *context_.plan(); }
  // What the lamp shows of a call.
  template <typename... Parts>
  void Say(const Parts&... parts) const {
    context_.lamp().Say(Light::kReplay, parts...);
  }
  // What was replayed began where the step had so many ops.
  void SayReplayed(const char* name, int position) const;
  void SayLearned(const char* name, const std::string& refusal) const;
  // The tensors of this step that were others in the step that was learned
  // from. Fewer if some are not to be found.
  Tensors FindTensors(absl::Span<const TensorSource> sources) const;
  // Null where there is no object; a string that says why there is no guard.
  PyRef GuardObjects(absl::Span<PyObject* const> objects) const;
  // What GuardObjects returned, for a record; or why there is none.
  static void KeepGuard(PyRef guard, GuardRef* kept, std::string* refusal);
  PyRef MakeResult(const ResultPattern& pattern, const Tensors& made,
                   const Operands& operands) const;
  // Those that a pattern has of a tensor; false with an error set.
  bool SetAttributes(const ResultPattern& pattern, PyObject* tensor,
                     const Tensors& made, const Operands& operands) const;

  PyRef MakeTensor(const ResultPattern& pattern, const Tensors& made,
                   const Operands& operands) const;
  PyRef MakeContainer(const ResultPattern& pattern, const Tensors& made,
                      const Operands& operands) const;

  Session& session_;
  StepContext& context_;
  Outputs& outputs_;
  History& history_;
  CallLog& call_log_;
  Inputs& inputs_;
  Cursor& cursor_;
  Matcher& matcher_;
  StepTapes& tapes_;
  Execution& execution_;
};

}  // namespace terra

#endif  // TERRA_KERNELS_REPLAY_PARTS_H_
