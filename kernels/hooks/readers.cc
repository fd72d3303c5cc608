#include "kernels/hooks/readers.h"

#include "kernels/outputs/readable.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"
#include "kernels/session/session.h"

namespace terra {
namespace {

getbufferproc original_getbuffer = nullptr;

void NoteRead(PyObject* tensor, Reading reading);

int GetBuffer(PyObject* tensor, Py_buffer* view, int flags) {
  NoteRead(tensor, Reading::kValue);
  if (!EnsureReadable(tensor, Reading::kValue)) {
    view->obj = nullptr;
    return -1;
  }
  return original_getbuffer(tensor, view, flags);
}

// The step's own code reads: what it reads may decide what it does next.
void NoteRead(PyObject* tensor, Reading reading) {
  const ThreadState& thread = CurrentThread();
  if (thread.session == nullptr || thread.nested > 0) return;
  thread.session->call_log().NoteRead(tensor, reading == Reading::kShape);
}

bool EnsureAllReadable(PyObject* value, Reading reading) {
  if (!PyList_Check(value) && !PyTuple_Check(value)) {
    NoteRead(value, reading);
    return EnsureReadable(value, reading);
  }
  PyRef items = PyRef::Steal(PySequence_Tuple(value));
  if (!items) return false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(items.get()); ++i) {
    PyObject* item = PyTuple_GET_ITEM(items.get(), i);
    NoteRead(item, reading);
    if (!EnsureReadable(item, reading)) {
      return false;
    }
  }
  return true;
}

PyObject* Read(PyObject* original, PyObject* args, PyObject* kwargs,
               Reading reading) {
  if (PyTuple_GET_SIZE(args) > 0 &&
      !EnsureAllReadable(PyTuple_GET_ITEM(args, 0), reading)) {
    return nullptr;
  }
  return PyObject_Call(original, args, kwargs);
}

PyObject* ReadValue(PyObject* original, PyObject* args, PyObject* kwargs) {
  return Read(original, args, kwargs, Reading::kValue);
}

PyObject* ReadShape(PyObject* original, PyObject* args, PyObject* kwargs) {
  return Read(original, args, kwargs, Reading::kShape);
}

PyMethodDef read_value = {
    "terra_read_value",
    reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(ReadValue)),
    METH_VARARGS | METH_KEYWORDS, nullptr};
PyMethodDef read_shape = {
    "terra_read_shape",
    reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(ReadShape)),
    METH_VARARGS | METH_KEYWORDS, nullptr};

}  // namespace

void InstallBufferReader() {
  PyBufferProcs* procs = EagerTensorType->tp_as_buffer;
  if (procs == nullptr || procs->bf_getbuffer == GetBuffer) return;
  original_getbuffer = procs->bf_getbuffer;
  procs->bf_getbuffer = GetBuffer;
}

void UninstallBufferReader() {
  PyBufferProcs* procs = EagerTensorType->tp_as_buffer;
  if (procs == nullptr || procs->bf_getbuffer != GetBuffer) return;
  procs->bf_getbuffer = original_getbuffer;
}

PyRef WrapReader(PyObject* original, bool reads_shape_only, bool as_method) {
  PyRef function = PyRef::Steal(
      PyCFunction_New(reads_shape_only ? &read_shape : &read_value, original));
  if (!function || !as_method) return function;
  return PyRef::Steal(PyInstanceMethod_New(function.get()));
}

}  // namespace terra
