// What Python makes of the step so far, and of nothing else: code, and the
// tensors that it takes. Kept in the plan, for steps of the same history.
#ifndef TERRA_KERNELS_PLAN_MAKING_H_
#define TERRA_KERNELS_PLAN_MAKING_H_

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/plan/call_record.h"
#include "kernels/python/py_ref.h"

namespace terra {

// How it is asked for.
struct Making {
  std::string name;    // for people
  PyObject* function;  // the library's
  PyObject* tape;
  PyObject* given;  // a tuple: what it depends on besides the step so far
  // Returns what is made, a tuple of tensors that it takes, and why it cannot
  // be used again, or None.
  PyObject* make;
};

struct MakingRecord {
  std::string refusal;              // why it is made anew; empty: it is kept
  int tries_left = 0;               // refused: learning may be tried again
  int64_t* num_replayed = nullptr;  // counts in Plan::replayed
  PyRef made;
  std::vector<TensorSource> tensors;
  uint64_t history_after = 0;
  int num_names_after = 0;
  PyRef names_after;  // Python: the counts that sums and zeros are named by
  Anchors anchors;    // none: its key knows no object
};

}  // namespace terra

#endif  // TERRA_KERNELS_PLAN_MAKING_H_
