// What Python has set of a tensor's attributes. Calls see it, so keys have it;
// and calls set it, so records say how to set it again (docs/design/0009).
#ifndef TERRA_KERNELS_REPLAY_TENSOR_ATTRIBUTES_H_
#define TERRA_KERNELS_REPLAY_TENSOR_ATTRIBUTES_H_

#include <array>
#include <cstdint>

#include "kernels/outputs/outputs.h"
#include "kernels/python/py_ref.h"

namespace terra {

// Keras' attributes of tensors, whose values are tensors or None:
// `_keras_mask`, and `_keras_logits`, what its softmax and sigmoid were given.
constexpr int kNumCarried = 2;

struct TensorAttributes {
  bool is_zeros = false;    // TensorFlow's mark that all its items are zero
  bool is_slice = false;    // `assign`, which a slice of a variable has
  bool has_others = false;  // what is not understood
  std::array<PyRef, kNumCarried> carried;  // null: it is not set

  // A mask of Keras' that is one.
  bool has_mask() const { return carried[0] && carried[0].get() != Py_None; }
  // Equal where the same is set, values of what is carried left out.
  uint64_t kind() const;
};

TensorAttributes AttributesOf(PyObject* tensor);
// Sets one that is carried; false with an error set if it cannot be.
bool SetCarried(PyObject* tensor, int which, PyObject* value);
// TensorFlow's mark; false with an error set if it cannot be.
bool MarkAsZeros(PyObject* tensor);
// What a slice of a variable has, without the variable. Null if it holds
// results of the step.
PyRef AssignOfSlice(const Outputs& outputs, PyObject* tensor,
                    PyObject* variable);
bool MarkAsSlice(PyObject* tensor, PyObject* assign, PyObject* variable);

}  // namespace terra

#endif  // TERRA_KERNELS_REPLAY_TENSOR_ATTRIBUTES_H_
