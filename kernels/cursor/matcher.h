// Which node of the plan a call is, and whether it is what the plan expects.
#ifndef TERRA_KERNELS_CURSOR_MATCHER_H_
#define TERRA_KERNELS_CURSOR_MATCHER_H_

#include <string>
#include <vector>

#include "kernels/call/call.h"
#include "kernels/cursor/claims.h"
#include "kernels/cursor/cursor.h"
#include "kernels/cursor/inputs.h"
#include "kernels/outputs/outputs.h"
#include "kernels/outputs/step_context.h"
#include "kernels/plan/plan.h"
#include "kernels/plan/reason.h"
#include "kernels/plan/shapes.h"
#include "kernels/python/py_ref.h"

namespace terra {

// What a call is.
struct Match {
  int node = -1;                  // or why it is none that may come here:
  Reason reason = Reason::kNone;  // none where the mode has changed
  std::string detail;
};

// Invariant: it changes nothing of the step, but that it may run Python, and so
// the session may leave co-execution: whoever asks looks at the mode again. It
// only remembers what it refused last.
class Matcher {
 public:
  Matcher(const StepContext& context, const Outputs& outputs,
          const Inputs& inputs, const Cursor& cursor)
      : context_(context),
        outputs_(outputs),
        inputs_(inputs),
        cursor_(cursor) {}
  Matcher(const Matcher&) = delete;

  // Finds the node that the call is. False with an exception set.
  bool FindNode(const Call& call, Match* match);
  // kNone when the tensor is what the plan expects; else why not. `claims`: of
  // the inputs that have been verified together with this one.
  Reason VerifyInput(const InputRef& ref, PyObject* tensor, Claims* claims,
                     std::string* detail);
  // Whether what the call writes certainly has the shape of its variable.
  bool WriteFits(const Call& call, const PlanNode& node);
  // What this step knows of a call's inputs, without waiting.
  std::vector<KnownInput> KnownInputs(const Call& call) const;

  // The node that was refused last, and the slot of a feed whose integers were
  // out of range.
  int refused_node() const { return refused_node_; }
  int refused_feed() const { return refused_feed_; }

 private:
  Plan& plan() const { return *context_.plan(); }
  // The nodes at the place where Python is. Null with an exception set.
  const Place* PlaceHere();
  // Whether one of them is the call, or the mode has changed.
  bool TryNodes(const std::vector<int>& candidates, const Call& call,
                Match* match);
  // Puts those first that merging would take the call for: where Python runs an
  // op itself, Verify lets pass what any of several siblings could be.
  void PreferFitting(const Call& call, std::vector<int>* candidates);
  // The same of a call.
  Reason Verify(const Call& call, PlanNode* node, std::string* detail);
  Reason VerifyVariable(const InputRef& ref, PyObject* tensor, Claims* claims,
                        std::string* detail);
  Reason VerifyFeed(const InputRef& ref, PyObject* tensor, Claims* claims,
                    std::string* detail);
  Reason VerifyNewFeed(const InputRef& ref, PyObject* tensor,
                       std::string* detail);
  Reason VerifyJoin(const InputRef& ref, PyObject* tensor, std::string* detail);
  Reason VerifySeeds(const Call& call, PlanNode* node, std::string* detail);

  const StepContext& context_;
  const Outputs& outputs_;
  const Inputs& inputs_;
  const Cursor& cursor_;
  int refused_node_ = -1;
  int refused_feed_ = -1;
};

}  // namespace terra

#endif  // TERRA_KERNELS_CURSOR_MATCHER_H_
