// Handles of variables that the ops of a graph know by a number.
//
// A handle that a branch takes from the graph around it passes a Switch, taken
// or not. A handle that is the same in every step need not: `Terra>Handle`
// looks it up where it is used. Whoever holds a `HeldHandle` keeps the number
// valid, but not the variable alive: a step that uses it does.
#ifndef TERRA_KERNELS_RUNNER_HELD_HANDLES_H_
#define TERRA_KERNELS_RUNNER_HELD_HANDLES_H_

#include <cstdint>

#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/framework/tensor.h"

namespace terra {

class HeldHandle {
 public:
  explicit HeldHandle(const tensorflow::Tensor& handle);
  ~HeldHandle();
  HeldHandle(const HeldHandle&) = delete;
  HeldHandle& operator=(const HeldHandle&) = delete;

  int64_t number() const { return number_; }
  // Whether `number` is held, and its variable is alive; then `*handle` is set.
  // Any thread.
  static bool Find(int64_t number, tensorflow::Tensor* handle);
  // The variable, without a handle in between; null also if it is one that a
  // resource manager knows by name. Any thread.
  static tensorflow::core::RefCountPtr<tensorflow::Var> FindVariable(
      int64_t number);

 private:
  const int64_t number_;
};

}  // namespace terra

#endif  // TERRA_KERNELS_RUNNER_HELD_HANDLES_H_
