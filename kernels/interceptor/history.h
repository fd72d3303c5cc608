// What has happened in a step so far, as one number, and names for the tensors
// from outside that took part in it.
//
// Two steps of one plan with the same history have run the same nodes on the
// same dataflow, under the same tapes with the same tensors watched, on tensors
// of the same shapes. What a library function does next can differ between them
// only by its arguments and by state of its own (docs/design/0009).
//
// An outside tensor's name is its number in the order of first appearance, so
// that steps with other batches have the same names, and one tensor given twice
// has one name. Two Python objects may be one tensor (TensorFlow has one handle
// for all scalars of a value): they have two names, since tapes tell them
// apart, and the history says that they are one (MixName).
#ifndef TERRA_KERNELS_INTERCEPTOR_HISTORY_H_
#define TERRA_KERNELS_INTERCEPTOR_HISTORY_H_

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "kernels/interceptor/py_ref.h"
#include "kernels/interceptor/tf_python.h"
#include "tensorflow/core/framework/tensor_shape.h"

namespace terra {

inline uint64_t MixHash(uint64_t hash, uint64_t value) {
  hash ^= value + 0x9e3779b97f4a7c15ull + (hash << 6) + (hash >> 2);
  return hash * 0xff51afd7ed558ccdull;
}

// What a value in a history is. Mixed in before the value itself.
enum class Event : uint64_t {
  kNode = 1,
  kOutside,   // a name
  kFixed,     // a tensor that is the plan's own: its number
  kMadeHere,  // an output of this step: node, output
  kType,      // data type, and kShape
  kShape,
  kTape,  // a TapeEvent
  kObject,
  kNumber,
  kText,
  kReal,
  kList,
  kTuple,
  kSlices,
};

// A hash that is being made.
class Hash {
 public:
  explicit Hash(uint64_t start) : value_(start) {}
  uint64_t value() const { return value_; }
  void Mix(uint64_t value) { value_ = MixHash(value_, value); }
  void Mix(Event event) { Mix(static_cast<uint64_t>(event)); }
  void Mix(Event event, uint64_t value) {
    Mix(event);
    Mix(value);
  }
  void MixShape(const tensorflow::PartialTensorShape& shape);

 private:
  uint64_t value_;
};

uint64_t HashOfShape(const tensorflow::PartialTensorShape& shape);

class History {
 public:
  Hash& hash() { return hash_; }

  // The tensor's name. Keeps it alive from then on.
  int NameOf(PyObject* tensor);
  // Mixes its name, and the first name that the same tensor has had.
  void MixName(PyObject* tensor, Hash* hash);
  // The same, or -1 for a tensor that has none.
  int FindName(PyObject* tensor) const;
  PyObject* Named(int name) const { return named_[name].get(); }
  int num_names() const { return static_cast<int>(named_.size()); }

  // As if a stretch of the step had run that ended so.
  void JumpTo(uint64_t hash, int num_names) {
    hash_ = Hash(hash);
    named_.resize(num_names);  // what was named in it stays nameless
  }
  void Clear() {
    names_.clear();
    first_names_.clear();
    named_.clear();
  }

 private:
  Hash hash_{0x7e44a};
  std::unordered_map<int64_t, int> names_;  // by the tensor's id
  // By its handle, which a named tensor keeps alive.
  std::unordered_map<const void*, int> first_names_;
  std::vector<PyRef> named_;
};

}  // namespace terra

#endif  // TERRA_KERNELS_INTERCEPTOR_HISTORY_H_
