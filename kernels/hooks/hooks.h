// The three hooks in TensorFlow's eager entry points.
#ifndef TERRA_KERNELS_HOOKS_HOOKS_H_
#define TERRA_KERNELS_HOOKS_HOOKS_H_

#include "kernels/python/py_ref.h"

namespace terra {

PyObject* FastPathExecuteHook(PyObject* self, PyObject* args);
PyObject* ExecuteHook(PyObject* self, PyObject* args);
PyObject* RecordGradientHook(PyObject* self, PyObject* args);

}  // namespace terra

#endif  // TERRA_KERNELS_HOOKS_HOOKS_H_
