#include "kernels/session/readable.h"

#include "kernels/outputs/outputs.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"
#include "kernels/session/session.h"

namespace terra {

using tensorflow::TensorHandle;

bool EnsureReadable(PyObject* tensor, Reading reading) {
  auto& live = Session::Live();
  if (live.empty() || !EagerTensor_CheckExact(tensor)) return true;
  TensorHandle* handle = HandleOf(tensor);
  for (size_t i = 0; i < live.size(); ++i) {
    Session* session = live[i];
    const int32_t index = session->FindMade(handle);
    if (index < 0) continue;
    // What is called or waited for below may let another thread release it.
    PyRef keep_alive = PyRef::Borrow(session->controller());
    Made& made = session->made()[index];
    const ThreadState& thread = CurrentThread();
    const bool owner = thread.session == session;
    if (session->mode() == Mode::kTracing) {
      if (!owner || thread.nested > 0) return true;
      PyRef noted = PyRef::Steal(PyObject_CallMethod(
          session->controller(), "on_materialize", "iii", made.node,
          made.output, reading == Reading::kShape ? 1 : 0));
      return noted || session->AbandonTrace();
    }
    if (reading == Reading::kShape && session->plan() != nullptr &&
        session->ShapeIsKnown(made)) {
      return true;
    }
    if (reading == Reading::kValue) made.seen = true;
    if (made.ready->load(std::memory_order_acquire)) return true;
    const int node = made.node;
    const int output = made.output;
    if (made.fetch_channel < 0) {
      PyRef resolved = PyRef::Steal(
          PyObject_CallMethod(session->controller(), "on_unplanned", "iii",
                              node, output, owner ? 1 : 0));
      return static_cast<bool>(resolved);
    }
    const int ready = session->WaitReady(made);
    CurrentThread().was_interrupted = ready < 0;
    if (ready != 0) return ready > 0;
    PyRef resolved = PyRef::Steal(PyObject_CallMethod(
        session->controller(), "on_dead", "ii", node, output));
    return static_cast<bool>(resolved);
  }
  return true;
}

}  // namespace terra
