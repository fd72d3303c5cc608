// What a pure call leaves: its results, and what it sets (docs/design/0009).
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/outputs/outputs.h"
#include "kernels/plan/call_record.h"
#include "kernels/plan/library_objects.h"
#include "kernels/plan/plan.h"
#include "kernels/plan/pure_record.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/tf_python.h"
#include "kernels/replay/pure_call.h"

namespace terra {
namespace {

// Its class adds names to a tuple, and nothing of an instance's own.
bool IsNamedTuple(PyObject* value) {
  static PyObject* name = PyUnicode_InternFromString("_fields");
  return PyTuple_Check(value) && Py_TYPE(value)->tp_base == &PyTuple_Type &&
         Py_TYPE(value)->tp_dictoffset == 0 &&
         PyObject_HasAttr(reinterpret_cast<PyObject*>(Py_TYPE(value)), name);
}

}  // namespace

std::string PureLearner::LearnResult(PyObject* value, ResultPattern* pattern) {
  using Kind = ResultPattern::Kind;
  const int operand = FindOperand(value);
  if (operand >= 0) {
    pattern->kind = Kind::kOperand;
    pattern->number = operand;
    return operands_[operand].object == value ? "" : "it returns a handle";
  }
  if (EagerTensor_CheckExact(value)) return LearnTensor(value, pattern);
  if (value == Py_None || PyBool_Check(value)) {
    pattern->object = PyRef::Borrow(value);
    return "";
  }
  if (IsUnreadVariable(value)) {
    const auto [handle, attributes] = PartsOfUnreadVariable(value);
    if (!attributes || FindOperand(handle.get()) < 0) {
      return "it returns a variable that it was not given";
    }
    pattern->kind = Kind::kUnread;
    pattern->number = FindOperand(handle.get());
    pattern->object = attributes;
    return "";
  }
  const std::vector<PyObject*>& given = key_.containers();
  if (std::find(given.begin(), given.end(), value) != given.end()) {
    return "it returns a list or a dictionary that it was given";
  }
  if (PyDict_CheckExact(value)) return LearnDict(value, pattern);
  if (PyList_CheckExact(value) || PyTuple_CheckExact(value)) {
    pattern->kind = PyList_CheckExact(value) ? Kind::kList : Kind::kTuple;
    return LearnItems(value, pattern);
  }
  if (IsNamedTuple(value)) {
    pattern->kind = Kind::kNamedTuple;
    pattern->object =
        PyRef::Borrow(reinterpret_cast<PyObject*>(Py_TYPE(value)));
    return LearnItems(value, pattern);
  }
  if (!IsSlices(value)) {
    return absl::StrCat("it returns a ", Py_TYPE(value)->tp_name);
  }
  pattern->kind = Kind::kSlices;
  PyRef items = ItemsOfSlices(value);
  return items ? LearnItems(items.get(), pattern)
               : "it returns slices of another kind";
}

// A list's or a tuple's.
std::string PureLearner::LearnItems(PyObject* items, ResultPattern* pattern) {
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(items);
  for (Py_ssize_t i = 0; i < n; ++i) {
    pattern->items.emplace_back();
    const std::string problem =
        LearnResult(PySequence_Fast_GET_ITEM(items, i), &pattern->items.back());
    if (!problem.empty()) return problem;
  }
  return "";
}

std::string PureLearner::LearnDict(PyObject* value, ResultPattern* pattern) {
  PyRef keys = PyRef::Steal(PyDict_Keys(value));
  PyRef values = PyRef::Steal(PyDict_Values(value));
  const Py_ssize_t n = PyList_GET_SIZE(keys.get());
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* key = PyList_GET_ITEM(keys.get(), i);
    if (!PyUnicode_CheckExact(key) && !PyLong_CheckExact(key)) {
      return "it returns a dictionary with keys of another kind";
    }
  }
  pattern->kind = ResultPattern::Kind::kDict;
  pattern->object = PyRef::Steal(PyList_AsTuple(keys.get()));
  return LearnItems(values.get(), pattern);
}

