#include "kernels/replay/parts.h"

#include <map>
#include <utility>

#include "kernels/plan/describe.h"
#include "kernels/plan/library_objects.h"
#include "kernels/python/python_scopes.h"
#include "kernels/python/tf_python.h"
#include "kernels/replay/tensor_attributes.h"

namespace terra {

void ReplayParts::SayReplayed(const char* name, int position) const {
  if (!context_.lamp().IsOn(Light::kReplay)) return;
  const std::vector<int>& path = cursor_.path();
  Say(name, " is replayed: ",
      DescribeOps(std::vector<int>(path.begin() + position, path.end())));
}

void ReplayParts::SayLearned(const char* name,
                             const std::string& refusal) const {
  if (refusal.empty()) {
    Say(name, " is learned");
  } else {
    Say(name, " cannot be replayed: ", refusal);
  }
}

Tensors ReplayParts::FindTensors(absl::Span<const TensorSource> sources) const {
  Tensors found(sources.size());
  std::map<std::pair<int, int>, size_t> wanted;
  for (size_t i = 0; i < sources.size(); ++i) {
    const TensorSource& source = sources[i];
    if (source.node >= 0) {
      wanted[{source.node, source.output}] = i;
      continue;
    }
    PyObject* tensor =
        source.object ? source.object.get() : history_.Named(source.name);
    if (tensor == nullptr) return {};
    found[i] = PyRef::Borrow(tensor);
  }
  if (wanted.empty()) return found;
  tapes_.log().ForEachTensor([&](PyObject* tensor) {
    const int32_t index = outputs_.Find(HandleOf(tensor));
    if (index < 0) return true;
    const auto it = wanted.find({outputs_[index].node, outputs_[index].output});
    if (it == wanted.end()) return true;
    found[it->second] = PyRef::Borrow(tensor);
    wanted.erase(it);
    return !wanted.empty();
  });
  return wanted.empty() ? found : Tensors();
}

PyRef ReplayParts::GuardObjects(absl::Span<PyObject* const> objects) const {
  if (objects.empty()) return PyRef();
  PyRef list = PyRef::Steal(PyList_New(objects.size()));
  for (size_t i = 0; i < objects.size(); ++i) {
    PyList_SET_ITEM(list.get(), i, PyRef::Borrow(objects[i]).release());
  }
  return PyRef::Steal(
      PyObject_CallMethod(context_.controller(), "guard", "O", list.get()));
}

void ReplayParts::KeepGuard(PyRef guard, GuardRef* kept, std::string* refusal) {
  if (!guard) return;
  if (PyUnicode_Check(guard.get())) {
    *refusal = PyUnicode_AsUTF8(guard.get());
    return;
  }
  *kept = GuardRef::Of(std::move(guard));
  if (*kept && kept->IsUnchanged()) return;
  *refusal = "it changes an object";
  *kept = GuardRef();
}

bool ReplayParts::SetAttributes(const ResultPattern& pattern, PyObject* tensor,
                                const Tensors& made,
                                const Operands& operands) const {
  for (const ResultPattern& attribute : pattern.attributes) {
    PyRef value = MakeResult(attribute, made, operands);
    if (!value || !SetCarried(tensor, attribute.attribute, value.get())) {
      return false;
    }
  }
  return true;
}

PyRef ReplayParts::MakeTensor(const ResultPattern& pattern, const Tensors& made,
                              const Operands& operands) const {
  PyRef tensor = pattern.kind == ResultPattern::Kind::kMade
                     ? made[pattern.number]
                     : SameValueNewObject(pattern.object.get());
  if (tensor && pattern.is_zeros && !MarkAsZeros(tensor.get())) return PyRef();
  if (tensor && pattern.assign &&
      !MarkAsSlice(tensor.get(), pattern.assign.get(), operands[0].object)) {
    return PyRef();
  }
  const bool is_made =
      tensor && SetAttributes(pattern, tensor.get(), made, operands);
  return is_made ? tensor : PyRef();
}

// A list, a tuple, a dictionary or IndexedSlices.
PyRef ReplayParts::MakeContainer(const ResultPattern& pattern,
                                 const Tensors& made,
                                 const Operands& operands) const {
  using Kind = ResultPattern::Kind;
  const bool is_list = pattern.kind == Kind::kList;
  const bool is_dict = pattern.kind == Kind::kDict;
  const size_t n = pattern.items.size();
  PyRef items = PyRef::Steal(is_dict   ? PyDict_New()
                             : is_list ? PyList_New(n)
                                       : PyTuple_New(n));
  for (size_t i = 0; items && i < n; ++i) {
    PyRef item = MakeResult(pattern.items[i], made, operands);
    if (!item) return PyRef();
    if (is_list) {
      PyList_SET_ITEM(items.get(), i, item.release());
    } else if (!is_dict) {
      PyTuple_SET_ITEM(items.get(), i, item.release());
    } else if (PyDict_SetItem(items.get(),
                              PyTuple_GET_ITEM(pattern.object.get(), i),
                              item.get()) < 0) {
      return PyRef();
    }
  }
  if (pattern.kind == Kind::kNamedTuple) {
    PyRef args = PyRef::Steal(PyTuple_Pack(1, items.get()));
    auto* type = reinterpret_cast<PyTypeObject*>(pattern.object.get());
    return PyRef::Steal(PyTuple_Type.tp_new(type, args.get(), nullptr));
  }
  if (pattern.kind != Kind::kSlices) return items;
  return PyRef::Steal(
      PyObject_CallObject(Runtime().indexed_slices_type, items.get()));
}

PyRef ReplayParts::MakeResult(const ResultPattern& pattern, const Tensors& made,
                              const Operands& operands) const {
  using Kind = ResultPattern::Kind;
  switch (pattern.kind) {
    case Kind::kObject:
      return pattern.object;
    case Kind::kMade:
    case Kind::kFolded:
      return MakeTensor(pattern, made, operands);
    case Kind::kUnread:
      return MakeUnreadVariable(pattern.object.get(),
                                operands.empty()
                                    ? inputs_.Variable(pattern.number).get()
                                    : operands[pattern.number].tensor());
    case Kind::kOperand:
      return PyRef::Borrow(operands[pattern.number].object);
    case Kind::kOutside:
      return PyRef::Borrow(history_.Named(pattern.number));
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kNamedTuple:
    case Kind::kDict:
    case Kind::kSlices:
      break;
  }
  return MakeContainer(pattern, made, operands);
}

}  // namespace terra
