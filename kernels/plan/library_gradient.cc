#include "kernels/plan/library_gradient.h"

#include <cstring>
#include <string_view>
#include <unordered_map>

#include "kernels/plan/library_objects.h"
#include "kernels/python/python_scopes.h"
#include "kernels/python/tf_python.h"

namespace terra {
namespace {

constexpr int kMaxDepth = 12;
constexpr size_t kMaxKept = 4096;

// Whether code that has these globals is TensorFlow's own. (`__module__` of a
// function does not say it: `functools.wraps` copies that. Keras' depends on
// settings of Keras', which the key of a gradient does not know.)
bool AreTensorFlows(PyObject* globals) {
  static PyObject* key = PyUnicode_InternFromString("__name__");
  PyObject* name = PyDict_GetItemWithError(globals, key);
  const bool is_text = name != nullptr && PyUnicode_CheckExact(name);
  const char* text = is_text ? PyUnicode_AsUTF8(name) : nullptr;
  PyErr_Clear();
  if (text == nullptr) return false;
  return std::string_view(text, std::strcspn(text, ".")) == "tensorflow";
}

// Keeps what hashes know by its address alive for ever: code and globals of
// modules. False if there is more of it than modules have.
bool Keep(PyObject* object) {
  static auto* kept = new std::unordered_map<PyObject*, PyRef>;
  if (kept->count(object) > 0) return true;
  if (kept->size() >= kMaxKept) return false;
  kept->emplace(object, PyRef::Borrow(object));
  return true;
}

bool HasAttributes(PyObject* function) {
  PyObject** attributes = _PyObject_GetDictPtr(function);
  return attributes != nullptr && *attributes != nullptr &&
         PyDict_Size(*attributes) != 0;
}

std::vector<PyObject*> ItemsOf(PyObject* list_or_tuple) {
  PyObject** items = PySequence_Fast_ITEMS(list_or_tuple);
  return {items, items + PySequence_Fast_GET_SIZE(list_or_tuple)};
}

PyRef ListOf(const PyRef* first, size_t count) {
  PyRef list = PyRef::Steal(PyList_New(static_cast<Py_ssize_t>(count)));
  for (size_t i = 0; list && i < count; ++i) {
    PyList_SET_ITEM(list.get(), i, PyRef(first[i]).release());
  }
  return list;
}

}  // namespace

// ----------------------------------------------------------------- taking
// apart

std::shared_ptr<const LibraryGradient> LibraryGradient::Of(
    PyObject* record, PyObject* args, std::vector<PyRef>* tensors) {
  GcPause no_python_in_between;
  const Py_ssize_t n = PyTuple_GET_SIZE(args);
  if (n != 4 && n != 5) return nullptr;
  if (n == 5 && PyTuple_GET_ITEM(args, 4) != Py_None) return nullptr;
  PyObject* name = PyTuple_GET_ITEM(args, 0);
  PyObject* function = PyTuple_GET_ITEM(args, 3);
  if (!PyUnicode_CheckExact(name) || !PyFunction_Check(function)) {
    return nullptr;
  }
  std::shared_ptr<LibraryGradient> gradient(new LibraryGradient);
  gradient->record_ = record;
  gradient->has_forward_ = n == 5;
  gradient->name_ = PyRef::Borrow(name);
  gradient->hash_.Mix(reinterpret_cast<uintptr_t>(record));
  gradient->hash_.Mix(Event::kText, static_cast<uint64_t>(PyObject_Hash(name)));
  if (!gradient->AddTensors(PyTuple_GET_ITEM(args, 2), tensors)) return nullptr;
  gradient->num_inputs_ = tensors->size();
  if (!gradient->AddTensors(PyTuple_GET_ITEM(args, 1), tensors)) return nullptr;
  gradient->num_outputs_ = tensors->size() - gradient->num_inputs_;
  if (!gradient->Add(function, 0, &gradient->function_, tensors)) {
    return nullptr;
  }
  gradient->num_tensors_ = tensors->size();
  return gradient;
}

bool LibraryGradient::AddTensors(PyObject* list, std::vector<PyRef>* tensors) {
  if (!PyList_CheckExact(list) && !PyTuple_CheckExact(list)) return false;
  const std::vector<PyObject*> items = ItemsOf(list);
  hash_.Mix(Event::kList, items.size());
  for (PyObject* item : items) {
    if (!EagerTensor_CheckExact(item)) return false;
    tensors->push_back(PyRef::Borrow(item));
  }
  return true;
}

bool LibraryGradient::Add(PyObject* value, int depth, Part* part,
                          std::vector<PyRef>* tensors) {
  using Kind = Part::Kind;
  if (value == nullptr || depth > kMaxDepth) return false;
  part->kind = EagerTensor_CheckExact(value) ? Kind::kTensor
               : PyFunction_Check(value)     ? Kind::kFunction
               : PyTuple_CheckExact(value)   ? Kind::kTuple
               : PyList_CheckExact(value)    ? Kind::kList
               : PyDict_CheckExact(value)    ? Kind::kDict
                                             : Kind::kConstant;
  hash_.Mix(static_cast<uint64_t>(part->kind));
  switch (part->kind) {
    case Kind::kTensor:
      tensors->push_back(PyRef::Borrow(value));
      return true;
    case Kind::kFunction:
      return AddFunction(value, depth, part, tensors);
    case Kind::kTuple:
      return AddItems(ItemsOf(value), depth, part, tensors);
    case Kind::kList:
      // Whoever else holds it may change it before the gradient runs.
      return Py_REFCNT(value) == 1 &&
             AddItems(ItemsOf(value), depth, part, tensors);
    case Kind::kDict:
      return Py_REFCNT(value) == 1 && AddDict(value, depth, part, tensors);
    case Kind::kConstant:
      return AddConstant(value, part);
  }
  return false;
}

bool LibraryGradient::AddConstant(PyObject* value, Part* part) {
  part->object = PyRef::Borrow(value);
  hash_.Mix(reinterpret_cast<uintptr_t>(Py_TYPE(value)));
  if (IsEternal(value)) {
    hash_.Mix(Event::kObject, reinterpret_cast<uintptr_t>(value));
    return true;
  }
  if (PyLong_CheckExact(value)) {
    int overflow = 0;
    const long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    hash_.Mix(Event::kNumber, static_cast<uint64_t>(number));
    return overflow == 0;
  }
  if (PyFloat_CheckExact(value)) {
    const double number = PyFloat_AS_DOUBLE(value);
    uint64_t bits;
    std::memcpy(&bits, &number, sizeof(bits));
    hash_.Mix(Event::kReal, bits);
    return true;
  }
  if (PyUnicode_CheckExact(value) || PyBytes_CheckExact(value)) {
    hash_.Mix(Event::kText, static_cast<uint64_t>(PyObject_Hash(value)));
    return true;
  }
  return false;
}

bool LibraryGradient::AddFunction(PyObject* function, int depth, Part* part,
                                  std::vector<PyRef>* tensors) {
  PyObject* code = PyFunction_GET_CODE(function);
  PyObject* globals = PyFunction_GET_GLOBALS(function);
  // Attributes would be missing from one that is made like it.
  if (!AreTensorFlows(globals) || HasAttributes(function) || !Keep(code) ||
      !Keep(globals)) {
    return false;
  }
  hash_.Mix(reinterpret_cast<uintptr_t>(code));
  hash_.Mix(reinterpret_cast<uintptr_t>(globals));
  part->object = PyRef::Borrow(code);
  part->globals = PyRef::Borrow(globals);
  part->qualified = PyRef::Borrow(
      reinterpret_cast<PyFunctionObject*>(function)->func_qualname);
  PyObject* closure = PyFunction_GET_CLOSURE(function);
  std::vector<PyObject*> cells;
  if (closure != nullptr) {
    for (PyObject* cell : ItemsOf(closure)) cells.push_back(PyCell_GET(cell));
  }
  auto or_none = [](PyObject* value) {
    return value == nullptr ? Py_None : value;
  };
  part->parts.resize(3);
  part->parts[2].kind = Part::Kind::kTuple;
  return Add(or_none(PyFunction_GET_DEFAULTS(function)), depth + 1,
             &part->parts[0], tensors) &&
         Add(or_none(PyFunction_GET_KW_DEFAULTS(function)), depth + 1,
             &part->parts[1], tensors) &&
         AddItems(cells, depth + 1, &part->parts[2], tensors);
}

bool LibraryGradient::AddItems(const std::vector<PyObject*>& items, int depth,
                               Part* part, std::vector<PyRef>* tensors) {
  hash_.Mix(static_cast<uint64_t>(items.size()));
  part->parts.resize(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    if (!Add(items[i], depth + 1, &part->parts[i], tensors)) return false;
  }
  return true;
}

bool LibraryGradient::AddDict(PyObject* dict, int depth, Part* part,
                              std::vector<PyRef>* tensors) {
  std::vector<PyObject*> values;
  PyRef keys = PyRef::Steal(PyTuple_New(PyDict_Size(dict)));
  PyObject *key, *value;
  Py_ssize_t place = 0;
  while (PyDict_Next(dict, &place, &key, &value)) {
    if (!PyUnicode_CheckExact(key)) return false;
    hash_.Mix(Event::kText, static_cast<uint64_t>(PyObject_Hash(key)));
    PyTuple_SET_ITEM(keys.get(), values.size(), PyRef::Borrow(key).release());
    values.push_back(value);
  }
  part->object = std::move(keys);
  return AddItems(values, depth, part, tensors);
}

// -------------------------------------------------------------- making another

bool LibraryGradient::Record(const PyRef* tensors) const {
  PyRef inputs = ListOf(tensors, num_inputs_);
  PyRef outputs = ListOf(tensors + num_inputs_, num_outputs_);
  const PyRef* held = tensors + num_inputs_ + num_outputs_;
  PyRef function = Make(function_, &held);
  if (!inputs || !outputs || !function) return false;
  return static_cast<bool>(PyRef::Steal(PyObject_CallFunctionObjArgs(
      record_, name_.get(), outputs.get(), inputs.get(), function.get(),
      has_forward_ ? Py_None : nullptr, nullptr)));
}

PyRef LibraryGradient::Make(const Part& part, const PyRef** next) {
  using Kind = Part::Kind;
  if (part.kind == Kind::kConstant) return part.object;
  if (part.kind == Kind::kTensor) return *(*next)++;
  if (part.kind == Kind::kFunction) return MakeFunction(part, next);
  const bool is_tuple = part.kind == Kind::kTuple;
  const auto n = static_cast<Py_ssize_t>(part.parts.size());
  PyRef made = PyRef::Steal(is_tuple                   ? PyTuple_New(n)
                            : part.kind == Kind::kList ? PyList_New(n)
                                                       : PyDict_New());
  for (Py_ssize_t i = 0; made && i < n; ++i) {
    PyRef item = Make(part.parts[i], next);
    if (!item) return PyRef();
    if (is_tuple) {
      PyTuple_SET_ITEM(made.get(), i, item.release());
    } else if (part.kind == Kind::kList) {
      PyList_SET_ITEM(made.get(), i, item.release());
    } else if (PyDict_SetItem(made.get(),
                              PyTuple_GET_ITEM(part.object.get(), i),
                              item.get()) < 0) {
      return PyRef();
    }
  }
  return made;
}

PyRef LibraryGradient::MakeFunction(const Part& part, const PyRef** next) {
  PyRef function = PyRef::Steal(PyFunction_NewWithQualName(
      part.object.get(), part.globals.get(), part.qualified.get()));
  PyRef defaults = Make(part.parts[0], next);
  PyRef by_keyword = Make(part.parts[1], next);
  PyRef values = Make(part.parts[2], next);
  if (!function || !defaults || !by_keyword || !values ||
      PyFunction_SetDefaults(function.get(), defaults.get()) < 0 ||
      PyFunction_SetKwDefaults(function.get(), by_keyword.get()) < 0) {
    return PyRef();
  }
  const Py_ssize_t n = PyTuple_GET_SIZE(values.get());
  if (n == 0) return function;
  PyRef cells = PyRef::Steal(PyTuple_New(n));
  for (Py_ssize_t i = 0; cells && i < n; ++i) {
    PyObject* cell = PyCell_New(PyTuple_GET_ITEM(values.get(), i));
    if (cell == nullptr) return PyRef();
    PyTuple_SET_ITEM(cells.get(), i, cell);
  }
  if (!cells || PyFunction_SetClosure(function.get(), cells.get()) < 0) {
    return PyRef();
  }
  return function;
}

}  // namespace terra
