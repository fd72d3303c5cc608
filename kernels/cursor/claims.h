// What is verified together is bound together: the inputs of an op, those of a
// replayed call. Nothing is bound before all of them have been verified, so the
// first use of a feed or variable among them is claimed here, and the later
// ones are held against it. Without that, `f(a, b)` would pass for `f(a, a)`.
#ifndef TERRA_KERNELS_CURSOR_CLAIMS_H_
#define TERRA_KERNELS_CURSOR_CLAIMS_H_

#include <cstdint>

#include "absl/container/inlined_vector.h"
#include "kernels/python/py_ref.h"

namespace terra {

// Tensors are borrowed: whoever verifies holds them until they are bound.
class Claims {
 public:
  // The tensor that is going to be bound to a slot, or null.
  PyObject* Feed(int slot) const { return Find(feeds_, slot); }
  PyObject* Variable(int variable) const { return Find(variables_, variable); }
  // Whether a variable of another number is going to be this resource.
  bool IsClaimedByOther(uint64_t resource_key, int variable) const {
    for (const Claim& claim : variables_) {
      if (claim.key == resource_key && claim.slot != variable) return true;
    }
    return false;
  }

  void AddFeed(int slot, PyObject* tensor) {
    feeds_.push_back({slot, tensor, 0});
  }
  void AddVariable(int variable, PyObject* handle, uint64_t resource_key) {
    variables_.push_back({variable, handle, resource_key});
  }

 private:
  struct Claim {
    int slot;
    PyObject* tensor;
    uint64_t key;  // of a variable: ResourceKey
  };
  using List = absl::InlinedVector<Claim, 4>;

  static PyObject* Find(const List& claims, int slot) {
    for (const Claim& claim : claims) {
      if (claim.slot == slot) return claim.tensor;
    }
    return nullptr;
  }

  List feeds_;
  List variables_;
};

}  // namespace terra

#endif  // TERRA_KERNELS_CURSOR_CLAIMS_H_
