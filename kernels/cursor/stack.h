// Where the calling thread's Python is.
#ifndef TERRA_KERNELS_CURSOR_STACK_H_
#define TERRA_KERNELS_CURSOR_STACK_H_

#include <cstdint>

#include "kernels/python/py_ref.h"

namespace terra {

// Hashes it: code and instruction of every
// frame inside `stop_frame`.
uint64_t HashOfStack(PyObject* stop_frame);

}  // namespace terra

#endif  // TERRA_KERNELS_CURSOR_STACK_H_