std::string PureLearner::LearnAttributes(const TensorAttributes& attributes,
                                         const TensorAttributes& before,
                                         ResultPattern* pattern) {
  constexpr int kMaxDepth = 8;
  if (depth_ == kMaxDepth) return "it returns a tensor with attributes";
  ++depth_;
  std::string problem;
  for (int i = 0; i < kNumCarried && problem.empty(); ++i) {
    PyObject* value = attributes.carried[i].get();
    if (value == before.carried[i].get()) continue;
    if (value == nullptr) return "it takes an attribute from a tensor";
    pattern->attributes.emplace_back();
    pattern->attributes.back().attribute = i;
    problem = LearnResult(value, &pattern->attributes.back());
  }
  --depth_;
  return problem;
}

// Of a layer whose own default says whether it trains, for one.
std::string PureLearner::LearnContext() {
  const bool is_clear =
      !takes_objects_ ||
      context_.FindChanges(KerasContext(), learning_.context_values.get(),
                           &record_->context_changes);
  return is_clear ? "" : "it changes what later layers inherit";
}

std::string PureLearner::LearnChanges(
    const std::vector<TensorAttributes>& before) {
  for (size_t i = 0; i < operands_.size(); ++i) {
    if (operands_[i].handle) continue;
    const TensorAttributes now = AttributesOf(operands_[i].object);
    if (now.has_others || now.is_zeros != before[i].is_zeros ||
        now.is_slice != before[i].is_slice) {
      return "it sets an attribute of a tensor that it was given";
    }
    ResultPattern change;
    change.kind = ResultPattern::Kind::kOperand;
    change.number = static_cast<int>(i);
    const std::string problem = LearnAttributes(now, before[i], &change);
    if (!problem.empty()) return problem;
    if (!change.attributes.empty()) {
      record_->changes.push_back(std::move(change));
    }
  }
  return "";
}

std::string PureLearner::LearnTensor(PyObject* tensor, ResultPattern* pattern) {
  const TensorAttributes attributes = AttributesOf(tensor);
  if (attributes.has_others) return "it returns a tensor with attributes";
  pattern->is_zeros = attributes.is_zeros;
  if (attributes.is_slice) {
    // What it holds besides follows from the key if no tensor was given.
    if (operands_.size() == 1) {
      pattern->assign = AssignOfSlice(outputs_, tensor, operands_[0].object);
    }
    if (!pattern->assign) {
      PyErr_Clear();
      return "it returns a slice that depends on a tensor";
    }
  }
  const std::string problem =
      LearnAttributes(attributes, TensorAttributes(), pattern);
  if (!problem.empty()) return problem;
  pattern->kind = ResultPattern::Kind::kMade;
  const int32_t index = outputs_.Find(HandleOf(tensor));
  if (index >= 0) {
    const Made& made = outputs_[index];
    const auto inner = made_.find({made.node, made.output});
    if (inner == made_.end())
      return "it returns a tensor that no op of it made";
    pattern->number = inner->second;
    results_.insert(inner->second);
    return "";
  }
  for (const auto& [output, number] : made_) {
    const PlanNode& node = plan_.nodes[output.first];
    if (node.kind == NodeKind::kFolded &&
        HandleOf(node.folded[output.second].get()) == HandleOf(tensor)) {
      pattern->number = number;
      return "";
    }
  }
  if (!learning_.call.Makes(tensor)) {
    return "it returns a tensor that no op of it made";
  }
  pattern->kind = ResultPattern::Kind::kFolded;  // of numbers in the key
  pattern->object = PyRef::Borrow(tensor);
  return "";
}

// Somebody may have kept what was made in the call besides its result. (On a
// tape all of it is kept, as it is again by the tape in a replay.)
std::string PureLearner::LearnKept() {
  for (size_t i = learning_.made_begin; i < outputs_.size(); ++i) {
    const Made& made = outputs_[i];
    const bool waits = made.fetch_channel >= 0 && !made.ready->load();
    if (waits || !IsReferenced(made)) continue;
    const auto inner = made_.find({made.node, made.output});
    if (inner == made_.end() || results_.count(inner->second) == 0) {
      return absl::StrCat("the result of ", plan_.nodes[made.node].name,
                          " is kept somewhere");
    }
  }
  return "";
}

}  // namespace terra
