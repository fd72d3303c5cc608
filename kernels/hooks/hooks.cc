#include "kernels/hooks/hooks.h"

#include <utility>

#include "kernels/call/call.h"
#include "kernels/call/op_info.h"
#include "kernels/outputs/readable.h"
#include "kernels/python/controller.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"
#include "kernels/session/session.h"
#include "kernels/session/settling.h"
#include "kernels/session/tape_events.h"
#include "kernels/tapes/tape_log.h"

namespace terra {
namespace {

// Reads a tf.Variable as FastPathExecute does, but through the hook, so that
// the read is recorded and matched.
PyRef ReadVariable(PyObject* py_context, PyObject* variable) {
  static PyObject* trainable_name = PyUnicode_InternFromString("_trainable");
  static PyObject* handle_name = PyUnicode_InternFromString("_handle");
  static PyObject* op_name = PyUnicode_InternFromString("ReadVariableOp");
  static PyObject* attr_name = PyUnicode_InternFromString("dtype");
  PyRef trainable = PyRef::Steal(PyObject_GetAttr(variable, trainable_name));
  if (!trainable) return PyRef();
  if (trainable.get() != Py_False) {
    if (!AccessVariable(variable)) return PyRef();
  }
  PyRef handle = PyRef::Steal(PyObject_GetAttr(variable, handle_name));
  if (!handle) return PyRef();
  PyRef dtype = PyRef::Steal(PyLong_FromLong(VariableType(variable)));
  PyRef args = PyRef::Steal(PyTuple_Pack(6, py_context, op_name, Py_None,
                                         handle.get(), attr_name, dtype.get()));
  if (!args) return PyRef();
  return PyRef::Steal(FastPathExecuteHook(nullptr, args.get()));
}

bool IsForwarded(const ThreadState& thread) {
  return thread.session == nullptr || thread.nested > 0;
}

bool IsDestroy(PyObject* py_name) {
  static const OpInfo* destroy = OpInfo::Of(std::string("DestroyResourceOp"));
  return OpInfo::Of(py_name) == destroy;
}

// Replaces an error to which the op's wrapper would add a name.
void RaiseUnnamed(const Session* session) {
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  PyErr_NormalizeException(&type, &value, &traceback);
  if (CallController(session->controller(), "on_unnamed_error", "(O)", value)) {
    PyErr_Restore(type, value, traceback);
    return;
  }
  Py_XDECREF(type);
  Py_XDECREF(value);
  Py_XDECREF(traceback);
}

}  // namespace

PyObject* FastPathExecuteHook(PyObject*, PyObject* args) {
  ThreadState& thread = CurrentThread();
  thread.was_interrupted = false;
  if (IsForwarded(thread)) {
    if (!Session::Live().empty() && PyTuple_GET_SIZE(args) > 3) {
      // Attributes come after the inputs; strings and numbers settle at once.
      if (!SettleArguments(PyTuple_GET_ITEM(args, 1), args, 3,
                           PyTuple_GET_SIZE(args))) {
        return nullptr;
      }
    }
    return RunFast(args);
  }
  if (PyTuple_GET_SIZE(args) > 1 && IsDestroy(PyTuple_GET_ITEM(args, 1))) {
    if (!SettleArguments(PyTuple_GET_ITEM(args, 1), args, 3,
                         PyTuple_GET_SIZE(args))) {
      return nullptr;
    }
    return RunFast(args);
  }
  Call call;
  switch (ParseFastCall(args, ReadVariable, &call)) {
    case ParseResult::kOk:
      break;
    case ParseResult::kFallback:
      RaiseFallbackException(
          "Terra: an input that only TensorFlow's Python can convert");
      return nullptr;
    case ParseResult::kError:
      return nullptr;
  }
  // Reading a variable may have ended the session's co-execution, but not the
  // session: it lasts until the decorated function returns.
  Session* session = thread.session;
  PyObject* result = OrKeptError(session->OnCall(call));
  if (result == nullptr && call.given_name() == Py_None) RaiseUnnamed(session);
  return result;
}

PyObject* ExecuteHook(PyObject*, PyObject* args) {
  const ThreadState& thread = CurrentThread();
  const Py_ssize_t size = PyTuple_GET_SIZE(args);
  PyObject* original =
      size == 7 ? Runtime().execute_cancelable : Runtime().execute;
  if (IsForwarded(thread)) {
    if (!Session::Live().empty() && size > 3 &&
        !SettleArguments(PyTuple_GET_ITEM(args, 2), args, 3, 4)) {
      return nullptr;
    }
    return PyObject_Call(original, args, nullptr);
  }
  Call call;
  switch (ParseFullCall(args, &call)) {
    case ParseResult::kOk:
      return OrKeptError(thread.session->OnCall(call));
    case ParseResult::kFallback:  // TensorFlow says what is wrong with it
      return PyObject_Call(original, args, nullptr);
    case ParseResult::kError:
      return nullptr;
  }
  return nullptr;
}

// Appends the items of a list or tuple. False if some are no EagerTensors.
bool AppendTensors(PyObject* list, Tensors* tensors) {
  if (!PyList_Check(list) && !PyTuple_Check(list)) return false;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(list); ++i) {
    PyObject* item = PySequence_Fast_GET_ITEM(list, i);
    if (!EagerTensor_CheckExact(item)) return false;
    tensors->push_back(PyRef::Borrow(item));
  }
  return true;
}

