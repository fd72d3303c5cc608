// Keys of pure calls: everything that the Python of a library function sees.
#include <cstring>

#include "kernels/outputs/outputs.h"
#include "kernels/outputs/readable.h"
#include "kernels/plan/call_record.h"
#include "kernels/plan/hash.h"
#include "kernels/plan/library_objects.h"
#include "kernels/plan/pure_record.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/python_scopes.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"
#include "kernels/replay/keras_context.h"
#include "kernels/replay/pure_call.h"
#include "tensorflow/core/util/determinism.h"

namespace terra {
namespace {

constexpr int kMaxDepth = 8;  // of lists in lists

// `keras.Variable` itself: what the user derives may convert in its own way.
bool IsKerasVariable(const PyObject* value) {
  return reinterpret_cast<const PyObject*>(Py_TYPE(value)) ==
         Runtime().keras_variable_type;
}

}  // namespace

Anchors PureKey::anchors() const {
  Anchors anchors;
  for (PyObject* object : objects_) anchors.Add(object);
  for (const Operand& operand : operands_) {
    const auto dtype = HandleOf(operand.tensor())->DataType();
    if (dtype == tensorflow::DT_RESOURCE) anchors.Add(operand.tensor());
  }
  return anchors;
}

const char* PureKey::Add(const PureCall& call) {
  hash_.Mix(tensorflow::OpDeterminismRequired());  // losses do without some ops
  if (takes_objects_) hash_.Mix(KerasContext().hash());
  const char* problem = MixItems(call.args, 0);
  if (problem != nullptr || call.kwargs == nullptr) return problem;
  return MixDict(call.kwargs, -1);
}

const char* PureKey::Mix(PyObject* value, int depth) {
  if (EagerTensor_CheckExact(value)) {
    // A list may lose it while the call runs; the arguments themselves do not.
    return MixTensor(value, depth > 0 ? PyRef::Borrow(value) : PyRef(), 0);
  }
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
    if (is_list) containers_.push_back(value);
    PyRef items = PyRef::Steal(PySequence_Tuple(value));
    return MixItems(items.get(), depth);
  }
  if (reinterpret_cast<PyObject*>(Py_TYPE(value)) == Runtime().shape_type) {
    return MixShape(value);
  }
  if (PyDict_CheckExact(value)) {
    hash_.Mix(Event::kDict, static_cast<uint64_t>(PyDict_Size(value)));
    containers_.push_back(value);
    PyRef copy = PyRef::Steal(PyDict_Copy(value));
    return MixDict(copy.get(), depth);
  }
  if (IsSlices(value)) {
    PyRef items = ItemsOfSlices(value);
    if (!items) return "slices of another kind";
    hash_.Mix(Event::kSlices, 1);
    containers_.push_back(value);
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
  if (!takes_objects_) {
    return IsKerasVariable(value) ? MixKerasVariable(value)
                                  : "an argument of another kind";
  }
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

const char* PureKey::MixDict(PyObject* value, int depth) {
  if (depth >= kMaxDepth) return "dictionaries nested deeply";
  PyObject *key, *item;
  Py_ssize_t place = 0;
  while (PyDict_Next(value, &place, &key, &item)) {
    const char* problem = Mix(key, depth + 1);
    if (problem == nullptr) problem = Mix(item, depth + 1);
    if (problem != nullptr) return problem;
  }
  return nullptr;
}

// TensorFlow's shape: a tuple of numbers and None, or None.
const char* PureKey::MixShape(PyObject* shape) {
  static PyObject* name = PyUnicode_InternFromString("_dims");
  hash_.Mix(Event::kShape);
  PyRef dims = PyRef::Steal(PyObject_GetAttr(shape, name));
  if (dims) return Mix(dims.get(), 0);
  ClearOwnError();
  return "a shape that could not be read";
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

const char* PureKey::MixTensor(PyObject* tensor, PyRef held, int depth) {
  if (MixKnown(tensor)) return nullptr;
  tensorflow::TensorHandle* handle = HandleOf(tensor);
  MixTwin(handle);
  hash_.Mix(Event::kType, static_cast<uint64_t>(handle->DataType()));
  operands_.push_back({tensor, PyRef(), std::move(held)});
  if (TensorHasAttributes(tensor)) {
    const char* problem = MixAttributes(tensor, depth);
    if (problem != nullptr) return problem;
  }
  return MixPlace(tensor, handle);
}

// Attributes may be taken away while the call runs: so what is one is held,
// as is what is in a list.
const char* PureKey::MixAttributes(PyObject* tensor, int depth) {
  const TensorAttributes attributes = AttributesOf(tensor);
  if (attributes.has_others || depth + 1 >= kMaxDepth) {
    return "a tensor with attributes";
  }
  const uint64_t kind = attributes.kind();
  if (kind != 0) hash_.Mix(Event::kAttributes, kind);
  for (const PyRef& value : attributes.carried) {
    if (!value || value.get() == Py_None) continue;
    const char* problem = MixTensor(value.get(), value, depth + 1);
    if (problem != nullptr) return problem;
  }
  has_mask_ |= attributes.has_mask();
  return nullptr;
}

// Where a tensor comes from, as far as calls depend on it, and its shape.
const char* PureKey::MixPlace(PyObject* tensor,
                              tensorflow::TensorHandle* handle) {
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
    MixValueOfShapes(index);
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

// The value of what follows from shapes: shapes of results may follow from it
// in turn, and with them what Python makes of numbers.
void PureKey::MixValueOfShapes(int index) {
  const Made& made = outputs_[index];
  if (!plan_.nodes[made.node].of_shapes) return;
  const tensorflow::Tensor* value = nullptr;
  if (!made.handle->Tensor(&value).ok()) return;
  const auto bytes = value->tensor_data();
  hash_.MixBytes({bytes.data(), bytes.size()});
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
  operands_.push_back({variable, std::move(handle), PyRef::Borrow(variable)});
  return nullptr;
}

// What it converts itself to depends on it and on Keras' scopes: a guard sees
// both.
const char* PureKey::MixKerasVariable(PyObject* variable) {
  static PyObject* value_name = PyUnicode_InternFromString("_value");
  PyRef value = PyRef::Steal(PyObject_GetAttr(variable, value_name));
  if (!value || reinterpret_cast<PyObject*>(Py_TYPE(value.get())) !=
                    Runtime().variable_type) {
    ClearOwnError();
    return "a variable of another kind";
  }
  if (objects_.empty()) hash_.Mix(KerasContext().hash());
  hash_.Mix(Event::kObject, reinterpret_cast<uintptr_t>(variable));
  objects_.push_back(variable);
  return MixVariable(value.get());
}

}  // namespace terra
