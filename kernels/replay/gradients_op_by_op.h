// Gradients whose ops are delegated one by one, because another tape records
// them, or because Python computes some of them itself (docs/design/0009).
#ifndef TERRA_KERNELS_REPLAY_GRADIENTS_OP_BY_OP_H_
#define TERRA_KERNELS_REPLAY_GRADIENTS_OP_BY_OP_H_

#include <cstddef>
#include <memory>
#include <string>

#include "kernels/plan/pure_record.h"
#include "kernels/python/py_ref.h"
#include "kernels/replay/library_call.h"
#include "kernels/replay/library_key.h"
#include "kernels/replay/pure_calls.h"
#include "kernels/session/session.h"

namespace terra {

// Invariant: a gradient is replayed only if its key, and so the history, is
// known, if all that it takes of the step has been found, and if that has been
// verified as the input of its ops; these are then delegated one by one.
class GradientsOpByOp : private PureCalls {
 public:
  explicit GradientsOpByOp(Session* session) : PureCalls(session) {}

  // Runs a call that differentiates, or does without its Python. New reference,
  // or null with an exception set.
  PyObject* OnCall(const LibraryCall& call);

 private:
  std::string WhyNotNow(const LibraryCall& call) const;
  PyObject* RunAndLearn(const LibraryCall& call, const LibraryKey& key);
  void Keep(const LibraryCall& call, const LibraryKey& key,
            const std::shared_ptr<GradientRecord>& record);
  // Null, without an exception, if it is not replayed this time.
  PyRef TryReplay(const GradientRecord& record);
};

}  // namespace terra

#endif  // TERRA_KERNELS_REPLAY_GRADIENTS_OP_BY_OP_H_
