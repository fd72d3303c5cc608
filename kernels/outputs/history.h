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
#ifndef TERRA_KERNELS_OUTPUTS_HISTORY_H_
#define TERRA_KERNELS_OUTPUTS_HISTORY_H_

#include <cstdint>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "kernels/outputs/outputs.h"
#include "kernels/plan/hash.h"
#include "kernels/plan/plan.h"
#include "kernels/python/py_ref.h"

namespace terra {

// Invariant: a named tensor stays alive until Clear(), and has one name,
// however often it appears. What was named in a stretch of the step that was
// replayed has a number and no tensor.
class History {
 public:
  // `plan` may be null.
  History(const Plan* plan, const Outputs& outputs)
      : plan_(plan), outputs_(outputs) {}
  History(const History&) = delete;

  Hash& hash() { return hash_; }

  // The tensor's name. Keeps it alive from then on.
  int NameOf(PyObject* tensor);
  // Mixes its name, and the first name that the same tensor has had.
  void MixName(PyObject* tensor, Hash* hash);
  // The same, or -1 for a tensor that has none.
  int FindName(PyObject* tensor) const;
  // Mixes what an outside input of an op is.
  void MixIdentity(PyObject* tensor) { MixIdentity(tensor, &hash_); }
  // Returns whether it is from outside.
  bool MixIdentity(PyObject* tensor, Hash* hash);
  // The same, with type and shape if it is from outside. Null, or why that is
  // not known.
  const char* MixTensor(PyObject* tensor, Hash* hash);
  void MixShapeOf(PyObject* tensor);
  // Mixes the value of an outside tensor from which a result's shape follows.
  void MixShapeValue(PyObject* tensor, const tensorflow::Tensor& value);
  // Whether it has done so.
  bool KnowsValue(PyObject* tensor) const {
    return shape_values_.count(IdOf(tensor)) > 0;
  }
  // Mixes the name of a tensor that has one; returns it, or -1.
  int NoteOutside(PyObject* tensor);
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
    shape_values_.clear();
  }

 private:
  const Plan* const plan_;
  const Outputs& outputs_;
  Hash hash_{0x7e44a};
  std::unordered_map<int64_t, int> names_;  // by the tensor's id
  // By its handle, which a named tensor keeps alive.
  std::unordered_map<const void*, int> first_names_;
  std::vector<PyRef> named_;
  std::unordered_set<int64_t> shape_values_;  // ids of named tensors
};

}  // namespace terra

#endif  // TERRA_KERNELS_OUTPUTS_HISTORY_H_
