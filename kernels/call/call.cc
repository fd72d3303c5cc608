#include "kernels/call/call.h"

#include <array>
#include <climits>

#include "absl/strings/match.h"
#include "kernels/python/tf_python.h"

namespace terra {
namespace {

using tensorflow::DataType;
using tensorflow::DT_INT32;
using tensorflow::DT_INVALID;

// Attribute names of Python objects, interned once.
PyObject* Interned(const char* text) {
  return PyUnicode_InternFromString(text);
}

bool IsResourceVariable(PyObject* value) {
  return PyObject_IsInstance(value, Runtime().resource_variable_type) == 1;
}

// A Keras 3 variable: not a tf.Variable, converts itself.
bool IsKerasVariable(PyObject* value) {
  static PyObject* flag = Interned("_should_act_as_resource_variable");
  static PyObject* convert = Interned("__tf_tensor__");
  PyTypeObject* type = Py_TYPE(value);
  return _PyType_Lookup(type, flag) != nullptr &&
         _PyType_Lookup(type, convert) != nullptr;
}

bool IsNumber(PyObject* value) {
  static PyObject* generic = [] {
    PyRef numpy = PyRef::Steal(PyImport_ImportModule("numpy"));
    return PyObject_GetAttrString(numpy.get(), "generic");
  }();
  static PyObject* ndarray = [] {
    PyRef numpy = PyRef::Steal(PyImport_ImportModule("numpy"));
    return PyObject_GetAttrString(numpy.get(), "ndarray");
  }();
  if (PyLong_Check(value) || PyFloat_Check(value) || PyComplex_Check(value)) {
    return true;
  }
  PyTypeObject* type = Py_TYPE(value);
  return type == reinterpret_cast<PyTypeObject*>(ndarray) ||
         PyType_IsSubtype(type, reinterpret_cast<PyTypeObject*>(generic));
}

bool IsListOfInts(PyObject* value) {
  if (!PyList_CheckExact(value) && !PyTuple_CheckExact(value)) return false;
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(value);
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* item = PySequence_Fast_GET_ITEM(value, i);
    if (!PyLong_CheckExact(item)) return false;
    int overflow = 0;
    const long x = PyLong_AsLongAndOverflow(item, &overflow);
    if (overflow != 0 || x > INT_MAX || x < INT_MIN) return false;
  }
  return true;
}

PyRef ReadKerasVariable(PyObject* variable, DataType dtype) {
  static PyObject* convert = Interned("__tf_tensor__");
  if (dtype == DT_INVALID) {
    return PyRef::Steal(PyObject_CallMethodNoArgs(variable, convert));
  }
  PyRef py_dtype = PyRef::Steal(PyLong_FromLong(dtype));
  return PyRef::Steal(
      PyObject_CallMethodOneArg(variable, convert, py_dtype.get()));
}

// Whether FastPathExecute takes `value` for an attribute of this type.
bool IsTaken(const std::string& type, PyObject* value) {
  constexpr absl::string_view kList = "list(";
  if (absl::StartsWith(type, kList)) {
    if (!PyList_Check(value) && !PyTuple_Check(value)) return true;
    const std::string item_type =
        type.substr(kList.size(), type.size() - kList.size() - 1);
    const Py_ssize_t n = PySequence_Fast_GET_SIZE(value);
    for (Py_ssize_t i = 0; i < n; ++i) {
      if (!IsTaken(item_type, PySequence_Fast_GET_ITEM(value, i))) return false;
    }
    return true;
  }
  if (type == "float") return PyFloat_Check(value);
  if (type == "int") return PyLong_Check(value);
  if (type == "string") return PyBytes_Check(value) || PyUnicode_Check(value);
  return true;
}

// Whether FastPathExecute takes the attributes in `args` from `first` on. It
// looks at them before it reads any variable, and falls back where it does not
// (`epsilon=1`); so a read of ours before that would be one too many.
bool AttributesAreTaken(const OpInfo& info, PyObject* args, Py_ssize_t first) {
  for (Py_ssize_t i = first; i + 1 < PyTuple_GET_SIZE(args); i += 2) {
    PyObject* value = PyTuple_GET_ITEM(args, i + 1);
    const char* name = PyUnicode_AsUTF8(PyTuple_GET_ITEM(args, i));
    if (name == nullptr) return false;
    for (const auto& attr : info.def->attr()) {
      if (attr.name() == name && !IsTaken(attr.type(), value)) return false;
    }
  }
  return true;
}

// Converts the inputs of one fast call.
class Converter {
 public:
  Converter(PyObject* args, const OpInfo& info, VariableReader read_variable)
      : py_context_(PyTuple_GET_ITEM(args, 0)),
        args_(args),
        info_(info),
        read_variable_(read_variable) {
    known_.fill(DT_INVALID);
  }

