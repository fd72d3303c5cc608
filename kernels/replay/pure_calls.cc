#include "kernels/replay/pure_calls.h"

#include "kernels/cursor/claims.h"
#include "kernels/cursor/stack.h"
#include "kernels/outputs/readable.h"
#include "kernels/plan/hash.h"
#include "kernels/plan/plan.h"
#include "kernels/plan/reason.h"
#include "kernels/python/python_scopes.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/waiting.h"
#include "kernels/replay/gradients.h"
#include "kernels/session/tape_events.h"
#include "kernels/tapes/tape_log.h"

namespace terra {
namespace {

class MarkedCall {
 public:
  MarkedCall(const PureCall& call, ThreadState* thread)
      : is_marked_(call.marker != nullptr), thread_(*thread) {
    thread_.num_marked_calls += is_marked_;
  }
  ~MarkedCall() { thread_.num_marked_calls -= is_marked_; }

 private:
  const int is_marked_;
  ThreadState& thread_;
};

// What TensorFlow's eager context knows of this thread, or null. It stays where
// it is, and there is one context (EagerRuntime holds it).
const tensorflow::EagerContextThreadLocalData* EagerThread(
    ThreadState* thread) {
  if (thread->eager == nullptr) {
    thread->eager =
        tensorflow::GetEagerContextThreadLocalData(Runtime().py_context);
    if (thread->eager == nullptr) PyErr_Clear();
  }
  return thread->eager;
}

// Whether a layer says by a warning, each time, that it drops a mask.
bool WarnsOfMask(const PureCall& call, const PureKey& key) {
  if (!call.takes_objects || PyTuple_GET_SIZE(call.args) == 0) return false;
  static PyObject* mask_name = PyUnicode_InternFromString("mask");
  PyObject* given = call.kwargs == nullptr
                        ? nullptr
                        : PyDict_GetItemWithError(call.kwargs, mask_name);
  ClearOwnError();
  const bool has_mask =
      key.has_mask() || (given != nullptr && given != Py_None);
  if (!has_mask) return false;
  static PyObject* name = PyUnicode_InternFromString("supports_masking");
  PyRef supports =
      PyRef::Steal(PyObject_GetAttr(PyTuple_GET_ITEM(call.args, 0), name));
  if (!supports) ClearOwnError();  // a loss or a metric
  return supports.get() == Py_False;
}

}  // namespace

const char* PureCalls::WhyNotOnThread(ThreadState* thread) const {
  if (plan().check_devices) return "the program has device scopes";
  if (thread->num_accumulators > 0) {
    return "a forward accumulator computes at each of its ops";
  }
  // As C++ has it: Python's attributes of the same cost a third of a replay.
  const auto* local = EagerThread(thread);
  if (local == nullptr) return "a thread that TensorFlow does not know";
  if (!local->is_eager) return "a part of a graph that is being built";
  PyObject* callbacks = local->op_callbacks.get();
  if (callbacks == nullptr) return nullptr;
  const Py_ssize_t num_callbacks = PyList_CheckExact(callbacks)
                                       ? PyList_GET_SIZE(callbacks)
                                       : PyObject_Size(callbacks);
  if (num_callbacks == 0) return nullptr;
  PyErr_Clear();
  return "an op callback sees every op";
}

const char* PureCalls::KeyOf(const PureCall& call, bool is_at_fork,
                             PureKey* key) const {
  Hash& hash = key->hash();
  hash.Mix(reinterpret_cast<uintptr_t>(call.function));
  hash.Mix(static_cast<uint64_t>(cursor_.at()));
  hash.Mix(static_cast<uint64_t>(TapeIsActive()));
  hash.Mix(static_cast<uint64_t>(CurrentThread().num_watchers > 0));
  if (is_at_fork) hash.Mix(HashOfStack(cursor_.stop_frame()));
  if (call.marker != nullptr) {
    const Py_hash_t marker_hash = PyObject_Hash(call.marker);
    PyErr_Clear();
    if (marker_hash == -1) return "a forward op without a name";
    hash.Mix(static_cast<uint64_t>(marker_hash));
  }
  return key->Add(call);
}

PyObject* PureCalls::OnCall(const PureCall& call) {
  auto run = [&] {
    return PyObject_Call(call.function, call.args, call.kwargs);
  };
  if (!execution_.AwaitSeizure()) return nullptr;
  if (!context_.is_co_executing() || cursor_.is_bound() ||
      !Knobs().replays_calls.load()) {
    return run();
  }
  ThreadState& thread = CurrentThread();
  MarkedCall in_this_call(call, &thread);
  const bool is_at_fork = cursor_.IsAtFork();
  PureKey key(plan(), outputs_, call.takes_objects, is_at_fork);
  const bool is_part = thread.num_marked_calls > (call.marker != nullptr);
  const char* problem = WhyNotOnThread(&thread);
  if (problem == nullptr && is_part && call.marker == nullptr) {
    problem = "a part of a gradient function";
  }
  if (problem == nullptr) problem = KeyOf(call, is_at_fork, &key);
  if (!context_.is_co_executing()) return run();
  if (problem == nullptr && WarnsOfMask(call, key)) {
    problem = "the layer warns that it drops a mask";
    call_log_.ObstructPure(problem);
  }
  if (problem != nullptr) {
    // Of a gradient function it is said why it is not replayed, not of its
    // parts.
    if (!is_part) ++plan().counts->not_replayed[{call.name, problem}];
    Say(call.name, " is not replayed: ", problem);
    return run();
  }
  const auto record = plan().pure_calls.Find(key.value());
  if (record == nullptr || !record->anchors.AreAlive()) {
    Say(call.name, " is not known here");
    return RunAndLearn(call, key);
  }
  if (!record->refusal.empty()) {
    Say(call.name, " is not replayed: ", record->refusal);
    ++*record->num_refused;
    return record->tries_left > 0 ? RunAndLearn(call, key) : run();
  }
  if (!cursor_.ResumePending()) return nullptr;
  Tensors held;
  const bool fits =
      context_.is_co_executing() && Fits(*record, key.operands(), &held);
  if (PyErr_Occurred()) return nullptr;
  if (!context_.is_co_executing()) return run();
  if (!fits) {
    Say(call.name, " is known here, and does not fit");
    return RunAndLearn(call, key);
  }
  if (call.is_declared && Knobs().checks_pure.load()) {
    return Check(call, key, record);
  }
  const int position = cursor_.position();
  PyRef result = PyRef::Steal(Replay(*record, key.operands()));
  SayReplayed(call.name, position);
  return result && LeaveTries(*record) ? result.release() : nullptr;
}

bool PureCalls::LeaveTries(const PureRecord& record) {
  for (const PureStep& step : record.steps) {
    if (step.kind != PureKind::kOp) continue;
    if (!execution_.LeaveTry(step.node)) return false;
  }
  return true;
}

bool PureCalls::Fits(const PureRecord& record, const Operands& operands,
                     Tensors* held) {
  using Kind = TensorRef::Kind;
  if (record.guard && !record.guard.IsUnchanged()) return false;
  std::string detail;
  Claims claims;
  bool is_first = true;
  for (const PureStep& step : record.steps) {
    if (step.variable) {
      held->push_back(PyRef::Borrow(step.variable.get()));
      if (!held->back()) return false;
    }
    for (const TensorRef& ref : step.inputs) {
      if (!ref.outside) continue;
      held->push_back(PyRef::Borrow(ref.outside.get()));
      if (!held->back()) return false;
    }
    if (step.kind != PureKind::kOp) continue;
    const PlanNode& node = plan().nodes[step.node];
    if (is_first && !cursor_.IsLegal(step.node)) return false;
    is_first = false;
    if (plan().levels[node.level].epoch != cursor_.epoch()) return false;
    for (size_t i = 0; i < step.inputs.size(); ++i) {
      const TensorRef& ref = step.inputs[i];
      const InputRef& expected = node.inputs[i];
      if (ref.kind == Kind::kMade || ref.is_verified) continue;
      if (expected.kind == InputKind::kVariable &&
          inputs_.how_written(plan().variables[expected.a].variable) ==
              kInPlace) {
        return false;
      }
      PyObject* tensor =
          ref.kind == Kind::kObject ? ref.get() : operands[ref.number].tensor();
      if (matcher_.VerifyInput(expected, tensor, &claims, &detail) !=
              Reason::kNone ||
          !context_.is_co_executing()) {
        return false;
      }
    }
  }
  return true;
}

// One op of a replayed call; its results are added to `made`.
bool PureCalls::ReplayOp(const PureStep& step, const Operands& operands,
                         Tensors* made) {
  using Kind = TensorRef::Kind;
  Call call;
  call.info = step.info;
  call.py_name = step.info->py_name.get();
  call.route = step.route;
  call.counts = step.counts;
  call.attrs = step.attrs;
  for (const TensorRef& ref : step.inputs) {
    if (call_log_.is_learning() && ref.kind == Kind::kObject && ref.object) {
      call_log_.NoteKept(ref.object.get());
    }
    call.inputs.push_back(ref.kind == Kind::kObject ? PyRef::Borrow(ref.get())
                          : ref.kind == Kind::kMade
                              ? (*made)[ref.number]
                              : PyRef::Borrow(operands[ref.number].tensor()));
  }
  const size_t first = made->size();
  PyRef result;
  if (context_.is_co_executing() && plan().nodes[step.node].ChecksWrite() &&
      !execution_.SettleWrite(call, step.node)) {
    return false;
  }
  if (context_.is_co_executing()) {
    cursor_.Decide(step.node);
    result = PyRef::Steal(execution_.Delegate(call, step.node, made));
  } else {  // something that was destroyed has ended it
    result = PyRef::Steal(execution_.OnCall(call));
  }
  if (!result) return false;
  if (made->size() == first) {
    PyRef outputs = OutputList(result.get());
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(outputs.get()); ++i) {
      made->push_back(PyRef::Borrow(PyList_GET_ITEM(outputs.get(), i)));
    }
  }
  if (!step.record_attrs) return true;
  PyRef inputs = call.InputTuple();
  // For a call around this one that is being learned.
  call_log_.LogRecord(call.py_name, inputs.get(), step.record_attrs.get());
  const auto outputs = absl::MakeConstSpan(*made).subspan(first);
  // The tape asks for shapes, holding the GIL.
  for (const PyRef& output : outputs) {
    if (!EnsureReadable(output.get(), Reading::kShape)) return false;
  }
  return tapes_.Tell(call.py_name, call.inputs, step.record_attrs.get(),
                     outputs);
}

PyObject* PureCalls::Replay(const PureRecord& record,
                            const Operands& operands) {
  GcPause no_python_in_between;
  Tensors made;
  for (const PureStep& step : record.steps) {
    if (step.kind == PureKind::kAccess) {
      if (!AccessVariable(step.operand >= 0 ? operands[step.operand].object
                                            : step.variable.get())) {
        return nullptr;
      }
    } else if (step.kind == PureKind::kGradient) {
      if (!Gradients(&session_).Replay(step, operands, made)) return nullptr;
    } else if (step.kind != PureKind::kOp) {
      StopTapes(step.kind == PureKind::kStop);
    } else if (!ReplayOp(step, operands, &made)) {
      return nullptr;
    }
  }
  ++*record.num_replayed;
  for (const ResultPattern& change : record.changes) {
    if (!SetAttributes(change, operands[change.number].object, made,
                       operands)) {
      return nullptr;
    }
  }
  if (!record.context_changes.empty() &&
      !KerasContext().Set(record.context_changes)) {
    return nullptr;
  }
  return MakeResult(record.result, made, operands).release();
}

}  // namespace terra
