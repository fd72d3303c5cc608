// Keys of pure calls: everything that the Python of a library function sees.
#include <cstring>

#include "kernels/outputs/outputs.h"
#include "kernels/outputs/readable.h"
#include "kernels/plan/call_record.h"
#include "kernels/plan/hash.h"
#include "kernels/plan/library_objects.h"
#include "kernels/plan/pure_record.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"
#include "kernels/replay/pure_call.h"
#include "tensorflow/core/util/determinism.h"

namespace terra {
namespace {

constexpr int kMaxDepth = 8;  // of lists in lists

// Gradient functions of convolutions and losses look for it.
PyObject* ZerosMark() {
  static PyObject* mark = PyUnicode_InternFromString("_is_zeros_tensor");
  return mark;
}

// Keras' mask of a tensor. Read by Keras only, as None where there is none.
PyObject* MaskName() {
  static PyObject* name = PyUnicode_InternFromString("_keras_mask");
  return name;
}

// What Keras' softmax and sigmoid have made their result of; losses look for
// it.
PyObject* LogitsName() {
  static PyObject* name = PyUnicode_InternFromString("_keras_logits");
  return name;
}

// A method that TensorFlow gives to slices of variables.
PyObject* AssignName() {
  static PyObject* name = PyUnicode_InternFromString("assign");
  return name;
}

// Whether it is the method that TensorFlow makes for a slice.
bool IsAssignOfSlice(PyObject* value) {
  if (!PyFunction_Check(value)) return false;
  PyObject* module =
      PyDict_GetItemString(PyFunction_GetGlobals(value), "__name__");
  return module != nullptr && PyUnicode_Check(module) &&
         PyUnicode_CompareWithASCIIString(
             module, "tensorflow.python.ops.array_ops") == 0;
}

// The same function with other cells. Null with an exception set.
PyRef WithClosure(PyObject* function, PyObject* cells) {
  static PyObject* name = PyUnicode_InternFromString("__qualname__");
  PyRef qualified = PyRef::Steal(PyObject_GetAttr(function, name));
  PyRef made = PyRef::Steal(PyFunction_NewWithQualName(
      PyFunction_GetCode(function), PyFunction_GetGlobals(function),
      qualified.get()));
  PyObject* defaults = PyFunction_GetDefaults(function);
  if (!made || PyFunction_SetClosure(made.get(), cells) < 0 ||
      PyFunction_SetDefaults(made.get(), defaults ? defaults : Py_None) < 0) {
    return PyRef();
  }
  return made;
}

// Visits what an object holds: whether it is more than its type.
int FindAttribute(PyObject* held, void* found) {
  if (PyType_Check(held)) return 0;
  *static_cast<bool*>(found) = true;
  return 1;
}

}  // namespace

Attributes AttributesOf(PyObject* tensor) {
  // Asking for the dictionary makes one, for each tensor.
  bool has_some = false;
  Py_TYPE(tensor)->tp_traverse(tensor, FindAttribute, &has_some);
  if (!has_some) return Attributes::kNone;
  PyObject** attributes = _PyObject_GetDictPtr(tensor);
  if (attributes == nullptr || *attributes == nullptr) return Attributes::kNone;
  // `tf_keras` says of every tensor that it has no mask.
  const bool has_no_mask = PyDict_GetItem(*attributes, MaskName()) == Py_None;
  const Py_ssize_t n = PyDict_Size(*attributes) - (has_no_mask ? 1 : 0);
  if (n == 0) return Attributes::kNone;
  if (n > 1) return Attributes::kOther;
  if (PyObject* logits = PyDict_GetItem(*attributes, LogitsName())) {
    return EagerTensor_CheckExact(logits) ? Attributes::kLogits
                                          : Attributes::kOther;
  }
  if (PyDict_GetItem(*attributes, ZerosMark()) == Py_True) {
    return Attributes::kZeros;
  }
  PyObject* assign = PyDict_GetItem(*attributes, AssignName());
  return assign != nullptr && IsAssignOfSlice(assign) ? Attributes::kSlice
                                                      : Attributes::kOther;
}

PyRef LogitsOf(PyObject* tensor) {
  PyRef logits = PyRef::Steal(PyObject_GetAttr(tensor, LogitsName()));
  if (!logits) PyErr_Clear();
  return logits;
}

bool SetLogits(PyObject* tensor, PyObject* logits) {
  return PyObject_SetAttr(tensor, LogitsName(), logits) == 0;
}

bool MarkAsZeros(PyObject* tensor) {
  return PyObject_SetAttr(tensor, ZerosMark(), Py_True) == 0;
}

PyRef AssignOfSlice(const Outputs& outputs, PyObject* tensor,
                    PyObject* variable) {
  PyRef assign = PyRef::Steal(PyObject_GetAttr(tensor, AssignName()));
  PyObject* closure = assign ? PyFunction_GetClosure(assign.get()) : nullptr;
  if (closure == nullptr) return PyRef();
  const Py_ssize_t n = PyTuple_GET_SIZE(closure);
  PyRef cells = PyRef::Steal(PyTuple_New(n));
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* held = PyCell_GET(PyTuple_GET_ITEM(closure, i));
    if (held == nullptr ||
        (EagerTensor_CheckExact(held) && outputs.Find(HandleOf(held)) >= 0)) {
      return PyRef();
    }
    PyTuple_SET_ITEM(cells.get(), i,
                     PyCell_New(held == variable ? nullptr : held));
  }
  return WithClosure(assign.get(), cells.get());
}

