#include "kernels/session/execution.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/outputs/readable.h"
#include "kernels/plan/shapes.h"
#include "kernels/python/controller.h"
#include "kernels/python/python_scopes.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"
#include "kernels/runner/step.h"
#include "kernels/session/session.h"
#include "kernels/session/settling.h"
#include "kernels/session/step_run.h"
#include "kernels/tapes/tape_log.h"

namespace terra {

Execution::Execution(Session* session)
    : session_(*session),
      context_(session->context()),
      waits_(session->waits()),
      outputs_(session->outputs()),
      history_(session->history()),
      call_log_(session->call_log()),
      inputs_(session->inputs()),
      cursor_(session->cursor()),
      matcher_(session->matcher()),
      tapes_(session->tapes()) {}

bool Execution::Diverge(Reason reason, const std::string& detail) {
  return DivergeForSure(&session_, NameOf(reason), detail.c_str());
}

PyObject* Execution::Delegate(const Call& call, int number, Tensors* flat) {
  PlanNode* node = &plan().nodes[number];
  if (node->on_host) return RunOnHost(call, number);
  const bool is_folded = node->kind == NodeKind::kFolded;
  // Of every op, also of one that no gradient goes through or that has no
  // results: in which order a tape calls gradient functions depends on them.
  const bool records = call.route == Route::kFast && TapeIsActive();
  std::vector<tensorflow::PartialTensorShape> shapes;
  if (!is_folded && node->shape_rule != nullptr && !node->outputs.empty()) {
    shapes = InferOutputs(call, *node);
  }
  // Whether what it writes fits was seen by the shapes of its inputs.
  if (node->ChecksWrite()) NoteShapeUses(call);
  static const auto* unknown = new tensorflow::PartialTensorShape;
  auto shape_of = [&shapes](size_t i) -> const auto& {
    return i < shapes.size() ? shapes[i] : *unknown;
  };
  for (size_t i = 0; i < node->outputs.size(); ++i) {
    const OutputSpec& spec = node->outputs[i];
    // The tape asks for the shape at once, holding the GIL.
    if (records && !is_folded && !spec.shape_known &&
        !shape_of(i).IsFullyDefined() && spec.fetch_channel < 0) {
      // The next graph fetches it.
      if (!CallController(context_.controller(), "on_unplanned", "(iii)",
                          number, static_cast<int>(i), 1)) {
        return nullptr;
      }
      return OnCall(call);
    }
  }
  if (call_log_.is_learning_pure()) call_log_.LogOp(call, number);
  GcPause no_python_in_between;
  Tensors own;
  Tensors& all = flat == nullptr ? own : *flat;
  const size_t num_before = all.size();
  if (is_folded) {
    for (size_t i = 0; i < node->inputs.size(); ++i) {
      const InputRef& ref = node->inputs[i];
      if (ref.kind == InputKind::kJoin)
        inputs_.BindJoin(ref.a, call.inputs[i].get());
      if (ref.kind == InputKind::kConstant) {
        inputs_.NoteConstant(ref.a, call.inputs[i].get());
      }
    }
    for (const PyRef& tensor : node->folded) {
      all.push_back(SameValueNewObject(tensor.get()));
    }
    if (call_log_.is_learning_pure()) {
      call_log_.LogFolded(absl::MakeConstSpan(all).subspan(num_before));
    }
  } else {
    inputs_.BindInputs(call, *node);
    if (node->seeded) inputs_.PushSeeds(call, *node, number, shapes);
    if (node->info == nullptr) call_log_.Obstruct("it calls a function");
    for (size_t i = 0; i < node->outputs.size(); ++i) {
      const OutputSpec& spec = node->outputs[i];
      if (spec.same_as_input >= 0) {
        all.push_back(
            SameValueNewObject(call.inputs[spec.same_as_input].get()));
        continue;
      }
      const int output = static_cast<int>(i);
      all.push_back(outputs_.AddPending(spec, number, output,
                                        node->marker.get(), shape_of(i)));
      cursor_.NoteProduced(spec, number, output);
    }
  }
  const auto outputs = absl::MakeSpan(all).subspan(num_before);
  const size_t first_made = outputs_.size() - outputs.size();
  cursor_.Arrive(number);
  for (size_t i = 0; i < node->outputs.size(); ++i) {
    if (!node->outputs[i].shape_known) history_.hash().MixShape(shape_of(i));
  }
  if (records) {
    for (size_t i = 0; !is_folded && i < node->outputs.size(); ++i) {
      // It may have arrived already: the history tells it all the same.
      Made& made = outputs_[first_made + i];
      if (made.is_told) continue;
      call_log_.NoteShapeUse(static_cast<int32_t>(first_made + i));
      const Waited ready = outputs_.WaitReady(made);
      if (ready == Waited::kError) return nullptr;
      if (ready == Waited::kEnded && !Diverge(Reason::kOpError, node->name))
        return nullptr;
      if (ready != Waited::kReady) continue;
      history_.MixShapeOf(outputs[i].get());
      made.is_told = true;
    }
    if (!tapes_.Tell(node->info->py_name.get(), call.inputs,
                     node->tape_attrs.get(), outputs)) {
      return nullptr;
    }
  }
  if (flat == nullptr || outputs.empty()) {
    return WrapOutputs(call, outputs).release();
  }
  Py_RETURN_NONE;
}

std::vector<tensorflow::PartialTensorShape> Execution::InferOutputs(
    const Call& call, const PlanNode& node) {
  NoteShapeUses(call);
  const std::vector<KnownInput> inputs = matcher_.KnownInputs(call);
  std::vector<tensorflow::PartialTensorShape> shapes;
  std::vector<int> asked_for;
  InferShapes(*node.shape_rule, inputs, &shapes, &asked_for);
  for (const int i : asked_for) {
    if (node.inputs[i].kind == InputKind::kConstant) continue;
    PyObject* tensor = call.inputs[i].get();
    if (call_log_.is_learning()) call_log_.NoteShapeValue(tensor, node.name);
    if (inputs[i].value != nullptr && outputs_.Find(HandleOf(tensor)) < 0) {
      history_.MixShapeValue(tensor, *inputs[i].value);
    }
  }
  return shapes;
}

void Execution::NoteShapeUses(const Call& call) {
  if (!call_log_.is_learning()) return;
  for (const PyRef& input : call.inputs) call_log_.NoteShapeUse(input.get());
}

bool Execution::SettleWrite(const Call& call, int number) {
  const PlanNode& node = plan().nodes[number];
  if (matcher_.WriteFits(call, node)) return true;
  return CallController(context_.controller(), "on_uncertain_write", "(i)",
                        number) &&
         Diverge(Reason::kWriteChanged, node.name);
}

Waited Execution::AwaitInputs(const Call& call) {
  for (const PyRef& input : call.inputs) {
    const int32_t index = outputs_.Find(HandleOf(input.get()));
    if (index < 0) {
      if (!EnsureReadable(input.get(), Reading::kValue)) return Waited::kError;
      continue;
    }
    Made& made = outputs_[index];
    if (!made.ready->load()) {
      if (made.fetch_channel < 0) {
        // The next graph fetches it.
        return CallController(context_.controller(), "on_unplanned", "(iii)",
                              made.node, made.output, 1)
                   ? Waited::kEnded
                   : Waited::kError;
      }
      const Waited ready = outputs_.WaitReady(made);
      if (ready == Waited::kError) return ready;
      if (ready == Waited::kEnded) {
        return DivergeWaiting(Reason::kOpError, Describe(call));
      }
    }
    made.seen = true;
  }
  return Waited::kReady;
}

bool Execution::RecordAfterwards(const Call& call, int index, PyObject* marker,
                                 PyObject* outputs) {
  NestedScope recording;
  PyRef inputs = call.InputTuple();
  PyRef counts = call.CountTuple();
  if (!CallController(context_.controller(), "on_op", "(OiOOOO)", call.py_name,
                      call.route == Route::kFast ? 1 : 0, call.attrs.get(),
                      inputs.get(), counts.get(), call.given_name())) {
    return context_.AbandonTrace();
  }
  outputs_.AddAllReal(index, marker, outputs);
  return CallController(context_.controller(), "on_result", "(iO)", index,
                        outputs) ||
         context_.AbandonTrace();
}

bool Execution::RecordError(const Call& call, int index, PyObject* type) {
  NestedScope recording;
  PyRef inputs = call.InputTuple();
  PyRef counts = call.CountTuple();
  const bool is_recorded =
      CallController(context_.controller(), "on_op", "(OiOOOO)", call.py_name,
                     call.route == Route::kFast ? 1 : 0, call.attrs.get(),
                     inputs.get(), counts.get(), call.given_name()) &&
      CallController(context_.controller(), "on_error", "(iO)", index, type);
  return is_recorded || context_.AbandonTrace();
}

PyObject* Execution::RunImperative(const Call& call, int number) {
  PlanNode* node = &plan().nodes[number];
  const int index = cursor_.position();
  PyObject* marker = node->marker.get();
  inputs_.BindInputs(call, *node);
  // A gradient function sees attributes, which no plan knows here.
  if (TapeIsActive() &&
      (RunsPython(call) || AttributesMatch(node, call) != 1)) {
    PyErr_Clear();
    tapes_.NoteUserGradient();
  }
  if (node->check_channel >= 0) {
    const Waited ok = waits_.ForChannel(node->check_channel, number);
    if (ok == Waited::kError) return nullptr;
    if (ok == Waited::kEnded) {
      if (!Diverge(Reason::kOpError, "before " + Describe(call)))
        return nullptr;
      return OnCall(call);
    }
  }
  const Waited awaited = AwaitInputs(call);
  if (awaited == Waited::kError) return nullptr;
  if (awaited == Waited::kEnded) return OnCall(call);
  if (!context_.is_co_executing()) return OnCall(call);
  // Steps in flight may still change what this op reads.
  if (!SettleCall(call, &session_)) return nullptr;
  if (!context_.is_co_executing()) return OnCall(call);
  PyRef result = PyRef::Steal(ExecuteUntold(call));
  if (!result) {
    if (!node->may_raise || !PassAfterError(number)) LeaveAfterError(call);
    return nullptr;
  }
  if (!AwaitSeizure()) return nullptr;
  result = PyRef::Steal(FinishReal(call, number, index, std::move(result)));
  if (!result || !TellOfReal(call, marker, result.get())) return nullptr;
  return result.release();
}

// The op has run for real: notes its results, and tells the graph.
PyObject* Execution::FinishReal(const Call& call, int number, int index,
                                PyRef result) {
  PlanNode* node = &plan().nodes[number];
  PyObject* marker = node->marker.get();
  PyRef outputs = OutputList(result.get());
  const size_t n = PyList_GET_SIZE(outputs.get());
  bool as_planned = n == node->outputs.size();
  for (size_t i = 0; as_planned && i < n; ++i) {
    PyObject* tensor = PyList_GET_ITEM(outputs.get(), i);
    const OutputSpec& spec = node->outputs[i];
    tensorflow::PartialTensorShape shape;
    as_planned = EagerTensor_CheckExact(tensor) &&
                 HandleOf(tensor)->DataType() == spec.dtype &&
                 HandleOf(tensor)->Shape(&shape).ok() &&
                 spec.shape.IsCompatibleWith(shape);
  }
  if (context_.is_co_executing() && !as_planned &&
      !Diverge(Reason::kFeedChanged, "the result of " + Describe(call))) {
    return nullptr;
  }
  if (!context_.is_co_executing()) {
    // Diverged, or seized while the op ran: it belongs to the new trace.
    if (context_.mode() == Mode::kTracing &&
        !RecordAfterwards(call, index, marker, outputs.get())) {
      return nullptr;
    }
    return result.release();
  }
  for (size_t i = 0; i < n; ++i) {
    PyObject* tensor = PyList_GET_ITEM(outputs.get(), i);
    outputs_.AddReal(tensor, number, static_cast<int>(i), marker);
    cursor_.NoteProduced(node->outputs[i], number, static_cast<int>(i));
    const int channel = node->outputs[i].feed_channel;
    if (channel >= 0) inputs_.PutTensor(channel, tensor);
  }
  cursor_.Arrive(number);
  for (size_t i = 0; i < n; ++i) {
    if (!node->outputs[i].shape_known) {
      history_.MixShapeOf(PyList_GET_ITEM(outputs.get(), i));
    }
  }
  return cursor_.ResumePending() ? result.release() : nullptr;
}

bool Execution::PassAfterError(int number) {
  if (!PyErr_ExceptionMatches(PyExc_Exception)) return false;  // Ctrl-C
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  bool passes = AwaitSeizure() && context_.is_co_executing();
  if (passes) {
    const PlanNode& node = plan().nodes[number];
    for (size_t i = 0; i < node.outputs.size(); ++i) {
      const OutputSpec& spec = node.outputs[i];
      cursor_.NoteProduced(spec, number, static_cast<int>(i));
      if (spec.feed_channel < 0) continue;
      tensorflow::TensorShape shape;
      for (int k = 0; k < std::max(spec.shape.dims(), 0); ++k) {
        shape.AddDim(std::max<int64_t>(spec.shape.dim_size(k), 0));
      }
      Message message;
      message.tensor = tensorflow::Tensor(spec.dtype, shape);
      context_.step()->Send(spec.feed_channel, std::move(message));
    }
    passes = cursor_.ResumePending();
  }
  if (passes && context_.is_co_executing()) {
    cursor_.ArriveAfterError(number);
    tapes_.NoteUserGradient();
  }
  PyErr_Clear();
  PyErr_Restore(type, value, traceback);
  return passes;
}

void Execution::LeaveAfterError(const Call& call) {
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  const int index = cursor_.position();
  bool is_noted =
      AwaitSeizure() && (!context_.is_co_executing() ||
                         Diverge(Reason::kOpError, "in " + Describe(call)));
  if (is_noted && context_.mode() == Mode::kTracing) {
    is_noted = RecordError(call, index, type);
  }
  if (!is_noted) {
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return;
  }
  PyErr_Restore(type, value, traceback);
}

PyObject* Execution::Trace(const Call& call) {
  for (const PyRef& input : call.inputs) {
    // A tensor of an earlier step may still be pending.
    if (outputs_.Find(HandleOf(input.get())) < 0 &&
        !EnsureReadable(input.get(), Reading::kValue)) {
      return nullptr;
    }
  }
  PyRef inputs = call.InputTuple();
  PyRef counts = call.CountTuple();
  PyRef begun;
  {
    NestedScope recording;  // what the recorder reads is no read of the step
    begun = PyRef::Steal(PyObject_CallMethod(
        context_.controller(), "on_op", "OiOOOO", call.py_name,
        call.route == Route::kFast ? 1 : 0, call.attrs.get(), inputs.get(),
        counts.get(), call.given_name()));
  }
  if (!begun) return context_.AbandonTrace();
  const int node =
      static_cast<int>(PyLong_AsLong(PyTuple_GET_ITEM(begun.get(), 0)));
  PyObject* marker =
      outputs_.KeepMarker(PyRef::Borrow(PyTuple_GET_ITEM(begun.get(), 1)));
  outputs_.LookAtLifetimes(node);
  PyRef result = PyRef::Steal(ExecuteUntold(call));
  if (!result) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    const bool noted =
        CallController(context_.controller(), "on_error", "(iO)", node, type);
    if (!noted) return context_.AbandonTrace();
    PyErr_Restore(type, value, traceback);
    return nullptr;
  }
  PyRef outputs = OutputList(result.get());
  outputs_.AddAllReal(node, marker, outputs.get());
  {
    NestedScope recording;
    if (!CallController(context_.controller(), "on_result", "(iO)", node,
                        outputs.get())) {
      return context_.AbandonTrace();
    }
  }
  return TellOfReal(call, marker, result.get()) ? result.release() : nullptr;
}