  bool CanHold() const { return info_.type_attrs.size() <= known_.size(); }

  // Learns attribute types from inputs whose type is certain.
  void Learn(const OpInfo::Arg& arg, PyObject* value) {
    if (arg.type_attr < 0 || known_[arg.type_attr] != DT_INVALID) return;
    if (EagerTensor_CheckExact(value)) {
      known_[arg.type_attr] = HandleOf(value)->DataType();
    } else if (!IsNumber(value) && IsResourceVariable(value)) {
      known_[arg.type_attr] = VariableType(value);
    }
  }

  // Appends the converted value to `call->inputs`.
  ParseResult Convert(const OpInfo::Arg& arg, PyObject* value, Call* call) {
    if (EagerTensor_CheckExact(value)) {
      call->inputs.push_back(PyRef::Borrow(value));
      return ParseResult::kOk;
    }
    const DataType wanted = Wanted(arg);
    PyRef tensor;
    if (IsNumber(value)) {
      tensor = FromHost(value, WithDefault(arg, wanted));
    } else if (IsListOfInts(value)) {
      if (arg.kind != OpInfo::ArgKind::kSingle) return ParseResult::kFallback;
      const DataType hint = WithDefault(arg, wanted);
      if (hint == DT_INVALID) return ParseResult::kFallback;
      tensor = FromHost(value, hint);
      if (!tensor) {
        PyErr_Clear();
        return ParseResult::kFallback;
      }
    } else if (IsResourceVariable(value)) {
      if (!MayRead()) return ParseResult::kFallback;
      tensor = read_variable_(py_context_, value);
    } else if (IsKerasVariable(value)) {
      if (!MayRead()) return ParseResult::kFallback;
      tensor = ReadKerasVariable(value, wanted);
    } else {
      return ParseResult::kFallback;
    }
    if (!tensor) return ParseResult::kError;
    if (!EagerTensor_CheckExact(tensor.get())) return ParseResult::kFallback;
    if (arg.type_attr >= 0 && known_[arg.type_attr] == DT_INVALID) {
      known_[arg.type_attr] = HandleOf(tensor.get())->DataType();
    }
    call->inputs.push_back(std::move(tensor));
    return ParseResult::kOk;
  }

 private:
  DataType Wanted(const OpInfo::Arg& arg) const {
    if (arg.fixed_type != DT_INVALID) return arg.fixed_type;
    return arg.type_attr < 0 ? DT_INVALID : known_[arg.type_attr];
  }

  DataType WithDefault(const OpInfo::Arg& arg, DataType wanted) const {
    if (wanted != DT_INVALID || arg.type_attr < 0) return wanted;
    return info_.type_attrs[arg.type_attr].default_type;
  }

  PyRef FromHost(PyObject* value, DataType wanted) const {
    TFE_TensorHandle* handle = tensorflow::ConvertToEagerTensor(
        Runtime().c_context, value, wanted, nullptr);
    if (handle == nullptr) return PyRef();
    return PyRef::Steal(EagerTensorFromHandle(handle));
  }

  bool MayRead() {
    const auto num_inputs = static_cast<Py_ssize_t>(info_.args.size());
    may_read_ =
        may_read_ || AttributesAreTaken(info_, args_, kFirstInput + num_inputs);
    return may_read_;
  }

