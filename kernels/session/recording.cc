// Running a call for real, and telling tapes of it.
#include "kernels/call/call.h"
#include "kernels/call/op_info.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"
#include "kernels/session/execution.h"
#include "kernels/tapes/tape_log.h"

namespace terra {
namespace {

// attrs + inferred attributes + the marker that names the forward op.
PyRef TapeAttrs(const Call& call, PyObject* marker) {
  PyRef list = PyRef::Steal(PySequence_List(call.attrs.get()));
  auto append = [&](PyObject* name, PyRef value) {
    PyList_Append(list.get(), name);
    PyList_Append(list.get(), value.get());
  };
  size_t next = 0;
  const OpInfo& info = *call.info;
  for (size_t i = 0; i < info.args.size(); ++i) {
    const OpInfo::Arg& arg = info.args[i];
    const int n = call.counts[i] < 0 ? 1 : call.counts[i];
    if (arg.kind == OpInfo::ArgKind::kRepeated) {
      PyRef name = PyRef::Steal(PyUnicode_FromString(arg.number_attr.c_str()));
      append(name.get(), PyRef::Steal(PyLong_FromLong(n)));
    }
    if (arg.kind == OpInfo::ArgKind::kHeterogeneous) {
      PyRef name = PyRef::Steal(PyUnicode_FromString(arg.list_attr.c_str()));
      PyRef types = PyRef::Steal(PyList_New(n));
      for (int k = 0; k < n; ++k) {
        PyList_SET_ITEM(
            types.get(), k,
            PyLong_FromLong(HandleOf(call.inputs[next + k].get())->DataType()));
      }
      append(name.get(), std::move(types));
    } else if (arg.type_attr >= 0 && n > 0) {
      PyRef name = PyRef::Steal(
          PyUnicode_FromString(info.type_attrs[arg.type_attr].name.c_str()));
      append(name.get(), PyRef::Steal(PyLong_FromLong(
                             HandleOf(call.inputs[next].get())->DataType())));
    }
    next += n;
  }
  static PyObject* name = PyUnicode_InternFromString("_terra_node");
  append(name, PyRef::Borrow(marker));
  return PyRef::Steal(PyList_AsTuple(list.get()));
}

Tensors ItemsOf(PyObject* list) {
  Tensors items;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i) {
    items.push_back(PyRef::Borrow(PyList_GET_ITEM(list, i)));
  }
  return items;
}

// Whether tapes are told of it here. Others tell them themselves.
bool IsForTapes(const Call& call) {
  return call.route != Route::kFull && !RunsPython(call);
}

}  // namespace

PyObject* Execution::ExecuteUntold(const Call& call) {
  NestedScope nested;
  if (!TapeIsActive()) return Execute(call);
  if (!IsForTapes(call)) return tapes_.Flush() ? Execute(call) : nullptr;
  TFE_Py_TapeSetStopOnThread();
  PyObject* result = Execute(call);
  TFE_Py_TapeSetRestartOnThread();
  return result;
}

bool Execution::TellOfReal(const Call& call, PyObject* marker,
                           PyObject* result) {
  if (!TapeIsActive() || !IsForTapes(call)) return true;
  PyRef outputs = OutputList(result);
  PyRef attrs = TapeAttrs(call, marker);
  return tapes_.Tell(call.info->py_name.get(), call.inputs, attrs.get(),
                     ItemsOf(outputs.get()));
}

}  // namespace terra
