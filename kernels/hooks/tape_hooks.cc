#include "kernels/hooks/tape_hooks.h"

#include <algorithm>
#include <array>

#include "kernels/python/thread.h"
#include "kernels/replay/gradients.h"
#include "kernels/replay/library_call.h"
#include "kernels/replay/library_calls.h"
#include "kernels/session/session.h"
#include "kernels/session/tape_events.h"
#include "kernels/tapes/tape_event.h"
#include "kernels/tapes/tape_log.h"

namespace terra {
namespace {

PyObject* Argument(PyObject* args, Py_ssize_t i) {
  return i < PyTuple_GET_SIZE(args) ? PyTuple_GET_ITEM(args, i) : nullptr;
}

PyObject* NewTape(PyObject* original, PyObject* args, PyObject* kwargs) {
  PyRef tape = PyRef::Steal(PyObject_Call(original, args, kwargs));
  if (!tape) return nullptr;
  ActiveTapes::OfThread().Enter(tape.get());
  // Another tape may have been there before.
  for (Session* session : Session::Live()) session->tapes().Forget(tape.get());
  Session* session = SessionOfTapes();
  if (session != nullptr) {
    session->tapes().Prune();
    session->tapes().NoteEvent(TapeEvent::kNew, tape.get(), nullptr);
    session->tapes().NoteFlags(args);
  }
  return tape.release();
}

template <TapeEvent event>
PyObject* TapeOnly(PyObject* original, PyObject* args, PyObject* kwargs) {
  Session* session = SessionOfTapes();
  if (session != nullptr) {
    session->tapes().NoteEvent(event, Argument(args, 0), nullptr);
  }
  PyObject* tape = Argument(args, 0);
  if (event == TapeEvent::kEnter && tape != nullptr) {
    ActiveTapes::OfThread().Enter(tape);
  } else if (event == TapeEvent::kLeave && tape != nullptr) {
    ActiveTapes::OfThread().Leave(tape);
  }
  return PyObject_Call(original, args, kwargs);
}

// Asks tapes what they know, or tells them what they must hear in order.
PyObject* Look(PyObject* original, PyObject* args, PyObject* kwargs) {
  if (!Session::FlushAllTapes()) return nullptr;
  return PyObject_Call(original, args, kwargs);
}

// What was put off stays so if it is not for this tape: that only has to hear
// of a tensor or a variable before the ops on it.
PyObject* WatchOn(PyObject* tape, PyObject* original, PyObject* args,
                  PyObject* kwargs) {
  Session* session = SessionOfTapes();
  if (session != nullptr && !session->tapes().log().HasFor(tape)) {
    return PyObject_Call(original, args, kwargs);
  }
  return Look(original, args, kwargs);
}

PyObject* Watch(PyObject* original, PyObject* args, PyObject* kwargs) {
  Session* session = SessionOfTapes();
  if (session != nullptr && PyTuple_GET_SIZE(args) == 2) {
    session->tapes().NoteEvent(TapeEvent::kWatch, Argument(args, 0),
                               Argument(args, 1));
  }
  return WatchOn(Argument(args, 0), original, args, kwargs);
}

PyObject* WatchVariable(PyObject* original, PyObject* args, PyObject* kwargs) {
  Session* session = SessionOfTapes();
  if (session != nullptr && PyTuple_GET_SIZE(args) == 2) {
    PyRef handle = HandleOfVariable(Argument(args, 1));
    session->tapes().NoteEvent(TapeEvent::kWatchVariable, Argument(args, 0),
                               handle.get());
  }
  return WatchOn(Argument(args, 0), original, args, kwargs);
}

PyObject* VariableAccessed(PyObject* original, PyObject* args,
                           PyObject* kwargs) {
  if (PyTuple_GET_SIZE(args) == 1 && !NoteVariableAccessed(Argument(args, 0))) {
    return nullptr;
  }
  return PyObject_Call(original, args, kwargs);
}

// Records an op whose gradient is a Python function.
PyObject* RecordOperation(PyObject* original, PyObject* args,
                          PyObject* kwargs) {
  TellingScope telling;
  Session* session = SessionOfTapes();
  if (session == nullptr || !TapeIsActive()) {
    return Look(original, args, kwargs);
  }
  return Gradients(session).OnRecordOperation(original, args, kwargs);
}

// A forward accumulator computes at each op: tapes hear of it at once.
template <int change>
PyObject* Accumulator(PyObject* original, PyObject* args, PyObject* kwargs) {
  if (change > 0 && !Session::FlushAllTapes()) return nullptr;
  CountAccumulators(change);
  return PyObject_Call(original, args, kwargs);
}

template <int change>
PyObject* Watcher(PyObject* original, PyObject* args, PyObject* kwargs) {
  int& number = CurrentThread().num_watchers;
  number = std::max(number + change, 0);  // one may be older than the hooks
  return PyObject_Call(original, args, kwargs);
}

// (tape, targets, sources, output gradients, raw sources, unconnected)
PyObject* Gradient(PyObject* original, PyObject* args, PyObject* kwargs) {
  Session* session = SessionOfTapes();
  if (session == nullptr || PyTuple_GET_SIZE(args) != 6) {
    return Look(original, args, kwargs);
  }
  LibraryCall call{
      "GradientTape.gradient", original, args, kwargs, {}, true, false};
  call.given = {Argument(args, 1), Argument(args, 2), Argument(args, 3),
                Argument(args, 5)};
  ++CurrentThread().num_gradients;
  PyObject* gradients = OrKeptError(LibraryCalls(session).OnCall(call));
  --CurrentThread().num_gradients;
  return gradients;
}

using Hook = PyObject* (*)(PyObject*, PyObject*, PyObject*);

PyMethodDef Method(const char* name, Hook hook) {
  return {name,
          reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(hook)),
          METH_VARARGS | METH_KEYWORDS, nullptr};
}

}  // namespace

PyRef WrapTapeFunction(const std::string& name, PyObject* original) {
  static std::array<PyMethodDef, 18> methods = {
      Method("TapeSetNew", NewTape),
      Method("TapeSetAdd", TapeOnly<TapeEvent::kEnter>),
      Method("TapeSetRemove", TapeOnly<TapeEvent::kLeave>),
      Method("TapeSetStopOnThread", TapeOnly<TapeEvent::kStop>),
      Method("TapeSetRestartOnThread", TapeOnly<TapeEvent::kRestart>),
      Method("TapeWatch", Watch),
      Method("TapeWatchVariable", WatchVariable),
      Method("TapeVariableAccessed", VariableAccessed),
      Method("TapeSetRecordOperation", RecordOperation),
      Method("TapeSetRecordOperationBackprop", RecordOperation),
      Method("TapeSetRecordOperationForwardprop", Look),
      Method("TapeSetShouldRecordBackprop", Look),
      Method("TapeSetPossibleGradientTypes", Look),
      Method("ForwardAccumulatorSetAdd", Accumulator<1>),
      Method("ForwardAccumulatorSetRemove", Accumulator<-1>),
      Method("VariableWatcherNew", Watcher<1>),
      Method("VariableWatcherRemove", Watcher<-1>),
      Method("TapeGradient", Gradient),
  };
  for (PyMethodDef& method : methods) {
    if (name == method.ml_name) {
      return PyRef::Steal(PyCFunction_New(&method, original));
    }
  }
  PyErr_Format(PyExc_ValueError, "no hook for %s", name.c_str());
  return PyRef();
}

}  // namespace terra
