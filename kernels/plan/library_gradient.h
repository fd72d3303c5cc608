// A gradient function of TensorFlow's own that a tape is handed with an op, as
// `tf.custom_gradient` does: `tf.nn.silu` has one (docs/design/0009).
//
// It is a closure over tensors of the step, made anew at each call. Taken apart
// it is what is the same in every step, known by a hash, and its tensors; so a
// step's history can say what a tape got, and a replayed call can make another.
//
//   tf.nn.silu(x)  ->  [actual_grad_fn [grad _ _] 2 _ []],  (beta, x, y)
#ifndef TERRA_KERNELS_PLAN_LIBRARY_GRADIENT_H_
#define TERRA_KERNELS_PLAN_LIBRARY_GRADIENT_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/plan/hash.h"
#include "kernels/python/py_ref.h"

namespace terra {

class LibraryGradient {
 public:
  // Takes `record(op type, outputs, inputs, gradient function[, None])` apart.
  // `tensors` gets inputs, outputs, and what the function holds. Null, without
  // an exception, where user code may be in it, or what is not understood.
  static std::shared_ptr<const LibraryGradient> Of(PyObject* record,
                                                   PyObject* args,
                                                   std::vector<PyRef>* tensors);

  // All that it is made of besides tensors.
  uint64_t hash() const { return hash_.value(); }
  size_t num_inputs() const { return num_inputs_; }
  size_t num_tensors() const { return num_tensors_; }

  // Records an op of these tensors, num_tensors() of them. False with an
  // exception set.
  bool Record(const PyRef* tensors) const;

 private:
  struct Part {
    enum class Kind : uint64_t {
      kConstant = 1,  // object: it
      kTensor,
      kFunction,  // object: code; then parts: defaults, by keyword, closure
      kTuple,
      kList,
      kDict,  // object: a tuple of its keys
    };
    Kind kind = Kind::kConstant;
    PyRef object;
    PyRef globals;    // of a function
    PyRef qualified;  // its name
    std::vector<Part> parts;
  };

  LibraryGradient() = default;
  bool AddTensors(PyObject* list, std::vector<PyRef>* tensors);
  // What adds to the hash, and to the tensors. False where it does not know.
  bool Add(PyObject* value, int depth, Part* part, std::vector<PyRef>* tensors);
  bool AddConstant(PyObject* value, Part* part);
  bool AddFunction(PyObject* function, int depth, Part* part,
                   std::vector<PyRef>* tensors);
  bool AddItems(const std::vector<PyObject*>& items, int depth, Part* part,
                std::vector<PyRef>* tensors);
  bool AddDict(PyObject* dict, int depth, Part* part,
               std::vector<PyRef>* tensors);
  // Null with an exception set. `next` moves over the tensors that it takes.
  static PyRef Make(const Part& part, const PyRef** next);
  static PyRef MakeFunction(const Part& part, const PyRef** next);

  Hash hash_{0x11b6};
  PyObject* record_ = nullptr;  // a function of TensorFlow's; never dies
  bool has_forward_ = false;    // takes None behind the gradient function
  PyRef name_;
  Part function_;
  size_t num_inputs_ = 0;
  size_t num_outputs_ = 0;
  size_t num_tensors_ = 0;
};

}  // namespace terra

#endif  // TERRA_KERNELS_PLAN_LIBRARY_GRADIENT_H_
