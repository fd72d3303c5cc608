#include "kernels/replay/makings.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"
#include "kernels/python/waiting.h"
#include "kernels/replay/library_call.h"

namespace terra {

PyObject* Makings::On(const Making& making) {
  auto make = [&]() -> PyObject* {
    PyRef made = PyRef::Steal(
        Session::FlushAllTapes() ? PyObject_CallNoArgs(making.make) : nullptr);
    return made ? PyTuple_Pack(2, made.get(), Py_False) : nullptr;
  };
  if (!execution_.AwaitSeizure()) return nullptr;
  if (!context_.is_co_executing() || cursor_.is_bound() ||
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
  std::string problem = WhyNot(making);
  LibraryKey key(&history_);
  if (problem.empty()) {
    const char* in_arguments =
        key.Add(call, tapes_.NumberOf(making.tape), plan().check_devices,
                cursor_.position());
    if (in_arguments != nullptr) problem = in_arguments;
  }
  if (!context_.is_co_executing()) return make();
  if (!problem.empty()) {
    ++plan().counts->not_replayed[{making.name, problem}];
    Say(making.name, " is made anew: ", problem);
    return make();
  }
  const std::shared_ptr<const MakingRecord> record =
      plan().makings.Find(key.value());
  if (record != nullptr) {
    if (record->refusal.empty()) {
      const Tensors tensors = FindTensors(record->tensors);
      if (tensors.size() == record->tensors.size()) {
        Say(making.name, " is known, and not made again");
        return Replay(*record, tensors);
      }
    } else if (record->tries_left <= 0) {
      ++plan().counts->not_replayed[{making.name, record->refusal}];
      Say(making.name, " is made anew: ", record->refusal);
      return make();
    }
  }
  return MakeAndLearn(making, key);
}

std::string Makings::WhyNot(const Making& making) const {
  if (CurrentThread().num_watchers > 0) {
    return "the variables it uses were being watched";
  }
  if (tapes_.runs_user_gradients()) return "it runs a gradient of the user's";
  return tapes_.Knows(making.tape) ? "" : "the tape was not made in this step";
}

PyObject* Makings::Replay(const MakingRecord& record, const Tensors& found) {
  history_.JumpTo(record.history_after, record.num_names_after);
  call_log_.set_names(record.names_after);
  ++*record.num_replayed;
  PyRef tensors = PyRef::Steal(PyTuple_New(found.size()));
  for (size_t i = 0; i < found.size(); ++i) {
    PyTuple_SET_ITEM(tensors.get(), i, PyRef(found[i]).release());
  }
  PyRef made = PyRef::Steal(PyTuple_Pack(2, record.made.get(), tensors.get()));
  return made ? PyTuple_Pack(2, made.get(), Py_True) : nullptr;
}

PyObject* Makings::MakeAndLearn(const Making& making, const LibraryKey& key) {
  PyRef keep_alive = PyRef::Borrow(context_.controller());
  if (!Session::FlushAllTapes()) return nullptr;
  const int begin = cursor_.position();
  const int epoch = cursor_.epoch();
  const int num_names = history_.num_names();
  const int64_t num_obstacles = call_log_.num_obstacles();
  // Nothing that it makes is a number of the step's.
  CallLearning learning(std::numeric_limits<int64_t>::max(), 0, true);
  call_log_.Begin(&learning);
  PyRef result = PyRef::Steal(PyObject_CallNoArgs(making.make));
  call_log_.End();
  if (!result) return nullptr;
  PyRef answer = PyRef::Steal(PyTuple_Pack(2, result.get(), Py_False));
  if (!session_.is_live() || !context_.is_co_executing() ||
      cursor_.is_bound()) {
    return answer.release();
  }
  auto record = std::make_shared<MakingRecord>();
  if (call_log_.num_obstacles() != num_obstacles) {
    record->refusal = call_log_.obstacle();
  } else if (!learning.obstacle.empty()) {
    record->refusal = learning.obstacle;
  } else if (cursor_.position() != begin || cursor_.epoch() != epoch ||
             cursor_.epoch_is_pending()) {
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
  record->names_after = PyRef::Steal(
      PyObject_CallMethod(context_.controller(), "names", nullptr));
  if (!record->names_after) return nullptr;
  record->num_replayed = &plan().counts->replayed[making.name];
  SayLearned(making.name.c_str(), record->refusal);
  if (!record->refusal.empty()) {
    ++plan().counts->not_replayed[{making.name, record->refusal}];
    const auto before = plan().makings.Find(key.value());
    record->tries_left = before == nullptr ? 1 : before->tries_left - 1;
  }
  plan().makings.Put(key.value(), record);
  return answer.release();
}

std::string Makings::LearnTensors(PyObject* tensors, int num_names,
                                  MakingRecord* record) const {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tensors); ++i) {
    PyObject* tensor = PyTuple_GET_ITEM(tensors, i);
    TensorSource source;
    const int32_t index = outputs_.Find(HandleOf(tensor));
    if (index >= 0) {
      source.node = outputs_[index].node;
      source.output = outputs_[index].output;
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

}  // namespace terra