PyObject* Execution::OnCall(const Call& call) {
  const int64_t delay_us = Delays().python_us.load(std::memory_order_relaxed);
  if (delay_us > 0) {
    ReleaseGil release;
    SleepAtRandom(delay_us);
  }
  if (!AwaitSeizure()) return nullptr;
  switch (context_.mode()) {
    case Mode::kTracing:
      return Trace(call);
    case Mode::kCoExecution:
      return context_.lamp().is_on() ? CoExecuteAndTell(call) : CoExecute(call);
    case Mode::kImperative:
    case Mode::kSeizing:  // by this very thread: an op run by a finalizer
      return Execute(call);
  }
  return nullptr;
}

bool Execution::AwaitSeizure() {
  while (context_.mode() == Mode::kSeizing) {
    // Waits, or goes on with what was interrupted.
    PyRef settled = PyRef::Steal(
        PyObject_CallMethod(context_.controller(), "settle", nullptr));
    if (!settled) return false;
    if (settled.get() == Py_False) return true;  // this thread is the one
  }
  return true;
}

PyObject* Execution::CoExecute(const Call& call) {
  Match match;
  if (!matcher_.FindNode(call, &match)) return nullptr;
  // Finding it may have waited, and this step may have been seized meanwhile.
  if (!context_.is_co_executing()) return OnCall(call);
  const int number = match.node;
  if (number < 0) {
    if (match.reason == Reason::kWriteChanged &&
        !CallController(context_.controller(), "on_uncertain_write", "(i)",
                        matcher_.refused_node())) {
      return nullptr;
    }
    if (match.reason == Reason::kIndexOutOfRange &&
        !CallController(context_.controller(), "on_index_out_of_range", "(i)",
                        matcher_.refused_feed())) {
      return nullptr;
    }
    if (!Diverge(match.reason, match.detail)) return nullptr;
    return OnCall(call);
  }
  const PlanNode& node = plan().nodes[number];
  cursor_.Decide(number);
  if (!cursor_.CloseEpochs(plan().levels[node.level].epoch)) return nullptr;
  if (!context_.is_co_executing()) return OnCall(call);
  const bool is_imperative = node.kind == NodeKind::kImperative;
  // The op that an epoch waits for is the first thing to happen in it.
  if (!(is_imperative && cursor_.BeginsEpoch(node)) && !cursor_.ResumePending())
    return nullptr;
  if (!context_.is_co_executing()) return OnCall(call);
  if (is_imperative) return RunImperative(call, number);
  PyRef result = PyRef::Steal(Delegate(call, number));
  if (!result || !LeaveTry(number)) return nullptr;
  return result.release();
}

bool Execution::LeaveTry(int number) {
  if (!context_.is_co_executing()) return true;
  const int exit_channel = plan().nodes[number].exit_channel;
  if (exit_channel < 0) return true;
  const Waited ok = waits_.ForChannel(exit_channel, number);
  if (ok == Waited::kError) return false;
  return ok == Waited::kReady ||
         Diverge(Reason::kOpError, "before the end of what a handler covers");
}

}  // namespace terra
