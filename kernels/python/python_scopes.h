// Small things that native code does with Python's objects.
#ifndef TERRA_KERNELS_PYTHON_PYTHON_SCOPES_H_
#define TERRA_KERNELS_PYTHON_PYTHON_SCOPES_H_

#include "kernels/python/py_ref.h"
#include "kernels/python/tf_python.h"

namespace terra {

// Keeps the garbage collector, and so anybody's __del__, out of a scope.
class GcPause {
 public:
  GcPause() : was_enabled_(PyGC_Disable()) {}
  ~GcPause() {
    if (was_enabled_) PyGC_Enable();
  }
  GcPause(const GcPause&) = delete;

 private:
  int was_enabled_;
};

// Whether a tensor object has attributes. Asking it for its dictionary makes
// one, for each tensor.
bool TensorHasAttributes(PyObject* tensor);
// TensorFlow's mark of zeros, which gradient functions of convolutions and
// losses look for.
PyObject* ZerosMark();
bool IsMarkedAsZeros(PyObject* tensor);

// Another tensor object on the same handle: objects carry attributes.
inline PyRef SameValueNewObject(PyObject* tensor) {
  HandleOf(tensor)->Ref();
  return PyRef::Steal(
      EagerTensorFromHandle(tensorflow::wrap(HandleOf(tensor))));
}

}  // namespace terra

#endif  // TERRA_KERNELS_PYTHON_PYTHON_SCOPES_H_
