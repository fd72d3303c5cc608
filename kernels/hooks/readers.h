// Wrappers around everything in TensorFlow that reads a tensor's value or
// shape without passing the hooks.
#ifndef TERRA_KERNELS_HOOKS_READERS_H_
#define TERRA_KERNELS_HOOKS_READERS_H_

#include "kernels/python/py_ref.h"

namespace terra {

// Replaces the buffer slot of EagerTensor, or puts it back.
void InstallBufferReader();
void UninstallBufferReader();

// A callable that makes its first argument (or, for a list, every tensor in
// it) readable and then calls `original`. With `as_method` it binds like a
// method.
PyRef WrapReader(PyObject* original, bool reads_shape_only, bool as_method);

}  // namespace terra

#endif  // TERRA_KERNELS_HOOKS_READERS_H_
