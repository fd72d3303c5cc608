#include "kernels/outputs/history.h"

#include "kernels/python/tf_python.h"

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
  if (first != name) hash->Mix(static_cast<uint64_t>(first));
}

int History::FindName(PyObject* tensor) const {
  const auto it = names_.find(IdOf(tensor));
  return it == names_.end() ? -1 : it->second;
}

}  // namespace terra
