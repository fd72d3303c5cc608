// What a layer of Keras inherits from the layer that calls it, and leaves to
// those after it (docs/design/0009): the thread's `current_call_ctx`.
#ifndef TERRA_KERNELS_REPLAY_KERAS_CONTEXT_H_
#define TERRA_KERNELS_REPLAY_KERAS_CONTEXT_H_

#include <cstdint>

#include "kernels/plan/pure_record.h"
#include "kernels/python/py_ref.h"

namespace terra {

// Of the calling thread; null where no layer is being called.
class KerasContext {
 public:
  KerasContext();
  // Equal only if whose it is, and what is in it, is the same.
  uint64_t hash() const { return hash_; }
  // A copy of what is in it, or null.
  PyRef values() const;
  // Values, all of them None or booleans, that it has now and had not before;
  // false if it has changed in another way. `before`: a copy.
  bool FindChanges(const KerasContext& now, PyObject* before,
                   ContextChanges* changes) const;
  // Sets values; false with an error set.
  bool Set(const ContextChanges& changes) const;

 private:
  PyRef thread_;   // attributes of Keras' tracker for this thread, or null
  PyRef context_;  // or null
  uint64_t hash_ = 0;
};

}  // namespace terra

#endif  // TERRA_KERNELS_REPLAY_KERAS_CONTEXT_H_
