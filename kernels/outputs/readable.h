// Reads of tensors whose values may not be there yet.
#ifndef TERRA_KERNELS_OUTPUTS_READABLE_H_
#define TERRA_KERNELS_OUTPUTS_READABLE_H_

#include "kernels/python/py_ref.h"

namespace terra {

// Makes sure that the value (or only the shape) of `tensor` can be read
// without waiting for a Python that waits for this read. False with an
// exception set.
enum class Reading { kValue, kShape };
bool EnsureReadable(PyObject* tensor, Reading reading);

}  // namespace terra

#endif  // TERRA_KERNELS_OUTPUTS_READABLE_H_