// Whether no gradient goes through any of the inputs, so that tapes take no
// notice (TensorFlow's `IsDtypeTrainable` has fewer types than this leaves).
bool AreDiscrete(PyObject* inputs) {
  Tensors tensors;
  if (!AppendTensors(inputs, &tensors)) return false;
  for (const PyRef& tensor : tensors) {
    const tensorflow::DataType type = HandleOf(tensor.get())->DataType();
    if (!tensorflow::DataTypeIsInteger(type) && type != tensorflow::DT_BOOL) {
      return false;
    }
  }
  return true;
}

// Python records the gradient of ops that came by the full route; append the
// marker that names the op.
PyObject* RecordGradientHook(PyObject*, PyObject* args) {
  const ThreadState& thread = CurrentThread();
  PyObject* original = Runtime().record_gradient;
  if (IsForwarded(thread) || PyTuple_GET_SIZE(args) < 4) {
    if (!Session::FlushAllTapes()) return nullptr;
    return PyObject_Call(original, args, nullptr);
  }
  if (AreDiscrete(PyTuple_GET_ITEM(args, 1))) Py_RETURN_NONE;
  PyRef results = PyRef::Steal(PySequence_Tuple(PyTuple_GET_ITEM(args, 3)));
  if (!results) return nullptr;
  PyObject* marker = nullptr;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(results.get()); ++i) {
    PyObject* tensor = PyTuple_GET_ITEM(results.get(), i);
    if (!EagerTensor_CheckExact(tensor)) continue;
    if (!EnsureReadable(tensor, Reading::kShape)) return nullptr;
    const int32_t index = thread.session->outputs().Find(HandleOf(tensor));
    if (index >= 0) marker = thread.session->outputs()[index].marker;
  }
  PyObject* attrs = PyTuple_GET_ITEM(args, 2);
  if (marker == nullptr || attrs == Py_None) {
    thread.session->call_log().ObstructPure(
        "Python records an op of its own on the tape");
    if (!thread.session->tapes().Flush()) return nullptr;
    return PyObject_Call(original, args, nullptr);
  }
  PyRef list = PyRef::Steal(PySequence_List(attrs));
  if (!list) return nullptr;
  PyRef name = PyRef::Steal(PyUnicode_InternFromString("_terra_node"));
  PyList_Append(list.get(), name.get());
  PyList_Append(list.get(), marker);
  PyRef new_args = PyRef::Steal(PySequence_List(args));
  PyObject* new_attrs = PyList_AsTuple(list.get());
  thread.session->call_log().LogRecord(PyTuple_GET_ITEM(args, 0),
                                       PyTuple_GET_ITEM(args, 1), new_attrs);
  PyList_SetItem(new_args.get(), 2, new_attrs);
  Tensors inputs;
  if (TapeIsActive() && AppendTensors(PyTuple_GET_ITEM(args, 1), &inputs)) {
    Tensors outputs;
    if (AppendTensors(results.get(), &outputs)) {
      if (!thread.session->tapes().Tell(PyTuple_GET_ITEM(args, 0), inputs,
                                        new_attrs, outputs)) {
        return nullptr;
      }
      Py_RETURN_NONE;
    }
  }
  if (!thread.session->tapes().Flush()) return nullptr;
  PyRef tuple = PyRef::Steal(PyList_AsTuple(new_args.get()));
  return PyObject_Call(original, tuple.get(), nullptr);
}

}  // namespace terra
