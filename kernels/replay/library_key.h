// By what a library call is known: the step's history, the function, and what
// it is given.
#ifndef TERRA_KERNELS_REPLAY_LIBRARY_KEY_H_
#define TERRA_KERNELS_REPLAY_LIBRARY_KEY_H_

#include <cstdint>

#include "absl/container/inlined_vector.h"
#include "absl/types/span.h"
#include "kernels/outputs/history.h"
#include "kernels/plan/hash.h"
#include "kernels/python/py_ref.h"
#include "kernels/replay/library_call.h"

namespace terra {

// Invariant: `value` is the key once Add has returned null. Tensors from
// outside that it has seen have names in the history from then on.
class LibraryKey {
 public:
  explicit LibraryKey(History* history) : history_(history) {}
  LibraryKey(const LibraryKey&) = delete;

  // Null, or why the call has no key. `tape`: the number of the tape it
  // differentiates on, or -1; `position`: how many ops the step has matched.
  const char* Add(const LibraryCall& call, int tape, bool check_devices,
                  int position);
  uint64_t value() const { return hash_.value(); }
  // Those of which Python can see a change; borrowed from the arguments.
  absl::Span<PyObject* const> objects() const { return objects_; }

 private:
  const char* Mix(PyObject* value, int depth);
  const char* MixItems(PyObject* items, int depth);

  History* const history_;
  bool takes_objects_ = false;
  Hash hash_{0};
  absl::InlinedVector<PyObject*, 4> objects_;
};

}  // namespace terra

#endif  // TERRA_KERNELS_REPLAY_LIBRARY_KEY_H_
