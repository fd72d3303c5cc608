#include "kernels/session/tape_events.h"

#include <algorithm>

#include "kernels/plan/pure_record.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"
#include "kernels/session/session.h"
#include "kernels/tapes/tape_event.h"
#include "kernels/tapes/tape_log.h"

namespace terra {

Session* SessionOfTapes() {
  const ThreadState& thread = CurrentThread();
  if (thread.session == nullptr || thread.nested > 0) return nullptr;
  return thread.session->plan() == nullptr ? nullptr : thread.session;
}

PyRef HandleOfVariable(PyObject* variable) {
  static PyObject* name = PyUnicode_InternFromString("_handle");
  PyRef handle = PyRef::Steal(PyObject_GetAttr(variable, name));
  if (handle) return handle;
  PyErr_Clear();
  return PyRef::Borrow(variable);
}

bool NoteVariableAccessed(PyObject* variable) {
  Session* session = SessionOfTapes();
  if (session == nullptr) return true;
  const bool is_taped = TapeIsActive();
  if (is_taped || CurrentThread().num_watchers > 0) {
    session->call_log().LogEvent(PureKind::kAccess, variable);
  }
  if (!is_taped) return true;
  PyRef handle = HandleOfVariable(variable);
  session->tapes().NoteEvent(TapeEvent::kVariableAccessed, nullptr,
                             handle.get());
  return session->tapes().NoteAccess(handle.get());
}

bool AccessVariable(PyObject* variable) {
  if (!NoteVariableAccessed(variable)) return false;
  TFE_Py_TapeVariableAccessed(variable);
  PyObject* watcher = Runtime().variable_watcher;
  return watcher == nullptr || static_cast<bool>(PyRef::Steal(
                                   PyObject_CallOneArg(watcher, variable)));
}

void CountAccumulators(int change) {
  int& number = CurrentThread().num_accumulators;
  number = std::max(number + change, 0);
}

void SetAccumulators(int number) { CurrentThread().num_accumulators = number; }

void StopTapes(bool stop) {
  Session* session = SessionOfTapes();
  if (session != nullptr) {
    session->tapes().NoteEvent(stop ? TapeEvent::kStop : TapeEvent::kRestart,
                               nullptr, nullptr);
  }
  if (stop) {
    TFE_Py_TapeSetStopOnThread();
  } else {
    TFE_Py_TapeSetRestartOnThread();
  }
}

}  // namespace terra