  PyObject* py_context_;
  PyObject* args_;
  const OpInfo& info_;
  const VariableReader read_variable_;
  bool may_read_ = false;
  std::array<DataType, 8> known_;
};

bool IsSequence(PyObject* value) {
  return PyList_Check(value) || PyTuple_Check(value);
}

void LearnAll(Converter* converter, const OpInfo& info, PyObject* args) {
  for (size_t i = 0; i < info.args.size(); ++i) {
    PyObject* value = PyTuple_GET_ITEM(args, kFirstInput + i);
    if (info.args[i].kind == OpInfo::ArgKind::kSingle) {
      converter->Learn(info.args[i], value);
    } else if (IsSequence(value)) {
      const Py_ssize_t n = PySequence_Fast_GET_SIZE(value);
      for (Py_ssize_t k = 0; k < n; ++k) {
        converter->Learn(info.args[i], PySequence_Fast_GET_ITEM(value, k));
      }
    }
  }
}

ParseResult ConvertAll(Converter* converter, const OpInfo& info, PyObject* args,
                       Call* call) {
  for (size_t i = 0; i < info.args.size(); ++i) {
    PyObject* value = PyTuple_GET_ITEM(args, kFirstInput + i);
    ParseResult result = ParseResult::kOk;
    if (info.args[i].kind == OpInfo::ArgKind::kSingle) {
      result = converter->Convert(info.args[i], value, call);
      call->counts.push_back(-1);
    } else if (IsSequence(value)) {
      // A conversion may run Python that changes the list: copy it.
      PyRef items = PyRef::Steal(PySequence_Tuple(value));
      const Py_ssize_t n = PyTuple_GET_SIZE(items.get());
      for (Py_ssize_t k = 0; k < n && result == ParseResult::kOk; ++k) {
        result = converter->Convert(info.args[i],
                                    PyTuple_GET_ITEM(items.get(), k), call);
      }
      call->counts.push_back(static_cast<int>(n));
    } else {
      return ParseResult::kFallback;
    }
    if (result != ParseResult::kOk) return result;
  }
  return ParseResult::kOk;
}

// The integer value of attribute `name` in an attribute tuple, or the length
// of its list value.
Py_ssize_t CountFromAttr(PyObject* attrs, const std::string& name) {
  const Py_ssize_t n = PyTuple_GET_SIZE(attrs);
  for (Py_ssize_t i = 0; i + 1 < n; i += 2) {
    PyObject* key = PyTuple_GET_ITEM(attrs, i);
    const char* text = PyUnicode_Check(key) ? PyUnicode_AsUTF8(key) : nullptr;
    if (text == nullptr || name != text) continue;
    PyObject* value = PyTuple_GET_ITEM(attrs, i + 1);
    if (PyLong_Check(value)) return PyLong_AsLong(value);
    return PySequence_Size(value);
  }
  return -1;
}

ParseResult SplitByAttributes(const OpInfo& info, Call* call) {
  size_t used = 0;
  for (const OpInfo::Arg& arg : info.args) {
    if (arg.kind == OpInfo::ArgKind::kSingle) {
      call->counts.push_back(-1);
      used += 1;
      continue;
    }
    const Py_ssize_t n =
        CountFromAttr(call->attrs.get(), arg.kind == OpInfo::ArgKind::kRepeated
                                             ? arg.number_attr
                                             : arg.list_attr);
    if (n < 0) {
      PyErr_Clear();
      return ParseResult::kFallback;
    }
    call->counts.push_back(static_cast<int>(n));
    used += n;
  }
  return used == call->inputs.size() ? ParseResult::kOk
                                     : ParseResult::kFallback;
}

}  // namespace

tensorflow::DataType VariableType(PyObject* variable) {
  static PyObject* dtype_name = Interned("_dtype");
  static PyObject* enum_name = Interned("_type_enum");
  PyRef dtype = PyRef::Steal(PyObject_GetAttr(variable, dtype_name));
  PyRef number;
  if (dtype) number = PyRef::Steal(PyObject_GetAttr(dtype.get(), enum_name));
  if (!number) {
    PyErr_Clear();
    return DT_INVALID;
  }
  return static_cast<DataType>(PyLong_AsLong(number.get()));
}

