#include "kernels/replay/gradients_op_by_op.h"

#include <vector>

#include "kernels/plan/plan.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"
#include "kernels/python/waiting.h"
#include "kernels/replay/keras_context.h"
#include "kernels/replay/pure_call.h"

namespace terra {

std::string GradientsOpByOp::WhyNotNow(const LibraryCall& call) const {
  const char* on_thread = WhyNotOnThread(&CurrentThread());
  if (on_thread != nullptr) return on_thread;
  if (CurrentThread().num_watchers > 0)
    return "the variables it uses were being watched";
  if (tapes_.runs_user_gradients()) return "it runs a gradient of the user's";
  return tapes_.Knows(PyTuple_GET_ITEM(call.args, 0))
             ? ""
             : "the tape was not made in this step";
}

PyObject* GradientsOpByOp::OnCall(const LibraryCall& call) {
  auto run = [&]() -> PyObject* {
    if (!Session::FlushAllTapes()) return nullptr;
    return PyObject_Call(call.function, call.args, call.kwargs);
  };
  if (!context_.is_co_executing() || cursor_.is_bound() ||
      !Knobs().replays_calls.load()) {
    return run();
  }
  std::string problem = WhyNotNow(call);
  LibraryKey key(&history_);
  if (problem.empty()) {
    const char* in_arguments =
        key.Add(call, tapes_.NumberOf(PyTuple_GET_ITEM(call.args, 0)),
                plan().check_devices, cursor_.position());
    if (in_arguments != nullptr) problem = in_arguments;
  }
  if (!context_.is_co_executing()) return run();
  const std::shared_ptr<const GradientRecord> record =
      problem.empty() ? plan().gradients_op_by_op.Find(key.value()) : nullptr;
  if (problem.empty() && record == nullptr) {
    Say(call.name, " is not known here");
    return RunAndLearn(call, key);
  }
  if (problem.empty()) problem = record->refusal;
  if (problem.empty()) {
    const int position = cursor_.position();
    PyRef result = TryReplay(*record);
    if (result) SayReplayed(call.name, position);
    if (result || PyErr_Occurred()) return result.release();
    problem = "what it takes of the step is not to be found";
  }
  ++plan().counts->not_replayed[{call.name, problem}];
  Say(call.name, " is not replayed: ", problem);
  const bool is_tried =
      context_.is_co_executing() && record != nullptr && record->tries_left > 0;
  return is_tried ? RunAndLearn(call, key) : run();
}

PyRef GradientsOpByOp::TryReplay(const GradientRecord& record) {
  if (!cursor_.ResumePending() || !context_.is_co_executing()) return PyRef();
  const Tensors found = FindTensors(record.taken);
  if (found.size() != record.taken.size()) return PyRef();
  Operands operands;
  for (const PyRef& tensor : found) {
    operands.push_back({tensor.get(), PyRef(), tensor});
  }
  Tensors held;
  if (!Fits(record, operands, &held) || !context_.is_co_executing()) {
    return PyRef();
  }
  PyRef result = PyRef::Steal(Replay(record, operands));
  if (result) call_log_.set_names(record.names_after);
  return result && LeaveTries(record) ? result : PyRef();
}

PyObject* GradientsOpByOp::RunAndLearn(const LibraryCall& call,
                                       const LibraryKey& key) {
  PyRef keep_alive = PyRef::Borrow(context_.controller());
  if (!Session::FlushAllTapes()) return nullptr;
  auto learning = Begin(0, true, PyRef());
  if (!learning) return nullptr;
  if (!context_.is_co_executing()) {
    return PyObject_Call(call.function, call.args, call.kwargs);
  }
  StepTensors step{history_, history_.num_names(), {}};
  PyRef result;
  std::vector<LoggedStep> steps;
  if (!Follow(call.function, call.args, call.kwargs, &*learning, &result,
              &steps)) {
    return result.release();
  }
  auto record = std::make_shared<GradientRecord>();
  const KerasContext context;
  const PureKey no_arguments(plan(), outputs_, false, false);
  PureLearner learner(plan(), outputs_, call_log_, cursor_, *learning, context,
                      no_arguments, false, &step);
  record->refusal = learner.Learn(steps, result.get(), {}, &*record);
  record->taken = std::move(step.taken);
  record->names_after = PyRef::Steal(
      PyObject_CallMethod(context_.controller(), "names", nullptr));
  if (!record->names_after) return nullptr;
  Keep(call, key, record);
  return result.release();
}

void GradientsOpByOp::Keep(const LibraryCall& call, const LibraryKey& key,
                           const std::shared_ptr<GradientRecord>& record) {
  record->num_replayed = &plan().counts->replayed[call.name];
  SayLearned(call.name, record->refusal);
  if (!record->refusal.empty()) {
    const auto before = plan().gradients_op_by_op.Find(key.value());
    ++plan().counts->not_replayed[{call.name, record->refusal}];
    record->tries_left = before == nullptr ? 2 : before->tries_left - 1;
    record->steps.clear();
    record->result = ResultPattern();
  }
  plan().gradients_op_by_op.Put(key.value(), record);
}

}  // namespace terra
