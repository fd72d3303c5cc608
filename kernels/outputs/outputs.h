// What a step has made, and what its joined inputs were.
#ifndef TERRA_KERNELS_OUTPUTS_OUTPUTS_H_
#define TERRA_KERNELS_OUTPUTS_OUTPUTS_H_

#include <atomic>

#include "kernels/python/py_ref.h"
#include "tensorflow/core/common_runtime/eager/tensor_handle.h"
#include "tensorflow/core/framework/tensor_shape.h"

namespace terra {

// One output that this step has made.
struct Made {
  Made(tensorflow::TensorHandle* handle, int node, int output, int channel,
       PyObject* marker, std::atomic<bool>* ready)
      : handle(handle),
        node(node),
        output(output),
        fetch_channel(channel),
        marker(marker),
        ready(ready) {}
  tensorflow::TensorHandle* handle;  // owned; null once released
  int node;
  int output;
  int fetch_channel;
  PyObject* marker;  // names the op on a tape; borrowed from plan or session
  tensorflow::PartialTensorShape shape;  // where the cursor has inferred it
  std::atomic<bool>* ready;  // the session's: has a value (or is poisoned)
  bool seen = false;         // Python has looked at the value: pinned
};

// Whether somebody besides its session holds the output's handle.
inline bool IsReferenced(const Made& made) {
  return made.handle != nullptr && !made.handle->RefCountIsOne();
}

// What a joined input turned out to be in this step.
struct Decided {
  bool is_set = false;
  int node = -1;  // it is an output of this step, or -1:
  int output = -1;
  PyRef external;       // as Python gave it
  PyRef external_copy;  // where NumPy could change the bytes
};

}  // namespace terra

#endif  // TERRA_KERNELS_OUTPUTS_OUTPUTS_H_
