// Pure calls, followed op by op and learned (docs/design/0009).
#include <optional>
#include <utility>
#include <vector>

#include "kernels/outputs/call_log.h"
#include "kernels/plan/pure_record.h"
#include "kernels/python/controller.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/tf_python.h"
#include "kernels/replay/pure_call.h"
#include "kernels/replay/pure_calls.h"
#include "kernels/tapes/tape_log.h"

namespace terra {

std::optional<PureLearning> PureCalls::Begin(size_t num_made, bool has_history,
                                             PyRef context_values) const {
  PyRef first_id = PyRef::Steal(PyObject_CallNoArgs(Runtime().next_id));
  if (!first_id || !tapes_.Flush()) return std::nullopt;
  return PureLearning{
      CallLearning(PyLong_AsLongLong(first_id.get()), num_made, has_history),
      0,
      cursor_.path().size(),
      outputs_.size(),
      cursor_.epoch(),
      call_log_.num_obstacles(),
      std::move(context_values),
      TapeIsActive()};
}

bool PureCalls::Follow(PyObject* function, PyObject* args, PyObject* kwargs,
                       PureLearning* learning, PyRef* result,
                       std::vector<LoggedStep>* steps) {
  call_log_.BeginPure(learning);
  *result = PyRef::Steal(PyObject_Call(function, args, kwargs));
  *steps = call_log_.EndPure();
  return *result && session_.is_live() && context_.is_co_executing() &&
         !cursor_.is_bound();
}

PyObject* PureCalls::RunAndLearn(const PureCall& call, const PureKey& key) {
  PyRef keep_alive = PyRef::Borrow(context_.controller());
  // The call may empty the lists and dictionaries that hold these.
  Tensors held;
  for (PyObject* object : key.objects()) held.push_back(PyRef::Borrow(object));
  for (PyObject* each : key.containers()) held.push_back(PyRef::Borrow(each));
  PyRef guard = GuardObjects(key.objects());
  if (PyErr_Occurred()) return nullptr;
  const KerasContext context;
  auto learning = Begin(outputs_.size(), false, context.values());
  if (!learning) return nullptr;
  if (!context_.is_co_executing()) {
    return PyObject_Call(call.function, call.args, call.kwargs);
  }
  std::vector<TensorAttributes> before;
  for (const Operand& operand : key.operands()) {
    before.push_back(operand.handle ? TensorAttributes()
                                    : AttributesOf(operand.object));
  }
  PyRef result;
  std::vector<LoggedStep> steps;
  if (!Follow(call.function, call.args, call.kwargs, &*learning, &result,
              &steps)) {
    return result.release();
  }
  auto record = std::make_shared<PureRecord>();
  PureLearner learner(plan(), outputs_, call_log_, cursor_, *learning, context,
                      key, call.takes_objects);
  record->refusal = learner.Learn(steps, result.get(), before, &*record);
  KeepGuard(std::move(guard), &record->guard, &record->refusal);
  record->anchors = key.anchors();
  record->anchors.Add(call.function);
  Keep(call.name, key.value(), record);
  return result.release();
}

void PureCalls::Keep(const char* name, uint64_t key,
                     const std::shared_ptr<PureRecord>& record) {
  record->num_replayed = &plan().counts->replayed[name];
  SayLearned(name, record->refusal);
  if (!record->refusal.empty()) {
    const auto before = plan().pure_calls.Find(key);
    const bool is_first = before == nullptr || !before->anchors.AreAlive();
    record->num_refused = &plan().counts->not_replayed[{name, record->refusal}];
    ++*record->num_refused;
    record->tries_left = is_first ? 1 : before->tries_left - 1;
    record->steps.clear();
    record->result = ResultPattern();
    record->changes.clear();
    record->context_changes.clear();
  }
  plan().pure_calls.Put(key, record);
}

PyObject* PureCalls::Check(const PureCall& call, const PureKey& key,
                           const std::shared_ptr<const PureRecord>& known) {
  PyRef keep_alive = PyRef::Borrow(context_.controller());
  PyRef result = PyRef::Steal(RunAndLearn(call, key));
  if (!result) return nullptr;
  const char* difference = "it ran other ops";
  if (context_.is_co_executing()) {
    difference = DifferenceOf(*known, *plan().pure_calls.Find(key.value()));
  }
  if (difference != nullptr &&
      !CallController(context_.controller(), "on_impure", "(ss)", call.name,
                      difference)) {
    return nullptr;
  }
  return result.release();
}

}  // namespace terra
