// One call of an op, as it came through a hook: parsed and converted.
#ifndef TERRA_KERNELS_CALL_CALL_H_
#define TERRA_KERNELS_CALL_CALL_H_

#include <string>

#include "absl/container/inlined_vector.h"
#include "absl/types/span.h"
#include "kernels/call/op_info.h"
#include "kernels/python/py_ref.h"

namespace terra {

// Which of TensorFlow's two doors a call came through. They differ in how
// attributes are given: kFast has Python values of the attributes that are not
// inferred, kFull has every attribute.
enum class Route { kFast, kFull };

// Where inputs begin in a FastPathExecute call: after context, op name, name.
constexpr Py_ssize_t kFirstInput = 3;

// Most ops have few inputs and outputs: no memory is allocated for them.
using Tensors = absl::InlinedVector<PyRef, 4>;
using Counts = absl::InlinedVector<int, 4>;

struct Call {
  const OpInfo* info = nullptr;  // null: no registered op (a function)
  PyObject* py_name = nullptr;   // borrowed
  Route route = Route::kFast;
  PyObject* args = nullptr;  // borrowed: the hook's argument tuple
  Tensors inputs;            // EagerTensors, flat
  Counts counts;             // inputs per argument; -1 for a single one
  PyRef attrs;               // tuple: name, value, name, value, ...

  Call() = default;
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  PyRef InputTuple() const;
  PyRef CountTuple() const;

  // What errors of this op name it: what the caller calls it, or "" if nothing.
  // None where TensorFlow would take its slow path, which names nothing.
  // Borrowed.
  PyObject* given_name() const;
};

// Whether the op runs a function, which may be Python's.
inline bool RunsPython(const Call& call) {
  return call.info == nullptr ||
         call.info->name.find("PyFunc") != std::string::npos;
}

// The op's type, or the function's name, for messages.
std::string Describe(const Call& call);

// The type of a tf.Variable's value; DT_INVALID where it has none.
tensorflow::DataType VariableType(PyObject* variable);

// Reads a tf.Variable in the context. New reference, or null with an exception
// set.
using VariableReader = PyRef (*)(PyObject* py_context, PyObject* variable);

enum class ParseResult {
  kOk,
  kFallback,  // TensorFlow's own Python conversion has to do it
  kError,     // a Python exception is set
};

// Parses a FastPathExecute call and converts its inputs to EagerTensors: the
// same conversions as FastPathExecute's, but variables are read by
// `read_variable`, and Keras variables and lists of numbers are
// converted too, where TensorFlow takes its slow path.
ParseResult ParseFastCall(PyObject* args, VariableReader read_variable,
                          Call* call);

// Parses a TFE_Py_Execute or TFE_Py_ExecuteCancelable call.
ParseResult ParseFullCall(PyObject* args, Call* call);

// Runs the call for real: TensorFlow's own entry with the converted inputs.
// New reference, or null with an exception set.
PyObject* Execute(const Call& call);
// TFE_Py_FastPathExecute, which may return a result and set an exception: here
// it does one of them.
PyObject* RunFast(PyObject* args);

// Makes (steals references of) the result in the shape the route promises.
PyRef WrapOutputs(const Call& call, absl::Span<PyRef> outputs);

// Flattens a result into a Python list.
PyRef OutputList(PyObject* result);

}  // namespace terra

#endif  // TERRA_KERNELS_CALL_CALL_H_
