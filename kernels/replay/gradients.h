// Gradient functions of the library's that tapes are handed with an op
// (docs/design/0009).
#ifndef TERRA_KERNELS_REPLAY_GRADIENTS_H_
#define TERRA_KERNELS_REPLAY_GRADIENTS_H_

#include <memory>

#include "absl/types/span.h"
#include "kernels/call/call.h"
#include "kernels/plan/library_gradient.h"
#include "kernels/plan/pure_record.h"
#include "kernels/python/py_ref.h"
#include "kernels/replay/parts.h"
#include "kernels/session/session.h"

namespace terra {

// Invariant: a gradient function that is put off, or recorded in a replay, is
// part of the history; after one that is not, no gradient of the step is
// replayed.
class Gradients : private ReplayParts {
 public:
  explicit Gradients(Session* session) : ReplayParts(session) {}

  // Tapes are told of an op whose gradient is a Python function. New reference,
  // or null with an exception set.
  PyObject* OnRecordOperation(PyObject* original, PyObject* args,
                              PyObject* kwargs);
  // Does once more what a replayed call did. False with an exception set.
  bool Replay(const PureStep& step, const Operands& operands,
              const Tensors& made);

 private:
  // Puts it into the history. False if it cannot be there.
  bool Note(const std::shared_ptr<const LibraryGradient>& gradient,
            absl::Span<const PyRef> tensors);
  // Its gradient may be the user's, or what it depends on is not known.
  void NoteUnknown();
};

}  // namespace terra

#endif  // TERRA_KERNELS_REPLAY_GRADIENTS_H_
