#include "kernels/cursor/stack.h"

#include "kernels/plan/hash.h"

#if PY_VERSION_HEX < 0x030B0000
#include <frameobject.h>
#endif

namespace terra {
namespace {

int LastInstruction(PyFrameObject* frame) {
#if PY_VERSION_HEX < 0x030B0000
  return frame->f_lasti;
#else
  return PyFrame_GetLasti(frame);
#endif
}

}  // namespace

uint64_t HashOfStack(PyObject* stop_frame) {
  uint64_t hash = 0;
  PyFrameObject* frame = PyEval_GetFrame();
  Py_XINCREF(frame);
  while (frame != nullptr && reinterpret_cast<PyObject*>(frame) != stop_frame) {
    PyCodeObject* code = PyFrame_GetCode(frame);
    hash = MixHash(hash, reinterpret_cast<uintptr_t>(code));
    hash = MixHash(hash, static_cast<uint64_t>(LastInstruction(frame)));
    Py_DECREF(code);
    PyFrameObject* back = PyFrame_GetBack(frame);
    Py_DECREF(frame);
    frame = back;
  }
  Py_XDECREF(frame);
  return hash;
}

}  // namespace terra
