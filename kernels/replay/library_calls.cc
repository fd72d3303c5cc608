#include "kernels/replay/library_calls.h"

#include <string>

#include "kernels/call/call.h"
#include "kernels/cursor/claims.h"
#include "kernels/plan/reason.h"
#include "kernels/python/python_scopes.h"
#include "kernels/python/thread.h"
#include "kernels/python/waiting.h"
#include "kernels/replay/gradients_op_by_op.h"
#include "kernels/tapes/tape_log.h"

namespace terra {
namespace {

bool ReplayIsOn() { return Knobs().replays_calls.load(); }

}  // namespace

std::string LibraryCalls::WhyNotNow(const LibraryCall& call) const {
  if (TapeIsActive()) return "a tape was recording it";
  if (CurrentThread().num_watchers > 0)
    return "the variables it uses were being watched";
  if (!call.differentiates) return "";
  if (tapes_.runs_user_gradients()) return "it runs a gradient of the user's";
  return tapes_.Knows(PyTuple_GET_ITEM(call.args, 0))
             ? ""
             : "the tape was not made in this step";
}

const char* LibraryCalls::KeyOf(const LibraryCall& call,
                                LibraryKey* key) const {
  const int tape = call.differentiates
                       ? tapes_.NumberOf(PyTuple_GET_ITEM(call.args, 0))
                       : -1;
  return key->Add(call, tape, plan().check_devices, cursor_.position());
}

PyObject* LibraryCalls::OnCall(const LibraryCall& call) {
  auto run = [&]() -> PyObject* {
    if (call.differentiates && !Session::FlushAllTapes()) return nullptr;
    return PyObject_Call(call.function, call.args, call.kwargs);
  };
  if (!execution_.AwaitSeizure()) return nullptr;
  if (call.differentiates && TapeIsActive()) {
    return GradientsOpByOp(&session_).OnCall(call);
  }
  if (!context_.is_co_executing() || cursor_.is_bound() || !ReplayIsOn()) {
    return run();
  }
  std::string problem = WhyNotNow(call);
  LibraryKey key(&history_);
  if (problem.empty()) {
    const char* in_arguments = KeyOf(call, &key);
    if (!context_.is_co_executing()) return run();
    if (in_arguments != nullptr) problem = in_arguments;
  }
  if (!problem.empty()) {
    ++plan().counts->not_replayed[{call.name, problem}];
    Say(call.name, " is not replayed: ", problem);
    return run();
  }
  const std::shared_ptr<const CallRecord> record =
      plan().calls.Find(key.value());
  if (record == nullptr || !record->anchors.AreAlive()) {
    Say(call.name, " is not known here");
    return RunAndLearn(call, key);
  }
  if (!record->refusal.empty()) {
    if (call.differentiates && record->tries_left <= 0) {
      return GradientsOpByOp(&session_).OnCall(call);
    }
    ++plan().counts->not_replayed[{call.name, record->refusal}];
    Say(call.name, " is not replayed: ", record->refusal);
    if (record->tries_left > 0) return RunAndLearn(call, key);
    return run();
  }
  if (!cursor_.ResumePending()) return nullptr;
  const bool fits = context_.is_co_executing() && Fits(*record);
  if (PyErr_Occurred()) return nullptr;
  if (!fits || !context_.is_co_executing()) {
    ++plan().counts->not_replayed[{call.name,
                                   "something it depends on has changed"}];
    Say(call.name, " is known here, and does not fit");
    return RunAndLearn(call, key);
  }
  const int position = cursor_.position();
  PyRef result = PyRef::Steal(Replay(*record));
  SayReplayed(call.name, position);
  for (const int node : record->path) {
    if (!result || !execution_.LeaveTry(node)) return nullptr;
  }
  return result.release();
}

bool LibraryCalls::Fits(const CallRecord& record) {
  using Kind = Binding::Kind;
  std::string detail;
  Claims claims;
  if (record.guard && !record.guard.IsUnchanged()) return false;
  for (size_t i = 0; i < record.bindings.size(); ++i) {
    if (record.own[i]) continue;
    const Binding& binding = record.bindings[i];
    Reason problem = Reason::kNone;
    if (binding.HasName() && history_.Named(binding.a) == nullptr) return false;
    if (binding.kind == Kind::kConstant || binding.kind == Kind::kFeed) {
      const auto kind =
          binding.kind == Kind::kFeed ? InputKind::kFeed : InputKind::kConstant;
      problem = matcher_.VerifyInput(
          {kind, binding.slot, 0}, history_.Named(binding.a), &claims, &detail);
    } else if (binding.kind == Kind::kVariable) {
      problem =
          matcher_.VerifyInput({InputKind::kVariable, binding.slot, 0},
                               history_.Named(binding.a), &claims, &detail);
    } else if (binding.kind == Kind::kJoinOutside) {
      problem =
          matcher_.VerifyInput({InputKind::kJoin, binding.slot, 0},
                               history_.Named(binding.a), &claims, &detail);
    }
    if (problem != Reason::kNone || !context_.is_co_executing()) return false;
  }
  return true;
}

PyObject* LibraryCalls::Replay(const CallRecord& record) {
  GcPause no_python_in_between;
  cursor_.Jump(record);
  for (size_t i = 0; i < record.bindings.size(); ++i) {
    inputs_.Rebind(record.bindings[i], record.own[i].get());
  }
  Tensors made;
  made.reserve(record.made.size());
  for (const CallRecord::Output& output : record.made) {
    PlanNode& node = plan().nodes[output.node];
    made.push_back(outputs_.AddPending(node.outputs[output.output], output.node,
                                       output.output, node.marker.get(),
                                       output.shape));
  }
  history_.JumpTo(record.history_after, record.num_names_after);
  call_log_.set_names(record.names_after);
  ++*record.num_replayed;
  return MakeResult(record.result, made, {}).release();
}

}  // namespace terra
