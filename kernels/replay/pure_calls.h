// Calls of functions without a state of their own (docs/design/0009).
#ifndef TERRA_KERNELS_REPLAY_PURE_CALLS_H_
#define TERRA_KERNELS_REPLAY_PURE_CALLS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/call/call.h"
#include "kernels/outputs/call_log.h"
#include "kernels/plan/pure_record.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/thread.h"
#include "kernels/replay/parts.h"
#include "kernels/replay/pure_call.h"
#include "kernels/session/session.h"

namespace terra {

// Invariant: a call is replayed only if all inputs of its ops that come from
// outside of it have been verified; its ops are then delegated one by one, as
// if Python had called them.
class PureCalls : protected ReplayParts {
 public:
  explicit PureCalls(Session* session) : ReplayParts(session) {}

  // Runs a call of a function that depends on its arguments only, or does
  // without its Python. New reference, or null with an exception set.
  PyObject* OnCall(const PureCall& call);

 protected:
  // Null, or why the calling thread is where no call is replayed op by op.
  const char* WhyNotOnThread(ThreadState* thread) const;
  // Keeps in `held` alive what is neither the record's nor an argument.
  bool Fits(const PureRecord& record, const Operands& operands, Tensors* held);
  PyObject* Replay(const PureRecord& record, const Operands& operands);
  // A call that begins here, to be learned; `num_made` and `has_history` as of
  // CallLearning, `context_values` as of PureLearning. Nothing, with an
  // exception set, if it cannot be.
  std::optional<PureLearning> Begin(size_t num_made, bool has_history,
                                    PyRef context_values) const;
  // Runs it while what happens in it is logged. Whether it can be learned: the
  // step goes on, and `result` is what it returned.
  bool Follow(PyObject* function, PyObject* args, PyObject* kwargs,
              PureLearning* learning, PyRef* result,
              std::vector<LoggedStep>* steps);
  // Lets go of what `try` statements around its ops wait for. False with an
  // exception set.
  bool LeaveTries(const PureRecord& record);

 private:
  const char* KeyOf(const PureCall& call, bool is_at_fork, PureKey* key) const;
  // One op of a replayed call; its results are added to `made`.
  bool ReplayOp(const PureStep& step, const Operands& operands, Tensors* made);

  // pure_learning.cc
  PyObject* RunAndLearn(const PureCall& call, const PureKey& key);
  // The same, and compares.
  PyObject* Check(const PureCall& call, const PureKey& key,
                  const std::shared_ptr<const PureRecord>& known);
  void Keep(const char* name, uint64_t key,
            const std::shared_ptr<PureRecord>& record);
};

}  // namespace terra

#endif  // TERRA_KERNELS_REPLAY_PURE_CALLS_H_
