// Session: what Python makes of the step so far, kept for steps that are alike
// (docs/design/0009, Jacobians).
#include "kernels/plan/making.h"

#include <map>

#include "absl/strings/str_cat.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"
#include "kernels/python/waiting.h"
#include "kernels/replay/library_call.h"
#include "kernels/session/session.h"

namespace terra {

PyObject* Session::OnMaking(const Making& making) {
  auto make = [&]() -> PyObject* {
    PyRef made = PyRef::Steal(FlushAllTapes() ? PyObject_CallNoArgs(making.make)
                                              : nullptr);
    return made ? PyTuple_Pack(2, made.get(), Py_False) : nullptr;
  };
  if (!AwaitSeizure()) return nullptr;
  if (mode_ != Mode::kCoExecution || bound_for_ >= 0 ||
      !Knobs().replays_calls.load()) {
    return make();
  }
  PyRef args = PyRef::Steal(PyTuple_Pack(1, making.tape));
  LibraryCall call{making.name.c_str(),
                   making.function,
                   args.get(),
                   nullptr,
                   {},
                   true,
                   false};
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(making.given); ++i) {
    call.given.push_back(PyTuple_GET_ITEM(making.given, i));
  }
  std::string problem = WhyNotMade(making);
  uint64_t key = 0;
  if (problem.empty()) {
    const char* in_arguments = KeyOf(call, &key);
    if (in_arguments != nullptr) problem = in_arguments;
  }
  if (mode_ != Mode::kCoExecution) return make();
  if (!problem.empty()) {
    ++plan_->counts->not_replayed[{making.name, problem}];
    return make();
  }
  const std::shared_ptr<const MakingRecord> record = plan_->makings.Find(key);
  if (record != nullptr) {
    if (record->refusal.empty()) {
      PyRef tensors = FindTensors(*record);
      if (tensors) return ReplayMaking(*record, tensors.get());
    } else if (record->tries_left <= 0) {
      ++plan_->counts->not_replayed[{making.name, record->refusal}];
      return make();
    }
  }
  return MakeAndLearn(making, key);
}

std::string Session::WhyNotMade(const Making& making) const {
  if (CurrentThread().num_watchers > 0) {
    return "the variables it uses were being watched";
  }
  if (runs_user_gradients_) return "it runs a gradient of the user's";
  return KnowsTape(making.tape) ? "" : "the tape was not made in this step";
}

PyObject* Session::ReplayMaking(const MakingRecord& record, PyObject* tensors) {
  history_.JumpTo(record.history_after, record.num_names_after);
  names_ = record.names_after;
  ++*record.num_replayed;
  PyRef made = PyRef::Steal(PyTuple_Pack(2, record.made.get(), tensors));
  return made ? PyTuple_Pack(2, made.get(), Py_True) : nullptr;
}

PyObject* Session::MakeAndLearn(const Making& making, uint64_t key) {
  PyRef keep_alive = PyRef::Borrow(controller_);
  if (!FlushAllTapes()) return nullptr;
  const int begin = position();
  const int epoch = epoch_;
  const int num_names = history_.num_names();
  const int64_t num_obstacles = num_obstacles_;
  ++num_learning_;
  PyRef result = PyRef::Steal(PyObject_CallNoArgs(making.make));
  --num_learning_;
  if (!result) return nullptr;
  PyRef answer = PyRef::Steal(PyTuple_Pack(2, result.get(), Py_False));
  if (!live_ || mode_ != Mode::kCoExecution || bound_for_ >= 0) {
    return answer.release();
  }
  auto record = std::make_shared<MakingRecord>();
  if (num_obstacles_ != num_obstacles) {
    record->refusal = obstacle_;
  } else if (position() != begin || epoch_ != epoch || epoch_is_pending_) {
    record->refusal = "it runs ops of the step";
  } else if (PyTuple_GET_ITEM(result.get(), 2) != Py_None) {
    record->refusal = PyUnicode_AsUTF8(PyTuple_GET_ITEM(result.get(), 2));
  } else {
    record->made = PyRef::Borrow(PyTuple_GET_ITEM(result.get(), 0));
    record->refusal =
        LearnTensors(PyTuple_GET_ITEM(result.get(), 1), num_names, &*record);
  }
  record->history_after = history_.hash().value();
  record->num_names_after = history_.num_names();
  record->names_after =
      PyRef::Steal(PyObject_CallMethod(controller_, "names", nullptr));
  if (!record->names_after) return nullptr;
  record->num_replayed = &plan_->counts->replayed[making.name];
  if (!record->refusal.empty()) {
    ++plan_->counts->not_replayed[{making.name, record->refusal}];
    const auto before = plan_->makings.Find(key);
    record->tries_left = before == nullptr ? 1 : before->tries_left - 1;
  }
  plan_->makings.Put(key, record);
  return answer.release();
}

std::string Session::LearnTensors(PyObject* tensors, int num_names,
                                  MakingRecord* record) const {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tensors); ++i) {
    PyObject* tensor = PyTuple_GET_ITEM(tensors, i);
    TensorSource source;
    const int32_t index = FindMade(HandleOf(tensor));
    if (index >= 0) {
      source.node = made_[index].node;
      source.output = made_[index].output;
    } else {
      source.name = history_.FindName(tensor);
      // What has none was compared as a constant on this path.
      if (source.name < 0) source.object = PyRef::Borrow(tensor);
      if (source.name >= num_names) return "it makes tensors of its own";
    }
    record->tensors.push_back(std::move(source));
  }
  return "";
}

// The tensors of this step that were others in the step that was learned from.
// Null if some are not to be found.
PyRef Session::FindTensors(const MakingRecord& record) const {
  const size_t n = record.tensors.size();
  PyRef found = PyRef::Steal(PyTuple_New(static_cast<Py_ssize_t>(n)));
  std::map<std::pair<int, int>, Py_ssize_t> wanted;
  for (size_t i = 0; i < n; ++i) {
    const TensorSource& source = record.tensors[i];
    const auto place = static_cast<Py_ssize_t>(i);
    if (source.node >= 0) {
      wanted[{source.node, source.output}] = place;
      continue;
    }
    PyObject* tensor =
        source.object ? source.object.get() : history_.Named(source.name);
    if (tensor == nullptr) return PyRef();
    PyTuple_SET_ITEM(found.get(), place, PyRef::Borrow(tensor).release());
  }
  tape_log_.ForEachTensor([&](PyObject* tensor) {
    const int32_t index = FindMade(HandleOf(tensor));
    if (index < 0) return !wanted.empty();
    const auto it = wanted.find({made_[index].node, made_[index].output});
    if (it == wanted.end()) return true;
    PyTuple_SET_ITEM(found.get(), it->second, PyRef::Borrow(tensor).release());
    wanted.erase(it);
    return !wanted.empty();
  });
  for (size_t i = 0; i < n; ++i) {
    if (PyTuple_GET_ITEM(found.get(), i) == nullptr) return PyRef();
  }
  return found;
}

}  // namespace terra
