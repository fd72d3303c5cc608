#include "kernels/hooks/replayable.h"

#include "kernels/outputs/step_context.h"
#include "kernels/python/thread.h"
#include "kernels/replay/library_call.h"
#include "kernels/replay/library_calls.h"
#include "kernels/replay/pure_calls.h"
#include "kernels/session/session.h"

namespace terra {
namespace {

struct Replayable {
  PyObject_HEAD PyObject* original;
  std::string* name;
};

Replayable* From(PyObject* self) { return reinterpret_cast<Replayable*>(self); }

PyObject* CallReplayable(PyObject* self, PyObject* args, PyObject* kwargs) {
  PyObject* original = From(self)->original;
  const ThreadState& thread = CurrentThread();
  Session* session = thread.nested > 0 ? nullptr : thread.session;
  if (session == nullptr || session->plan() == nullptr) {
    return PyObject_Call(original, args, kwargs);
  }
  LibraryCall call{
      From(self)->name->c_str(), original, args, kwargs, {}, false, true};
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args); ++i) {
    call.given.push_back(PyTuple_GET_ITEM(args, i));
  }
  PyObject *key, *value;
  Py_ssize_t place = 0;
  while (kwargs != nullptr && PyDict_Next(kwargs, &place, &key, &value)) {
    call.given.push_back(key);
    call.given.push_back(value);
  }
  return session->context().Logged(
      OrKeptError(LibraryCalls(session).OnCall(call)));
}

PyObject* BindReplayable(PyObject* self, PyObject* object, PyObject*) {
  if (object == nullptr || object == Py_None) {
    Py_INCREF(self);
    return self;
  }
  return PyMethod_New(self, object);
}

// Name, signature, code, documentation: the original's. Only pickling is its
// own: by name, which leads to what stands there.
PyObject* AttributeOfReplayable(PyObject* self, PyObject* name) {
  if (PyUnicode_CompareWithASCIIString(name, "__reduce__") == 0 ||
      PyUnicode_CompareWithASCIIString(name, "__reduce_ex__") == 0) {
    return PyObject_GenericGetAttr(self, name);
  }
  return PyObject_GetAttr(From(self)->original, name);
}

PyObject* ReduceReplayable(PyObject* self, PyObject*) {
  return PyObject_GetAttrString(From(self)->original, "__qualname__");
}

PyMethodDef replayable_methods[] = {
    {"__reduce__", ReduceReplayable, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr}};

void FreeReplayable(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  Py_CLEAR(From(self)->original);
  delete From(self)->name;
  PyObject_Free(self);
  Py_DECREF(type);
}

PyTypeObject* ReplayableType() {
  static PyType_Slot slots[] = {
      {Py_tp_call, reinterpret_cast<void*>(CallReplayable)},
      {Py_tp_descr_get, reinterpret_cast<void*>(BindReplayable)},
      {Py_tp_getattro, reinterpret_cast<void*>(AttributeOfReplayable)},
      {Py_tp_methods, replayable_methods},
      {Py_tp_dealloc, reinterpret_cast<void*>(FreeReplayable)},
      {0, nullptr}};
  static PyType_Spec spec = {"terra_tf.Replayable", sizeof(Replayable), 0,
                             Py_TPFLAGS_DEFAULT, slots};
  static auto* type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return type;
}

// self: (original, name, whether it takes objects, whether it is declared)
PyObject* CallPureFunction(PyObject* self, PyObject* const* values,
                           Py_ssize_t n) {
  if (n < 2 || n > 3 || !PyTuple_Check(values[0]) || !PyDict_Check(values[1])) {
    PyErr_SetString(PyExc_TypeError, "expected a tuple, a dict and a marker");
    return nullptr;
  }
  PyObject* original = PyTuple_GET_ITEM(self, 0);
  const ThreadState& thread = CurrentThread();
  Session* session = thread.nested > 0 ? nullptr : thread.session;
  if (session == nullptr || session->mode() != Mode::kCoExecution) {
    return PyObject_Call(original, values[0], values[1]);
  }
  return session->context().Logged(OrKeptError(PureCalls(session).OnCall(
      {PyUnicode_AsUTF8(PyTuple_GET_ITEM(self, 1)), original, values[0],
       values[1], PyTuple_GET_ITEM(self, 2) == Py_True,
       PyTuple_GET_ITEM(self, 3) == Py_True, n == 3 ? values[2] : nullptr})));
}

PyMethodDef pure_function = {
    "terra_pure_function",
    reinterpret_cast<PyCFunction>(
        reinterpret_cast<void (*)()>(CallPureFunction)),
    METH_FASTCALL, nullptr};

}  // namespace

PyRef MakePureFunction(const std::string& name, PyObject* original,
                       bool takes_objects, bool is_declared) {
  PyRef text = PyRef::Steal(PyUnicode_FromString(name.c_str()));
  PyRef self = PyRef::Steal(PyTuple_Pack(4, original, text.get(),
                                         takes_objects ? Py_True : Py_False,
                                         is_declared ? Py_True : Py_False));
  return PyRef::Steal(PyCFunction_New(&pure_function, self.get()));
}

PyRef MakeReplayable(const std::string& name, PyObject* original) {
  PyTypeObject* type = ReplayableType();
  if (type == nullptr) return PyRef();
  Replayable* made = PyObject_New(Replayable, type);
  if (made == nullptr) return PyRef();
  made->original = PyRef::Borrow(original).release();
  made->name = new std::string(name);
  return PyRef::Steal(reinterpret_cast<PyObject*>(made));
}

}  // namespace terra