bool MarkAsSlice(PyObject* tensor, PyObject* assign, PyObject* variable) {
  PyObject* closure = PyFunction_GetClosure(assign);
  const Py_ssize_t n = PyTuple_GET_SIZE(closure);
  PyRef cells = PyRef::Steal(PyTuple_New(n));
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* held = PyCell_GET(PyTuple_GET_ITEM(closure, i));
    PyTuple_SET_ITEM(cells.get(), i,
                     PyCell_New(held == nullptr ? variable : held));
  }
  PyRef made = WithClosure(assign, cells.get());
  return made && PyObject_SetAttr(tensor, AssignName(), made.get()) == 0;
}

Anchors PureKey::anchors() const {
  Anchors anchors;
  for (PyObject* object : objects_) anchors.Add(object);
  for (const Operand& operand : operands_) {
    const auto dtype = HandleOf(operand.tensor())->DataType();
    if (dtype == tensorflow::DT_RESOURCE) anchors.Add(operand.tensor());
  }
  return anchors;
}

uint64_t PureKey::HashOfKerasContext() {
  static PyObject* tracker_name =
      PyUnicode_InternFromString("GLOBAL_STATE_TRACKER");
  static PyObject* dict_name = PyUnicode_InternFromString("__dict__");
  static PyObject* name = PyUnicode_InternFromString("current_call_ctx");
  Hash hash(0);
  if (Runtime().keras_state == nullptr) return 0;
  // `clear_session` puts another tracker there, and each thread has its own
  // attributes of it. Guards look at what is in them.
  PyRef tracker =
      PyRef::Steal(PyObject_GetAttr(Runtime().keras_state, tracker_name));
  PyRef of_thread;
  if (tracker) {
    of_thread = PyRef::Steal(PyObject_GetAttr(tracker.get(), dict_name));
  }
  if (!of_thread || !PyDict_Check(of_thread.get())) {
    ClearOwnError();
    return 0;
  }
  hash.Mix(reinterpret_cast<uintptr_t>(of_thread.get()));
  PyObject* context = PyDict_GetItemWithError(of_thread.get(), name);
  if (context == nullptr || context == Py_None) {
    ClearOwnError();
    return hash.value();
  }
  PyRef attributes = PyRef::Steal(PyObject_GetAttr(context, dict_name));
  PyObject *key, *value;
  Py_ssize_t place = 0;
  while (attributes && PyDict_Next(attributes.get(), &place, &key, &value)) {
    hash.Mix(reinterpret_cast<uintptr_t>(key));
    hash.Mix(reinterpret_cast<uintptr_t>(value));
  }
  ClearOwnError();
  return hash.value();
}

