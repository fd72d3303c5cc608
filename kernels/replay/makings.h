// What Python makes of the step so far, kept for steps that are alike
// (docs/design/0009, Jacobians).
#ifndef TERRA_KERNELS_REPLAY_MAKINGS_H_
#define TERRA_KERNELS_REPLAY_MAKINGS_H_

#include <string>

#include "kernels/plan/making.h"
#include "kernels/python/py_ref.h"
#include "kernels/replay/library_key.h"
#include "kernels/replay/parts.h"
#include "kernels/session/session.h"

namespace terra {

// Invariant: what is kept takes the tensors of the step that asks for it, never
// those of the step that it was learned from.
class Makings : private ReplayParts {
 public:
  explicit Makings(Session* session) : ReplayParts(session) {}

  // What Python makes of the step so far, or has made in a step like it, and
  // whether it is from such a step. New reference to a tuple, or null with an
  // exception set.
  PyObject* On(const Making& making);

 private:
  std::string WhyNot(const Making& making) const;
  PyObject* Replay(const MakingRecord& record, const Tensors& found);
  PyObject* MakeAndLearn(const Making& making, const LibraryKey& key);
  std::string LearnTensors(PyObject* tensors, int num_names,
                           MakingRecord* record) const;
};

}  // namespace terra

#endif  // TERRA_KERNELS_REPLAY_MAKINGS_H_