PyRef Call::InputTuple() const {
  PyRef tuple = PyRef::Steal(PyTuple_New(inputs.size()));
  for (size_t i = 0; i < inputs.size(); ++i) {
    PyTuple_SET_ITEM(tuple.get(), i, PyRef(inputs[i]).release());
  }
  return tuple;
}

PyRef Call::CountTuple() const {
  PyRef tuple = PyRef::Steal(PyTuple_New(counts.size()));
  for (size_t i = 0; i < counts.size(); ++i) {
    PyTuple_SET_ITEM(tuple.get(), i, PyLong_FromLong(counts[i]));
  }
  return tuple;
}

std::string Describe(const Call& call) {
  if (call.info != nullptr) return call.info->name;
  if (PyBytes_Check(call.py_name)) return PyBytes_AS_STRING(call.py_name);
  PyRef text = PyRef::Steal(PyObject_Str(call.py_name));
  const char* utf8 = text ? PyUnicode_AsUTF8(text.get()) : nullptr;
  if (utf8 == nullptr) {
    PyErr_Clear();
    return "?";
  }
  return utf8;
}

PyObject* Call::given_name() const {
  static PyObject* none_given = PyUnicode_InternFromString("");
  if (route != Route::kFast || args == nullptr) return Py_None;
  for (size_t i = 0; i < info->args.size(); ++i) {
    if (info->args[i].kind == OpInfo::ArgKind::kSingle &&
        IsSequence(PyTuple_GET_ITEM(args, kFirstInput + i))) {
      return Py_None;
    }
  }
  PyObject* name = PyTuple_GET_ITEM(args, 2);
  return name == Py_None ? none_given : name;
}

ParseResult ParseFastCall(PyObject* args, VariableReader read_variable,
                          Call* call) {
  const Py_ssize_t size = PyTuple_GET_SIZE(args);
  if (size < kFirstInput) return ParseResult::kFallback;
  call->args = args;
  call->route = Route::kFast;
  call->py_name = PyTuple_GET_ITEM(args, 1);
  call->info = OpInfo::Of(call->py_name);
  if (call->info == nullptr) return ParseResult::kFallback;
  const OpInfo& info = *call->info;
  const Py_ssize_t first_attr =
      kFirstInput + static_cast<Py_ssize_t>(info.args.size());
  if (size < first_attr) return ParseResult::kFallback;
  Converter converter(args, info, read_variable);
  if (!converter.CanHold()) return ParseResult::kFallback;
  LearnAll(&converter, info, args);
  const ParseResult result = ConvertAll(&converter, info, args, call);
  if (result != ParseResult::kOk) return result;
  call->attrs = PyRef::Steal(PyTuple_GetSlice(args, first_attr, size));
  return ParseResult::kOk;
}

ParseResult ParseFullCall(PyObject* args, Call* call) {
  // (context handle, device, op, inputs, attrs, [cancellation,] num outputs)
  const Py_ssize_t size = PyTuple_GET_SIZE(args);
  if (size != 6 && size != 7) return ParseResult::kFallback;
  call->args = args;
  call->route = Route::kFull;
  call->py_name = PyTuple_GET_ITEM(args, 2);
  call->info = OpInfo::Of(call->py_name);
  PyObject* inputs = PyTuple_GET_ITEM(args, 3);
  PyObject* attrs = PyTuple_GET_ITEM(args, 4);
  if (!IsSequence(inputs)) return ParseResult::kFallback;
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(inputs);
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* input = PySequence_Fast_GET_ITEM(inputs, i);
    if (!EagerTensor_CheckExact(input)) return ParseResult::kFallback;
    call->inputs.push_back(PyRef::Borrow(input));
  }
  call->attrs = attrs == Py_None ? PyRef::Steal(PyTuple_New(0))
                                 : PyRef::Steal(PySequence_Tuple(attrs));
  if (!call->attrs) return ParseResult::kError;
  if (call->info == nullptr) {
    call->counts.assign(call->inputs.size(), -1);
    return ParseResult::kOk;
  }
  return SplitByAttributes(*call->info, call);
}

