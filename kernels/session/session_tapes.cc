// Session: what gradient tapes are told of a step, and when.
#include "kernels/call/call.h"
#include "kernels/call/op_info.h"
#include "kernels/plan/hash.h"
#include "kernels/plan/pure_record.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"
#include "kernels/python/waiting.h"
#include "kernels/session/session.h"
#include "kernels/tapes/tape_event.h"
#include "kernels/tapes/tape_log.h"

namespace terra {
namespace {

// attrs + inferred attributes + the marker that names the forward op.
PyRef TapeAttrs(const Call& call, PyObject* marker) {
  PyRef list = PyRef::Steal(PySequence_List(call.attrs.get()));
  auto append = [&](PyObject* name, PyRef value) {
    PyList_Append(list.get(), name);
    PyList_Append(list.get(), value.get());
  };
  size_t next = 0;
  const OpInfo& info = *call.info;
  for (size_t i = 0; i < info.args.size(); ++i) {
    const OpInfo::Arg& arg = info.args[i];
    const int n = call.counts[i] < 0 ? 1 : call.counts[i];
    if (arg.kind == OpInfo::ArgKind::kRepeated) {
      PyRef name = PyRef::Steal(PyUnicode_FromString(arg.number_attr.c_str()));
      append(name.get(), PyRef::Steal(PyLong_FromLong(n)));
    }
    if (arg.kind == OpInfo::ArgKind::kHeterogeneous) {
      PyRef name = PyRef::Steal(PyUnicode_FromString(arg.list_attr.c_str()));
      PyRef types = PyRef::Steal(PyList_New(n));
      for (int k = 0; k < n; ++k) {
        PyList_SET_ITEM(
            types.get(), k,
            PyLong_FromLong(HandleOf(call.inputs[next + k].get())->DataType()));
      }
      append(name.get(), std::move(types));
    } else if (arg.type_attr >= 0 && n > 0) {
      PyRef name = PyRef::Steal(
          PyUnicode_FromString(info.type_attrs[arg.type_attr].name.c_str()));
      append(name.get(), PyRef::Steal(PyLong_FromLong(
                             HandleOf(call.inputs[next].get())->DataType())));
    }
    next += n;
  }
  static PyObject* name = PyUnicode_InternFromString("_terra_node");
  append(name, PyRef::Borrow(marker));
  return PyRef::Steal(PyList_AsTuple(list.get()));
}

Tensors ItemsOf(PyObject* list) {
  Tensors items;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i) {
    items.push_back(PyRef::Borrow(PyList_GET_ITEM(list, i)));
  }
  return items;
}

}  // namespace

void Session::Enter() {
  has_entered_ = true;
  CurrentThread().session = this;
  if (plan_ == nullptr) Live().push_back(this);
  PyRef stopped = PyRef::Steal(TFE_Py_TapeSetIsStopped());
  has_outer_tapes_ = TapeIsActive() || stopped.get() == Py_True;
  // Hooks may have been off when one was left.
  if (!has_outer_tapes_) ActiveTapes::OfThread().Clear();
}

void Session::set_mode(Mode mode) {
  // From here on ops are recorded at once, or the step is made up for.
  if (mode != mode_ && !FlushTapes()) PyErr_WriteUnraisable(controller_);
  mode_ = mode;
}

// ------------------------------------------------------------------ recording

bool Session::DefersTapes() {
  if (mode_ != Mode::kCoExecution || num_learning_ > 0 ||
      runs_user_gradients_ || has_outer_tapes_ ||
      !Knobs().replays_calls.load()) {
    return false;
  }
  const ActiveTapes& active = ActiveTapes::OfThread();
  if (active.version() != tapes_version_) {
    tapes_version_ = active.version();
    knows_active_tapes_ = !active.tapes().empty();
    for (PyObject* tape : active.tapes()) {
      knows_active_tapes_ = knows_active_tapes_ && KnowsTape(tape);
    }
  }
  return knows_active_tapes_;
}

bool Session::TellTapes(PyObject* name, absl::Span<const PyRef> inputs,
                        PyObject* attrs, absl::Span<const PyRef> outputs) {
  if (DefersTapes()) {
    tape_log_.Add(name, inputs, attrs, outputs);
    return true;
  }
  return FlushTapes() && tape_log_.Record(name, inputs, attrs, outputs);
}

PyObject* Session::ExecuteAndRecord(const Call& call, PyObject* marker) {
  NestedScope nested;
  if (!TapeIsActive()) return Execute(call);
  if (call.route == Route::kFull || RunsPython(call)) {
    return FlushTapes() ? Execute(call) : nullptr;
  }
  TFE_Py_TapeSetStopOnThread();
  PyRef result = PyRef::Steal(Execute(call));
  TFE_Py_TapeSetRestartOnThread();
  if (!result) return nullptr;
  PyRef outputs = OutputList(result.get());
  PyRef attrs = TapeAttrs(call, marker);
  if (!TellTapes(call.info->py_name.get(), call.inputs, attrs.get(),
                 ItemsOf(outputs.get()))) {
    return nullptr;
  }
  return result.release();
}

bool Session::FlushAllTapes() {
  if (Live().empty()) return true;
  // What a flush lets go of may run Python, which may end sessions.
  std::vector<std::pair<Session*, PyRef>> sessions;
  for (Session* session : Live()) {
    sessions.emplace_back(session, PyRef::Borrow(session->controller()));
  }
  for (const auto& [session, keep_alive] : sessions) {
    if (!session->FlushTapes()) return false;
  }
  return true;
}

// --------------------------------------------------------------------- events

bool Session::NoteAccess(PyObject* handle) {
  if (mode_ != Mode::kCoExecution) return true;
  if (!EagerTensor_CheckExact(handle)) return FlushTapes();
  return !tape_log_.NoteAccess(IdOf(handle)) || FlushTapes();
}

void Session::NoteTapeEvent(TapeEvent event, PyObject* tape, PyObject* tensor) {
  if (mode_ != Mode::kCoExecution) return;
  if (event == TapeEvent::kStop) {
    LogEvent(PureKind::kStop, nullptr);
  } else if (event == TapeEvent::kRestart) {
    LogEvent(PureKind::kRestart, nullptr);
  } else if (event != TapeEvent::kVariableAccessed) {
    ObstructPure("it uses a tape");
  }
  Hash& hash = history_.hash();
  hash.Mix(Event::kTape, static_cast<uint64_t>(event));
  if (event == TapeEvent::kNew) tapes_[tape] = num_tapes_++;
  if (tape != nullptr) {
    const auto known = tapes_.find(tape);
    hash.Mix(known == tapes_.end() ? ~0ull
                                   : static_cast<uint64_t>(known->second));
  }
  if (tensor == nullptr) return;
  if (EagerTensor_CheckExact(tensor)) {
    MixIdentity(tensor);
  } else {
    Obstruct("a tape was told of something that is no tensor");
    runs_user_gradients_ = true;
  }
}

void Session::NoteFlags(PyObject* flags) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(flags); ++i) {
    const int flag = PyObject_IsTrue(PyTuple_GET_ITEM(flags, i));
    history_.hash().Mix(Event::kNumber, static_cast<uint64_t>(flag));
  }
}

}  // namespace terra
