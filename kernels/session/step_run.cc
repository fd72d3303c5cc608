#include "kernels/session/step_run.h"

#include <utility>

#include "kernels/outputs/step_context.h"
#include "kernels/python/controller.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"
#include "kernels/session/session.h"

namespace terra {
namespace {

// What raises again and again does not come from outside: it is a defect.
constexpr int kMaxTries = 100;

// The stack may be at Python's limit: what must be done needs some frames more.
class RoomOnTheStack {
 public:
  RoomOnTheStack() : limit_(Py_GetRecursionLimit()) {
    Py_SetRecursionLimit(limit_ + kFrames);
  }
  ~RoomOnTheStack() { Py_SetRecursionLimit(limit_); }
  RoomOnTheStack(const RoomOnTheStack&) = delete;

 private:
  static constexpr int kFrames = 400;
  const int limit_;
};

// An exception that is on its way, set aside.
class KeptError {
 public:
  KeptError() = default;
  KeptError(const KeptError&) = delete;
  ~KeptError() { Clear(); }
  // Takes the exception that is set, instead of the one before.
  void Take() {
    Clear();
    PyErr_Fetch(&type_, &value_, &traceback_);
    PyErr_NormalizeException(&type_, &value_, &traceback_);
    if (traceback_ != nullptr) PyException_SetTraceback(value_, traceback_);
  }
  void Replace(PyObject* value) {
    Clear();
    type_ =
        PyRef::Borrow(reinterpret_cast<PyObject*>(Py_TYPE(value))).release();
    value_ = PyRef::Borrow(value).release();
    traceback_ = PyException_GetTraceback(value);
  }
  void Raise() {
    PyErr_Restore(std::exchange(type_, nullptr), std::exchange(value_, nullptr),
                  std::exchange(traceback_, nullptr));
  }
  bool is_set() const { return type_ != nullptr; }
  PyObject* value() const { return value_ == nullptr ? Py_None : value_; }

 private:
  void Clear() {
    Py_CLEAR(type_);
    Py_CLEAR(value_);
    Py_CLEAR(traceback_);
  }
  PyObject* type_ = nullptr;
  PyObject* value_ = nullptr;
  PyObject* traceback_ = nullptr;
};

// Ends a step that an exception has left, or that was not ended properly.
void Close(Session* session, KeptError* error) {
  PyObject* controller = session->controller();
  for (int tries = 0; !session->IsOver(); ++tries) {
    if (tries == kMaxTries) {
      session->Abandon();
      return;
    }
    RoomOnTheStack room;
    PyRef instead = PyRef::Steal(
        PyObject_CallMethod(controller, "close", "O", error->value()));
    if (!instead) {
      // The first one is what is raised; but of a defect the last one tells.
      if (!error->is_set() || tries + 1 == kMaxTries) error->Take();
      PyErr_Clear();
    } else if (instead.get() != Py_None) {
      error->Replace(instead.get());
    }
  }
}

}  // namespace

PyObject* RunStep(Session* session, PyObject* function, PyObject* args,
                  PyObject* kwargs) {
  PyObject* controller = session->controller();
  PyRef keep_alive = PyRef::Borrow(controller);
  PyRef result;
  bool is_done = CallController(controller, "begin", "()");
  if (is_done) {
    result = PyRef::Steal(PyObject_Call(function, args, kwargs));
    is_done = result && CallController(controller, "finish", "()");
  }
  KeptError error;
  if (!is_done) error.Take();
  Close(session, &error);
  if (!error.is_set()) return result.release();
  result = PyRef();  // may run the user's Python: no exception may be set
  error.Raise();
  return nullptr;
}

bool DivergeForSure(Session* session, const char* reason, const char* detail) {
  PyObject* controller = session->controller();
  PyRef keep_alive = PyRef::Borrow(controller);
  if (CallController(controller, "on_divergence", "(ss)", reason, detail)) {
    return true;
  }
  KeptError error;
  error.Take();
  // While another thread goes on with it, this one waits in `settle`.
  for (int tries = 0; session->mode() == Mode::kSeizing && tries < kMaxTries;
       ++tries) {
    RoomOnTheStack room;
    if (!CallController(controller, "settle", "()")) PyErr_Clear();
  }
  error.Raise();
  return false;
}

bool RunOnce(PyObject* scope, PyObject* results, PyObject* key,
             PyObject* function, PyObject* args) {
  if (scope != Py_None) {
    PyRef entered =
        PyRef::Steal(PyObject_CallMethod(scope, "__enter__", nullptr));
    if (!entered) return false;
  }
  PyRef result = PyRef::Steal(PyObject_CallObject(function, args));
  if (!result) {
    if (!PyErr_ExceptionMatches(PyExc_Exception)) return false;
    KeptError error;
    error.Take();
    result = PyRef::Borrow(error.value());
  }
  if (PyDict_SetItem(results, key, result.get()) != 0) return false;
  return scope == Py_None ||
         static_cast<bool>(PyRef::Steal(PyObject_CallMethod(
             scope, "__exit__", "OOO", Py_None, Py_None, Py_None)));
}

PyObject* RunUnrecorded(PyObject* function) {
  NestedScope nested;
  const bool was_stopped =
      PyRef::Steal(TFE_Py_TapeSetIsStopped()).get() == Py_True;
  if (!was_stopped) TFE_Py_TapeSetStopOnThread();
  PyObject* result = PyObject_CallNoArgs(function);
  if (!was_stopped) TFE_Py_TapeSetRestartOnThread();
  return result;
}

}  // namespace terra
