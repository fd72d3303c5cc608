// Library calls, followed op by op and learned (docs/design/0009).
#include "absl/strings/str_cat.h"
#include "kernels/outputs/outputs.h"
#include "kernels/plan/call_record.h"
#include "kernels/plan/library_objects.h"
#include "kernels/plan/plan.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/tf_python.h"
#include "kernels/replay/library_call.h"
#include "kernels/replay/library_calls.h"
#include "kernels/replay/library_key.h"

namespace terra {
namespace {

// The number of the variable that is the same in every step, or -1.
int FindVariable(const Plan& plan, PyObject* handle) {
  for (size_t i = 0; i < plan.variables.size(); ++i) {
    PyObject* captured = plan.variables[i].captured.get();
    if (captured != nullptr && HandleOf(captured) == HandleOf(handle)) {
      return static_cast<int>(i);
    }
  }
  return -1;
}

}  // namespace

PyObject* LibraryCalls::RunAndLearn(const LibraryCall& call,
                                    const LibraryKey& key) {
  PyRef first_id = PyRef::Steal(PyObject_CallNoArgs(Runtime().next_id));
  if (!first_id) return nullptr;
  Learning learning{cursor_.position(),
                    cursor_.at(),
                    cursor_.epoch(),
                    outputs_.size(),
                    inputs_.bindings().size(),
                    history_.num_names(),
                    call_log_.num_obstacles(),
                    call.differentiates,
                    CallLearning(PyLong_AsLongLong(first_id.get()), 0, true)};
  PyRef keep_alive = PyRef::Borrow(context_.controller());
  PyRef guard = GuardObjects(key.objects());
  Anchors anchors;
  for (PyObject* object : key.objects()) anchors.Add(object);
  if (PyErr_Occurred()) return nullptr;
  if (!tapes_.Flush()) return nullptr;
  if (!context_.is_co_executing()) {
    return PyObject_Call(call.function, call.args, call.kwargs);
  }
  call_log_.Begin(&learning.call);
  PyRef result =
      PyRef::Steal(PyObject_Call(call.function, call.args, call.kwargs));
  call_log_.End();
  if (!result) return nullptr;
  if (!session_.is_live() || !context_.is_co_executing() ||
      cursor_.is_bound()) {
    return result.release();
  }
  const std::shared_ptr<CallRecord> record = Learn(learning, result.get());
  if (record == nullptr) return nullptr;
  KeepGuard(std::move(guard), &record->guard, &record->refusal);
  record->anchors = std::move(anchors);
  record->num_replayed = &plan().counts->replayed[call.name];
  SayLearned(call.name, record->refusal);
  if (!record->refusal.empty()) {
    ++plan().counts->not_replayed[{call.name, record->refusal}];
    const auto before = plan().calls.Find(key.value());
    const bool is_first = before == nullptr || !before->anchors.AreAlive();
    record->tries_left = is_first ? 2 : before->tries_left - 1;
  }
  plan().calls.Put(key.value(), record);
  return result.release();
}

std::shared_ptr<CallRecord> LibraryCalls::Learn(const Learning& learning,
                                                PyObject* result) {
  auto record = std::make_shared<CallRecord>();
  record->begin = learning.begin;
  if (call_log_.num_obstacles() != learning.num_obstacles)
    record->refusal = call_log_.obstacle();
  if (!learning.call.obstacle.empty()) record->refusal = learning.call.obstacle;
  if (record->refusal.empty()) record->refusal = LearnPath(learning, &*record);
  if (record->refusal.empty()) {
    record->refusal = LearnBindings(learning, &*record);
  }
  if (record->refusal.empty()) {
    record->refusal = LearnResult(result, learning, &*record, &record->result);
  }
  if (record->refusal.empty()) record->refusal = LearnKept(learning, *record);
  record->history_after = history_.hash().value();
  record->num_names_after = history_.num_names();
  record->names_after = PyRef::Steal(
      PyObject_CallMethod(context_.controller(), "names", nullptr));
  return record->names_after ? record : nullptr;
}

std::string LibraryCalls::LearnPath(const Learning& learning,
                                    CallRecord* record) {
  if (cursor_.epoch() != learning.epoch || cursor_.epoch_is_pending()) {
    return "an epoch ended in it";
  }
  int at = learning.at;
  for (size_t i = learning.begin; i < cursor_.path().size(); ++i) {
    const int number = cursor_.path()[i];
    const PlanNode& node = plan().nodes[number];
    if (node.kind == NodeKind::kImperative) {
      return absl::StrCat(node.name, " runs in Python");
    }
    if (node.seeded) return absl::StrCat(node.name, " draws random numbers");
    for (const auto& decision : cursor_.Decisions(at, number)) {
      record->decisions.push_back(decision);
    }
    for (size_t k = 0; k < node.outputs.size(); ++k) {
      for (int web : node.outputs[k].webs) {
        record->latest.push_back({web, number, static_cast<int>(k)});
      }
    }
    record->path.push_back(number);
    at = number;
  }
  return "";
}

std::string LibraryCalls::LearnBindings(const Learning& learning,
                                        CallRecord* record) {
  using Kind = Binding::Kind;
  for (size_t i = learning.num_bindings; i < inputs_.bindings().size(); ++i) {
    const Binding& binding = inputs_.bindings()[i];
    const bool is_its_own =
        binding.HasName() && binding.a >= learning.num_names;
    if (is_its_own && binding.kind == Kind::kConstant) continue;
    PyRef own;
    if (is_its_own) {
      // Of what follows from the history, shapes above all: gradient functions
      // of the library's depend on nothing else.
      own = PyRef::Borrow(history_.Named(binding.a));
      const bool is_fresh =
          own && binding.kind == Kind::kFeed && learning.call.Makes(own.get());
      if (!learning.differentiates || !is_fresh) {
        return "it makes a tensor of a value that varies";
      }
    }
    record->bindings.push_back(binding);
    record->own.push_back(std::move(own));
  }
  return "";
}

std::string LibraryCalls::LearnResult(PyObject* value, const Learning& learning,
                                      CallRecord* record,
                                      ResultPattern* pattern) {
  using Kind = ResultPattern::Kind;
  if (value == Py_None || PyBool_Check(value) || PyLong_CheckExact(value) ||
      PyUnicode_CheckExact(value)) {
    pattern->object = PyRef::Borrow(value);
    return "";
  }
  if (EagerTensor_CheckExact(value)) {
    return LearnTensor(value, learning, record, pattern);
  }
  if (IsUnreadVariable(value)) {  // the count of an optimizer's steps
    const auto [handle, attributes] = PartsOfUnreadVariable(value);
    if (attributes) pattern->number = FindVariable(plan(), handle.get());
    if (pattern->number < 0) {
      return "it returns a variable that is not the same in every step";
    }
    pattern->kind = Kind::kUnread;
    pattern->object = attributes;
    return "";
  }
  PyRef items;
  if (PyList_CheckExact(value) || PyTuple_CheckExact(value)) {
    pattern->kind = PyList_CheckExact(value) ? Kind::kList : Kind::kTuple;
    items = PyRef::Borrow(value);
  } else if (IsSlices(value)) {
    pattern->kind = Kind::kSlices;
    items = ItemsOfSlices(value);
    if (!items) return "it returns slices of another kind";
  } else {
    return absl::StrCat("it returns a ", Py_TYPE(value)->tp_name);
  }
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(items.get());
  for (Py_ssize_t i = 0; i < n; ++i) {
    pattern->items.emplace_back();
    const std::string problem =
        LearnResult(PySequence_Fast_GET_ITEM(items.get(), i), learning, record,
                    &pattern->items.back());
    if (!problem.empty()) return problem;
  }
  return "";
}

std::string LibraryCalls::LearnTensor(PyObject* tensor,
                                      const Learning& learning,
                                      CallRecord* record,
                                      ResultPattern* pattern) {
  using Kind = ResultPattern::Kind;
  const int32_t index = outputs_.Find(HandleOf(tensor));
  if (index >= 0 && static_cast<size_t>(index) >= learning.num_made) {
    const Made& made = outputs_[index];
    if (plan().nodes[made.node].on_host) {
      return "it returns a tensor that Python computes";
    }
    pattern->kind = Kind::kMade;
    auto& all = record->made;
    for (size_t i = 0; i < all.size(); ++i) {
      if (all[i].node == made.node && all[i].output == made.output) {
        pattern->number = static_cast<int>(i);
        return "";
      }
    }
    pattern->number = static_cast<int>(all.size());
    all.push_back({made.node, made.output, made.shape});
    return "";
  }
  if (index >= 0) return "it returns a tensor that was there before";
  const int name = history_.FindName(tensor);
  if (name >= 0 && name < learning.num_names) {
    pattern->kind = Kind::kOutside;
    pattern->number = name;
    return history_.Named(name) == tensor
               ? ""
               : "it returns another object of a tensor";
  }
  for (size_t i = learning.begin; i < cursor_.path().size(); ++i) {
    for (const PyRef& folded : plan().nodes[cursor_.path()[i]].folded) {
      if (HandleOf(folded.get()) != HandleOf(tensor)) continue;
      pattern->kind = Kind::kFolded;
      pattern->object = folded;
      return "";
    }
  }
  if (name < 0 && learning.call.Makes(tensor)) {
    pattern->kind = Kind::kFolded;  // of numbers that follow from the history
    pattern->object = PyRef::Borrow(tensor);
    return "";
  }
  return absl::StrCat("it returns a tensor that no op of it made: ",
                      tensorflow::DataTypeString(HandleOf(tensor)->DataType()));
}

// Somebody may have kept what was made in the call besides its result.
std::string LibraryCalls::LearnKept(const Learning& learning,
                                    const CallRecord& record) const {
  for (size_t i = learning.num_made; i < outputs_.size(); ++i) {
    const Made& made = outputs_[i];
    if (!IsReferenced(made) ||
        (made.fetch_channel >= 0 && !made.ready->load())) {
      continue;
    }
    bool is_result = false;
    for (const CallRecord::Output& output : record.made) {
      is_result = is_result ||
                  (output.node == made.node && output.output == made.output);
    }
    if (!is_result) {
      return absl::StrCat("the result of ", plan().nodes[made.node].name,
                          " is kept somewhere");
    }
  }
  return "";
}

}  // namespace terra