const char* PureKey::Add(const PureCall& call) {
  hash_.Mix(tensorflow::OpDeterminismRequired());  // losses do without some ops
  if (takes_objects_) hash_.Mix(HashOfKerasContext());
  const char* problem = MixItems(call.args, 0);
  if (problem != nullptr || call.kwargs == nullptr) return problem;
  PyObject *name, *value;
  Py_ssize_t place = 0;
  while (PyDict_Next(call.kwargs, &place, &name, &value)) {
    problem = Mix(name, 0);
    if (problem == nullptr) problem = Mix(value, 0);
    if (problem != nullptr) return problem;
  }
  return nullptr;
}

const char* PureKey::Mix(PyObject* value, int depth) {
  if (EagerTensor_CheckExact(value)) return MixTensor(value);
  if (IsEternal(value)) {
    hash_.Mix(Event::kObject, reinterpret_cast<uintptr_t>(value));
    return nullptr;
  }
  if (PyLong_CheckExact(value) || PyFloat_CheckExact(value)) {
    return MixNumber(value);
  }
  if (PyUnicode_CheckExact(value) || PyBytes_CheckExact(value)) {
    hash_.Mix(reinterpret_cast<uintptr_t>(Py_TYPE(value)));
    const Py_hash_t hash = PyObject_Hash(value);
    hash_.Mix(Event::kText, static_cast<uint64_t>(hash));
    return nullptr;
  }
  if (reinterpret_cast<PyObject*>(Py_TYPE(value)) == Runtime().variable_type) {
    return MixVariable(value);
  }
  const bool is_list = PyList_CheckExact(value);
  if (is_list || PyTuple_CheckExact(value)) {
    hash_.Mix(is_list ? Event::kList : Event::kTuple);
    PyRef items = PyRef::Steal(PySequence_Tuple(value));
    return MixItems(items.get(), depth);
  }
  if (PySlice_Check(value)) {
    const auto* slice = reinterpret_cast<PySliceObject*>(value);
    hash_.Mix(Event::kSlices);
    for (PyObject* end : {slice->start, slice->stop, slice->step}) {
      const char* problem = Mix(end, depth + 1);
      if (problem != nullptr) return problem;
    }
    return nullptr;
  }
  if (PyObject_TypeCheck(value, reinterpret_cast<PyTypeObject*>(
                                    Runtime().numpy_scalar_type))) {
    return MixNumPy(value);
  }
  if (!takes_objects_) return "an argument of another kind";
  hash_.Mix(Event::kObject, reinterpret_cast<uintptr_t>(value));
  objects_.push_back(value);
  return nullptr;
}

const char* PureKey::MixItems(PyObject* items, int depth) {
  if (depth >= kMaxDepth) return "lists nested deeply";
  const Py_ssize_t n = PyTuple_GET_SIZE(items);
  hash_.Mix(static_cast<uint64_t>(n));
  for (Py_ssize_t i = 0; i < n; ++i) {
    const char* problem = Mix(PyTuple_GET_ITEM(items, i), depth + 1);
    if (problem != nullptr) return problem;
  }
  return nullptr;
}

void PureKey::MixReal(double number) {
  uint64_t bits;
  std::memcpy(&bits, &number, sizeof(bits));
  hash_.Mix(Event::kReal, bits);
}

// A scalar of NumPy's: its type, and its value if 64 bits can tell it.
const char* PureKey::MixNumPy(PyObject* value) {
  hash_.Mix(Event::kType, reinterpret_cast<uintptr_t>(Py_TYPE(value)));
  PyRef integer = PyRef::Steal(PyNumber_Index(value));
  if (integer) return MixNumber(integer.get());
  ClearOwnError();
  static PyObject* size_name = PyUnicode_InternFromString("itemsize");
  PyRef size = PyRef::Steal(PyObject_GetAttr(value, size_name));
  const bool is_complex =
      PyComplex_Check(value) || std::strstr(Py_TYPE(value)->tp_name, "complex");
  const bool fits = size && PyLong_AsLong(size.get()) <= 8 && !is_complex;
  const double number = fits ? PyFloat_AsDouble(value) : -1.0;
  if (!fits || PyErr_Occurred()) {
    ClearOwnError();
    return "an argument of another kind";
  }
  MixReal(number);
  return nullptr;
}

