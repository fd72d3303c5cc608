// Runs a call eagerly, by TensorFlow's own entry points.
#include "kernels/call/call.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/tf_python.h"

namespace terra {

PyObject* RunFast(PyObject* args) {
  PyRef result = PyRef::Steal(TFE_Py_FastPathExecute_C(args));
  // An integer that is too big for an attribute is complained of in silence.
  return PyErr_Occurred() ? nullptr : result.release();
}

namespace {

// A call that no Python has made: an op of a replay that goes on outside of the
// graph. As Python's would be, it is recorded on tapes here by the fast route,
// by who calls it otherwise.
PyObject* ExecuteAssembled(const Call& call) {
  PyRef list = PyRef::Steal(PyList_New(0));
  PyList_Append(list.get(), Runtime().py_context);
  PyList_Append(list.get(), call.py_name);
  PyList_Append(list.get(), Py_None);
  size_t next = 0;
  for (const int count : call.counts) {
    if (count < 0) {
      PyList_Append(list.get(), call.inputs[next++].get());
      continue;
    }
    PyRef items = PyRef::Steal(PyList_New(count));
    for (int k = 0; k < count; ++k) {
      PyList_SET_ITEM(items.get(), k, PyRef(call.inputs[next++]).release());
    }
    PyList_Append(list.get(), items.get());
  }
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(call.attrs.get()); ++i) {
    PyList_Append(list.get(), PyTuple_GET_ITEM(call.attrs.get(), i));
  }
  PyRef args = PyRef::Steal(PyList_AsTuple(list.get()));
  if (call.route == Route::kFast) return RunFast(args.get());
  TFE_Py_TapeSetStopOnThread();
  PyObject* result = RunFast(args.get());
  TFE_Py_TapeSetRestartOnThread();
  return result;
}

}  // namespace

PyObject* Execute(const Call& call) {
  if (call.args == nullptr) return ExecuteAssembled(call);
  if (call.route == Route::kFull) {
    PyObject* original = PyTuple_GET_SIZE(call.args) == 6
                             ? Runtime().execute
                             : Runtime().execute_cancelable;
    return PyObject_Call(original, call.args, nullptr);
  }
  const Py_ssize_t size = PyTuple_GET_SIZE(call.args);
  PyRef args = PyRef::Steal(PyTuple_New(size));
  size_t next = 0;
  for (Py_ssize_t i = 0; i < size; ++i) {
    const size_t arg = static_cast<size_t>(i - kFirstInput);
    PyRef item;
    if (i < kFirstInput || arg >= call.counts.size()) {
      item = PyRef::Borrow(PyTuple_GET_ITEM(call.args, i));
    } else if (call.counts[arg] < 0) {
      item = call.inputs[next++];
    } else {
      item = PyRef::Steal(PyList_New(call.counts[arg]));
      for (int k = 0; k < call.counts[arg]; ++k) {
        PyList_SET_ITEM(item.get(), k, PyRef(call.inputs[next++]).release());
      }
    }
    PyTuple_SET_ITEM(args.get(), i, item.release());
  }
  return RunFast(args.get());
}

}  // namespace terra