namespace {

PyRef ListOf(absl::Span<PyRef> tensors, size_t begin, size_t end) {
  PyRef list = PyRef::Steal(PyList_New(end - begin));
  for (size_t i = begin; i < end; ++i) {
    PyList_SET_ITEM(list.get(), i - begin, tensors[i].release());
  }
  return list;
}

// The value of an attribute that says how long a list is: given, or inferred
// from the inputs. -1 when it is neither.
Py_ssize_t ListLength(const Call& call, const std::string& attr) {
  PyObject* attrs = call.attrs.get();
  for (Py_ssize_t i = 0; i + 1 < PyTuple_GET_SIZE(attrs); i += 2) {
    PyObject* value = PyTuple_GET_ITEM(attrs, i + 1);
    const char* name = PyUnicode_AsUTF8(PyTuple_GET_ITEM(attrs, i));
    if (name == nullptr || attr != name) continue;
    return PyLong_Check(value) ? PyLong_AsSsize_t(value)
                               : PySequence_Size(value);
  }
  for (size_t i = 0; i < call.info->args.size(); ++i) {
    const OpInfo::Arg& arg = call.info->args[i];
    if (arg.number_attr == attr || arg.list_attr == attr) return call.counts[i];
  }
  return -1;
}

// Several outputs, some of them lists: one item for each, as TensorFlow does.
PyRef NestOutputs(const Call& call, absl::Span<PyRef> outputs) {
  const auto& def = *call.info->def;
  PyRef result = PyRef::Steal(PyList_New(def.output_arg_size()));
  size_t next = 0;
  for (int i = 0; i < def.output_arg_size(); ++i) {
    const auto& arg = def.output_arg(i);
    const std::string& attr =
        arg.number_attr().empty() ? arg.type_list_attr() : arg.number_attr();
    const Py_ssize_t n = attr.empty() ? 1 : ListLength(call, attr);
    if (n < 0 || next + n > outputs.size()) {
      PyErr_Clear();
      PyErr_Format(PyExc_RuntimeError, "how long is output %s of %s?",
                   arg.name().c_str(), call.info->name.c_str());
      return PyRef();
    }
    PyRef item = attr.empty() ? std::move(outputs[next])
                              : ListOf(outputs, next, next + n);
    PyList_SET_ITEM(result.get(), i, item.release());
    next += n;
  }
  return result;
}

}  // namespace

PyRef WrapOutputs(const Call& call, absl::Span<PyRef> outputs) {
  if (call.route == Route::kFast) {
    if (call.info->returns_none) return PyRef::Borrow(Py_None);
    if (call.info->returns_one) return std::move(outputs[0]);
    if (call.info->nests_outputs) return NestOutputs(call, outputs);
  }
  return ListOf(outputs, 0, outputs.size());
}

PyRef OutputList(PyObject* result) {
  if (result == Py_None) return PyRef::Steal(PyList_New(0));
  if (PyList_Check(result)) {
    bool is_flat = true;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(result); ++i) {
      is_flat = is_flat && !PyList_Check(PyList_GET_ITEM(result, i));
    }
    if (is_flat) return PyRef::Borrow(result);
    PyRef flat = PyRef::Steal(PyList_New(0));
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(result); ++i) {
      PyRef items = OutputList(PyList_GET_ITEM(result, i));
      PyList_SetSlice(flat.get(), PY_SSIZE_T_MAX, PY_SSIZE_T_MAX, items.get());
    }
    return flat;
  }
  if (PyTuple_Check(result)) return PyRef::Steal(PySequence_List(result));
  PyRef list = PyRef::Steal(PyList_New(1));
  PyList_SET_ITEM(list.get(), 0, PyRef::Borrow(result).release());
  return list;
}

}  // namespace terra