const char* PureKey::MixNumber(PyObject* value) {
  if (PyFloat_CheckExact(value)) {
    MixReal(PyFloat_AS_DOUBLE(value));
    return nullptr;
  }
  int overflow = 0;
  const long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
  if (overflow != 0) return "a number of more than 64 bits";
  hash_.Mix(Event::kNumber, static_cast<uint64_t>(number));
  return nullptr;
}

bool PureKey::MixKnown(PyObject* object) {
  for (size_t i = 0; i < operands_.size(); ++i) {
    if (operands_[i].object != object) continue;
    hash_.Mix(Event::kMadeHere, i);
    return true;
  }
  return false;
}

// Two Python objects may be one tensor, so which operand an op takes would not
// be told by the object.
void PureKey::MixTwin(const tensorflow::TensorHandle* handle) {
  for (size_t i = 0; i < operands_.size(); ++i) {
    const Operand& operand = operands_[i];
    if (operand.handle || HandleOf(operand.object) != handle) continue;
    hash_.Mix(Event::kOutside, i);
    return;
  }
}

const char* PureKey::MixTensor(PyObject* tensor) {
  if (MixKnown(tensor)) return nullptr;
  const Attributes attributes = AttributesOf(tensor);
  if (attributes == Attributes::kOther) return "a tensor with attributes";
  tensorflow::TensorHandle* handle = HandleOf(tensor);
  MixTwin(handle);
  hash_.Mix(Event::kType, static_cast<uint64_t>(handle->DataType()));
  hash_.Mix(static_cast<uint64_t>(attributes));
  operands_.push_back({tensor, PyRef()});
  if (attributes == Attributes::kLogits) {
    const char* problem = MixTensor(LogitsOf(tensor).get());
    if (problem != nullptr) return problem;
  }
  // Of a constant of the plan the value is known: Python may read it.
  const auto& constants = plan_.constant_of;
  const auto constant = constants.find(handle);
  if (constant != constants.end()) {
    hash_.Mix(Event::kFixed, static_cast<uint64_t>(constant->second));
  }
  if (handle->DataType() == tensorflow::DT_RESOURCE) {
    hash_.Mix(static_cast<uint64_t>(IdOf(tensor)));
    return nullptr;
  }
  const int32_t index = outputs_.Find(handle);
  if (index >= 0) {
    if (!outputs_.ShapeIsKnown(index)) return "a tensor of unknown shape";
    if (is_at_fork_) {
      const Made& made = outputs_[index];
      hash_.Mix(Event::kMadeHere, static_cast<uint64_t>(made.node));
      hash_.Mix(static_cast<uint64_t>(made.output));
    }
    if (const uint64_t* hash = outputs_.PlannedShape(index)) {
      hash_.Mix(*hash);
      return nullptr;
    }
  } else if (!EnsureReadable(tensor, Reading::kShape)) {
    ClearOwnError();
    return "a tensor that could not be read";
  }
  tensorflow::PartialTensorShape shape;
  if (!handle->Shape(&shape).ok()) return "a tensor of unknown shape";
  hash_.Mix(HashOfShape(shape));
  return nullptr;
}

const char* PureKey::MixVariable(PyObject* variable) {
  if (MixKnown(variable)) return nullptr;
  static PyObject* handle_name = PyUnicode_InternFromString("_handle");
  static PyObject* trainable_name = PyUnicode_InternFromString("_trainable");
  PyRef handle = PyRef::Steal(PyObject_GetAttr(variable, handle_name));
  PyRef trainable = PyRef::Steal(PyObject_GetAttr(variable, trainable_name));
  if (!handle || !trainable || !EagerTensor_CheckExact(handle.get())) {
    ClearOwnError();
    return "a variable of another kind";
  }
  hash_.Mix(Event::kFixed, static_cast<uint64_t>(IdOf(handle.get())));
  hash_.Mix(reinterpret_cast<uintptr_t>(trainable.get()));
  operands_.push_back({variable, std::move(handle)});
  return nullptr;
}

}  // namespace terra
