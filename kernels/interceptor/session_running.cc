// Session: running a call, delegated, imperative or traced.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/interceptor/controller.h"
#include "kernels/interceptor/hooks.h"
#include "kernels/interceptor/python_scopes.h"
#include "kernels/interceptor/session.h"
#include "kernels/interceptor/step_run.h"
#include "kernels/interceptor/tf_python.h"

namespace terra {

bool Session::Diverge(const char* reason, const std::string& detail) {
  return DivergeForSure(this, reason, detail.c_str());
}

PyObject* Session::Delegate(const Call& call, int number, Tensors* flat) {
  PlanNode* node = &plan_->nodes[number];
  if (node->on_host) return RunOnHost(call, number);
  const bool records = call.route == Route::kFast && !node->outputs.empty() &&
                       node->kind == NodeKind::kDelegated && TapeIsActive();
  std::vector<tensorflow::PartialTensorShape> shapes;
  if (node->kind == NodeKind::kDelegated && node->shape_rule != nullptr &&
      !node->outputs.empty()) {
    InferShapes(*node->shape_rule, KnownInputs(call), &shapes);
  }
  static const auto* unknown = new tensorflow::PartialTensorShape;
  auto shape_of = [&shapes](size_t i) -> const auto& {
    return i < shapes.size() ? shapes[i] : *unknown;
  };
  for (size_t i = 0; i < node->outputs.size(); ++i) {
    const OutputSpec& spec = node->outputs[i];
    // The tape asks for the shape at once, holding the GIL.
    if (records && !spec.shape_known && !shape_of(i).IsFullyDefined() &&
        spec.fetch_channel < 0) {
      // The next graph fetches it.
      if (!CallController(controller_, "on_unplanned", "(iii)", number,
                          static_cast<int>(i), 1)) {
        return nullptr;
      }
      return OnCall(call);
    }
  }
  if (!pure_learnings_.empty()) LogOp(call, number);
  GcPause no_python_in_between;
  Tensors own;
  Tensors& all = flat == nullptr ? own : *flat;
  const size_t num_before = all.size();
  if (node->kind == NodeKind::kFolded) {
    for (size_t i = 0; i < node->inputs.size(); ++i) {
      const InputRef& ref = node->inputs[i];
      if (ref.kind == InputKind::kJoin) BindJoin(ref.a, call.inputs[i].get());
      if (ref.kind == InputKind::kConstant) {
        NoteConstant(ref.a, call.inputs[i].get());
      }
    }
    for (const PyRef& tensor : node->folded) {
      all.push_back(SameValueNewObject(tensor.get()));
    }
  } else {
    BindInputs(call, *node);
    if (node->seeded) PushSeeds(call, *node, number, shapes);
    if (node->info == nullptr) Obstruct("it calls a function");
    for (size_t i = 0; i < node->outputs.size(); ++i) {
      const OutputSpec& spec = node->outputs[i];
      if (spec.same_as_input >= 0) {
        all.push_back(
            SameValueNewObject(call.inputs[spec.same_as_input].get()));
        continue;
      }
      all.push_back(MakePending(spec, number, static_cast<int>(i),
                                node->marker.get(), shape_of(i)));
    }
  }
  const auto outputs = absl::MakeSpan(all).subspan(num_before);
  const size_t first_made = made_.size() - outputs.size();
  Arrive(number);
  for (size_t i = 0; i < node->outputs.size(); ++i) {
    if (!node->outputs[i].shape_known) history_.hash().MixShape(shape_of(i));
  }
  if (records) {
    for (size_t i = 0; i < node->outputs.size(); ++i) {
      if (ShapeIsKnown(made_[first_made + i])) continue;
      const int ready = WaitReady(made_[first_made + i]);
      if (ready < 0) return nullptr;
      if (ready == 0 && !Diverge("op_error", node->name)) return nullptr;
      if (ready == 1) MixShapeOf(outputs[i].get());
    }
    if (!TellTapes(node->info->py_name.get(), call.inputs,
                   node->tape_attrs.get(), outputs)) {
      return nullptr;
    }
  }
  if (flat == nullptr || outputs.empty()) {
    return WrapOutputs(call, outputs).release();
  }
  Py_RETURN_NONE;
}

// 1 when every input has a value; 0 when the session diverged instead; -1
// with an exception set.
int Session::AwaitInputs(const Call& call) {
  for (const PyRef& input : call.inputs) {
    const int32_t index = FindMade(HandleOf(input.get()));
    if (index < 0) {
      if (!EnsureReadable(input.get(), Reading::kValue)) return -1;
      continue;
    }
    Made& made = made_[index];
    if (!made.ready->load()) {
      if (made.fetch_channel < 0) {
        // The next graph fetches it.
        return CallController(controller_, "on_unplanned", "(iii)", made.node,
                              made.output, 1)
                   ? 0
                   : -1;
      }
      const int ready = WaitReady(made);
      if (ready < 0) return -1;
      if (ready == 0) return Diverge("op_error", Describe(call)) ? 0 : -1;
    }
    made.seen = true;
  }
  return 1;
}

bool Session::RecordAfterwards(const Call& call, int index, PyObject* marker,
                               PyObject* outputs) {
  NestedScope recording;
  PyRef inputs = call.InputTuple();
  PyRef counts = call.CountTuple();
  if (!CallController(controller_, "on_op", "(OiOOOO)", call.py_name,
                      call.route == Route::kFast ? 1 : 0, call.attrs.get(),
                      inputs.get(), counts.get(), call.given_name())) {
    return AbandonTrace();
  }
  AddReal(index, marker, outputs);
  return CallController(controller_, "on_result", "(iO)", index, outputs) ||
         AbandonTrace();
}

bool Session::RecordError(const Call& call, int index, PyObject* type) {
  NestedScope recording;
  PyRef inputs = call.InputTuple();
  PyRef counts = call.CountTuple();
  const bool is_recorded =
      CallController(controller_, "on_op", "(OiOOOO)", call.py_name,
                     call.route == Route::kFast ? 1 : 0, call.attrs.get(),
                     inputs.get(), counts.get(), call.given_name()) &&
      CallController(controller_, "on_error", "(iO)", index, type);
  return is_recorded || AbandonTrace();
}

PyObject* Session::RunImperative(const Call& call, int number) {
  PlanNode* node = &plan_->nodes[number];
  const int index = position();
  PyObject* marker = node->marker.get();
  BindInputs(call, *node);
  // A gradient function sees attributes, which no plan knows here.
  if (TapeIsActive() &&
      (RunsPython(call) || AttributesMatch(node, call) != 1)) {
    PyErr_Clear();
    NoteUserGradient();
  }
  if (node->check_channel >= 0) {
    const int ok = WaitChannel(node->check_channel);
    if (ok < 0) return nullptr;
    if (ok == 0) {
      if (!Diverge("op_error", "before " + Describe(call))) return nullptr;
      return OnCall(call);
    }
  }
  const int awaited = AwaitInputs(call);
  if (awaited < 0) return nullptr;
  if (awaited == 0) return OnCall(call);
  if (mode_ != Mode::kCoExecution) return OnCall(call);
  // Steps in flight may still change what this op reads.
  if (!SettleCall(call, this)) return nullptr;
  if (mode_ != Mode::kCoExecution) return OnCall(call);
  PyRef result = PyRef::Steal(ExecuteAndRecord(call, marker));
  if (!result) {
    if (!node->may_raise || !PassAfterError(number)) LeaveAfterError(call);
    return nullptr;
  }
  if (!AwaitSeizure()) return nullptr;
  return FinishReal(call, number, index, std::move(result));
}

// The op has run for real: notes its results, and tells the graph.
PyObject* Session::FinishReal(const Call& call, int number, int index,
                              PyRef result) {
  PlanNode* node = &plan_->nodes[number];
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
  if (mode_ == Mode::kCoExecution && !as_planned &&
      !Diverge("feed_changed", "the result of " + Describe(call))) {
    return nullptr;
  }
  if (mode_ != Mode::kCoExecution) {
    // Diverged, or seized while the op ran: it belongs to the new trace.
    if (mode_ == Mode::kTracing &&
        !RecordAfterwards(call, index, marker, outputs.get())) {
      return nullptr;
    }
    return result.release();
  }
  for (size_t i = 0; i < n; ++i) {
    PyObject* tensor = PyList_GET_ITEM(outputs.get(), i);
    RegisterReal(tensor, number, static_cast<int>(i), marker);
    NoteProduced(node->outputs[i], number, static_cast<int>(i));
    const int channel = node->outputs[i].feed_channel;
    if (channel >= 0) PutTensor(channel, tensor);
  }
  Arrive(number);
  for (size_t i = 0; i < n; ++i) {
    if (!node->outputs[i].shape_known) {
      MixShapeOf(PyList_GET_ITEM(outputs.get(), i));
    }
  }
  return ResumePending() ? result.release() : nullptr;
}

bool Session::PassAfterError(int number) {
  if (!PyErr_ExceptionMatches(PyExc_Exception)) return false;  // Ctrl-C
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  bool passes = AwaitSeizure() && mode_ == Mode::kCoExecution;
  if (passes) {
    const PlanNode& node = plan_->nodes[number];
    for (size_t i = 0; i < node.outputs.size(); ++i) {
      const OutputSpec& spec = node.outputs[i];
      NoteProduced(spec, number, static_cast<int>(i));
      if (spec.feed_channel < 0) continue;
      tensorflow::TensorShape shape;
      for (int k = 0; k < std::max(spec.shape.dims(), 0); ++k) {
        shape.AddDim(std::max<int64_t>(spec.shape.dim_size(k), 0));
      }
      Message message;
      message.tensor = tensorflow::Tensor(spec.dtype, shape);
      step_->Send(spec.feed_channel, std::move(message));
    }
    passes = ResumePending();
  }
  if (passes && mode_ == Mode::kCoExecution) {
    raised_.push_back(position());
    Arrive(number);
    history_.hash().Mix(Event::kNumber, ~uint64_t{0});
    NoteUserGradient();
  }
  PyErr_Clear();
  PyErr_Restore(type, value, traceback);
  return passes;
}

void Session::LeaveAfterError(const Call& call) {
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  const int index = position();
  bool is_noted =
      AwaitSeizure() && (mode_ != Mode::kCoExecution ||
                         Diverge("op_error", "in " + Describe(call)));
  if (is_noted && mode_ == Mode::kTracing) {
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

PyObject* Session::Trace(const Call& call) {
  for (const PyRef& input : call.inputs) {
    // A tensor of an earlier step may still be pending.
    if (FindMade(HandleOf(input.get())) < 0 &&
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
        controller_, "on_op", "OiOOOO", call.py_name,
        call.route == Route::kFast ? 1 : 0, call.attrs.get(), inputs.get(),
        counts.get(), call.given_name()));
  }
  if (!begun) return AbandonTrace();
  const int node =
      static_cast<int>(PyLong_AsLong(PyTuple_GET_ITEM(begun.get(), 0)));
  PyObject* marker =
      KeepMarker(PyRef::Borrow(PyTuple_GET_ITEM(begun.get(), 1)));
  lifetimes_.Look(made_, node);
  PyRef result = PyRef::Steal(ExecuteAndRecord(call, marker));
  if (!result) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    const bool noted =
        CallController(controller_, "on_error", "(iO)", node, type);
    if (!noted) return AbandonTrace();
    PyErr_Restore(type, value, traceback);
    return nullptr;
  }
  PyRef outputs = OutputList(result.get());
  AddReal(node, marker, outputs.get());
  NestedScope recording;
  if (!CallController(controller_, "on_result", "(iO)", node, outputs.get())) {
    return AbandonTrace();
  }
  return result.release();
}

PyObject* Session::OnCall(const Call& call) {
  const int64_t delay_us = Delays().python_us.load(std::memory_order_relaxed);
  if (delay_us > 0) {
    ReleaseGil release;
    SleepAtRandom(delay_us);
  }
  if (!AwaitSeizure()) return nullptr;
  switch (mode_) {
    case Mode::kTracing:
      return Trace(call);
    case Mode::kCoExecution:
      return CoExecute(call);
    case Mode::kImperative:
    case Mode::kSeizing:  // by this very thread: an op run by a finalizer
      return Execute(call);
  }
  return nullptr;
}

bool Session::AwaitSeizure() {
  while (mode_ == Mode::kSeizing) {
    // Waits, or goes on with what was interrupted.
    PyRef settled =
        PyRef::Steal(PyObject_CallMethod(controller_, "settle", nullptr));
    if (!settled) return false;
    if (settled.get() == Py_False) return true;  // this thread is the one
  }
  return true;
}

PyObject* Session::CoExecute(const Call& call) {
  const char* reason = nullptr;
  std::string detail;
  const int number = FindNode(call, &reason, &detail);
  if (number == -2) return nullptr;
  // Finding it may have waited, and this step may have been seized meanwhile.
  if (mode_ != Mode::kCoExecution) return OnCall(call);
  if (number < 0) {
    if (std::strcmp(reason, "write_changed") == 0 &&
        !CallController(controller_, "on_uncertain_write", "(i)",
                        uncertain_write_)) {
      return nullptr;
    }
    if (std::strcmp(reason, "index_out_of_range") == 0 &&
        !CallController(controller_, "on_index_out_of_range", "(i)",
                        refused_feed_)) {
      return nullptr;
    }
    if (!Diverge(reason, detail)) return nullptr;
    return OnCall(call);
  }
  const PlanNode& node = plan_->nodes[number];
  if (bound_for_ != number) {
    Decide(number);
    bound_for_ = number;
  }
  if (!CloseEpochs(plan_->levels[node.level].epoch)) return nullptr;
  if (mode_ != Mode::kCoExecution) return OnCall(call);
  const bool is_imperative = node.kind == NodeKind::kImperative;
  // The op that an epoch waits for is the first thing to happen in it.
  if (!(is_imperative && BeginsEpoch(node)) && !ResumePending()) return nullptr;
  if (mode_ != Mode::kCoExecution) return OnCall(call);
  if (is_imperative) return RunImperative(call, number);
  const int exit_channel = node.exit_channel;
  PyRef result = PyRef::Steal(Delegate(call, number));
  if (!result || !LeaveTry(exit_channel, number)) return nullptr;
  return result.release();
}

bool Session::LeaveTry(int exit_channel, int number) {
  if (exit_channel < 0 || mode_ != Mode::kCoExecution) return true;
  const int ok = WaitChannel(exit_channel, number);
  if (ok < 0) return false;
  return ok > 0 || Diverge("op_error", "before the end of what a handler covers");
}

}  // namespace terra
