#include "kernels/replay/library_key.h"

#include <cstring>
#include <functional>
#include <string>

#include "kernels/plan/library_objects.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"
#include "kernels/replay/keras_context.h"
#include "tensorflow/core/util/determinism.h"

namespace terra {
namespace {

constexpr int kMaxDepth = 8;  // of lists in lists

}  // namespace

const char* LibraryKey::Add(const LibraryCall& call, int tape,
                            bool check_devices, int position) {
  hash_ = Hash(history_->hash().value());
  hash_.Mix(tensorflow::OpDeterminismRequired());
  hash_.Mix(reinterpret_cast<uintptr_t>(call.function));
  if (tape >= 0) hash_.Mix(Event::kTape, static_cast<uint64_t>(tape));
  takes_objects_ = call.takes_objects;
  if (takes_objects_) hash_.Mix(KerasContext().hash());
  for (PyObject* value : call.given) {
    const char* problem = Mix(value, 0);
    if (problem != nullptr) return problem;
  }
  if (check_devices) hash_.Mix(std::hash<std::string>()(DeviceScope()));
  hash_.Mix(static_cast<uint64_t>(position));
  return nullptr;
}

const char* LibraryKey::Mix(PyObject* value, int depth) {
  if (value == Py_None && takes_objects_ && depth > 0) {
    return "a gradient is None, of which Keras warns";
  }
  if (value == Py_None || PyBool_Check(value)) {
    hash_.Mix(Event::kObject, reinterpret_cast<uintptr_t>(value));
    return nullptr;
  }
  if (EagerTensor_CheckExact(value)) return history_->MixTensor(value, &hash_);
  if (PyLong_CheckExact(value)) {
    int overflow = 0;
    const long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (overflow != 0) return "a number of more than 64 bits";
    hash_.Mix(Event::kNumber, static_cast<uint64_t>(number));
    return nullptr;
  }
  if (PyUnicode_CheckExact(value)) {
    const char* text = PyUnicode_AsUTF8(value);
    if (text == nullptr) {
      ClearOwnError();
      return "text that is no UTF-8";
    }
    hash_.Mix(Event::kText, std::hash<std::string>()(text));
    return nullptr;
  }
  if (PyFloat_CheckExact(value)) {
    const double number = PyFloat_AS_DOUBLE(value);
    uint64_t bits;
    std::memcpy(&bits, &number, sizeof(bits));
    hash_.Mix(Event::kReal, bits);
    return nullptr;
  }
  const bool is_list = PyList_CheckExact(value);
  if (is_list || PyTuple_CheckExact(value)) {
    hash_.Mix(is_list ? Event::kList : Event::kTuple);
    // Looking at a tensor may run Python that changes the list: copy it.
    PyRef items = PyRef::Steal(PySequence_Tuple(value));
    return MixItems(items.get(), depth);
  }
  if (IsSlices(value)) {
    PyRef items = ItemsOfSlices(value);
    if (!items) return "slices of another kind";
    hash_.Mix(Event::kSlices);
    return MixItems(items.get(), depth);
  }
  if (!takes_objects_) return "an argument of another kind";
  hash_.Mix(Event::kObject, reinterpret_cast<uintptr_t>(value));
  objects_.push_back(value);
  return nullptr;
}

const char* LibraryKey::MixItems(PyObject* items, int depth) {
  if (depth >= kMaxDepth) return "lists nested deeply";
  const Py_ssize_t n = PyTuple_GET_SIZE(items);
  hash_.Mix(static_cast<uint64_t>(n));
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* item = PyTuple_GET_ITEM(items, i);
    const char* problem = Mix(item, depth + 1);
    if (problem != nullptr) return problem;
  }
  return nullptr;
}

}  // namespace terra
