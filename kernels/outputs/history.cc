#include "kernels/outputs/history.h"

#include "kernels/outputs/readable.h"
#include "kernels/python/python_scopes.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"

namespace terra {

int History::NameOf(PyObject* tensor) {
  const auto [it, is_new] = names_.emplace(IdOf(tensor), num_names());
  if (is_new) named_.push_back(PyRef::Borrow(tensor));
  return it->second;
}

void History::MixName(PyObject* tensor, Hash* hash) {
  const int name = NameOf(tensor);
  const int first = first_names_.emplace(HandleOf(tensor), name).first->second;
  hash->Mix(Event::kOutside, static_cast<uint64_t>(name));
  if (IsMarkedAsZeros(tensor)) hash->Mix(Event::kZeros);
  if (first != name) hash->Mix(static_cast<uint64_t>(first));
}

int History::FindName(PyObject* tensor) const {
  const auto it = names_.find(IdOf(tensor));
  return it == names_.end() ? -1 : it->second;
}

bool History::MixIdentity(PyObject* tensor, Hash* hash) {
  tensorflow::TensorHandle* handle = HandleOf(tensor);
  const int32_t index = outputs_.Find(handle);
  if (index >= 0) {
    hash->Mix(Event::kMadeHere, static_cast<uint64_t>(outputs_[index].node));
    hash->Mix(static_cast<uint64_t>(outputs_[index].output));
    return false;
  }
  const auto fixed = plan_->fixed.find(handle);
  if (fixed != plan_->fixed.end()) {
    hash->Mix(Event::kFixed, static_cast<uint64_t>(fixed->second));
  }
  MixName(tensor, hash);
  return true;
}

const char* History::MixTensor(PyObject* tensor, Hash* hash) {
  if (!MixIdentity(tensor, hash)) return nullptr;
  tensorflow::TensorHandle* handle = HandleOf(tensor);
  hash->Mix(Event::kType, static_cast<uint64_t>(handle->DataType()));
  if (handle->DataType() == tensorflow::DT_RESOURCE) return nullptr;
  if (!EnsureReadable(tensor, Reading::kShape)) {
    ClearOwnError();
    return "a tensor that could not be read";
  }
  tensorflow::PartialTensorShape shape;
  if (!handle->Shape(&shape).ok()) return "a tensor of unknown shape";
  hash->MixShape(shape);
  return nullptr;
}

void History::MixShapeOf(PyObject* tensor) {
  tensorflow::PartialTensorShape shape;
  if (HandleOf(tensor)->DataType() != tensorflow::DT_RESOURCE &&
      HandleOf(tensor)->Shape(&shape).ok()) {
    hash_.MixShape(shape);
  }
}

void History::MixShapeValue(PyObject* tensor, const tensorflow::Tensor& value) {
  if (!shape_values_.insert(IdOf(tensor)).second) return;
  MixIdentity(tensor);
  const auto bytes = value.tensor_data();
  hash_.MixBytes({bytes.data(), bytes.size()});
}

int History::NoteOutside(PyObject* tensor) {
  const int name = FindName(tensor);
  if (name < 0) return name;
  hash_.Mix(Event::kOutside, static_cast<uint64_t>(name));
  if (IsMarkedAsZeros(tensor)) hash_.Mix(Event::kZeros);
  return name;
}

}  // namespace terra
