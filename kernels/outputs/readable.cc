#include "kernels/outputs/readable.h"

#include "kernels/outputs/outputs.h"
#include "kernels/outputs/step_context.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"
#include "kernels/python/waiting.h"

namespace terra {

bool EnsureReadable(PyObject* tensor, Reading reading) {
  auto& live = Outputs::Live();
  if (live.empty() || !EagerTensor_CheckExact(tensor)) return true;
  tensorflow::TensorHandle* handle = HandleOf(tensor);
  for (size_t i = 0; i < live.size(); ++i) {
    const int32_t index = live[i]->Find(handle);
    if (index < 0) continue;
    return live[i]->EnsureReadable(index, reading == Reading::kShape);
  }
  return true;
}

bool Outputs::EnsureReadable(int index, bool shape_only) {
  StepContext& context = *context_;
  PyObject* controller = context.controller();
  // What is called or waited for below may let another thread release it.
  PyRef keep_alive = PyRef::Borrow(controller);
  Made& made = made_[index];
  const bool is_owner = context.is_of_thread();
  if (context.mode() == Mode::kTracing) {
    if (!is_owner || CurrentThread().nested > 0) return true;
    PyRef noted = PyRef::Steal(
        PyObject_CallMethod(controller, "on_materialize", "iii", made.node,
                            made.output, shape_only ? 1 : 0));
    return noted || context.AbandonTrace();
  }
  if (shape_only && context.plan() != nullptr && ShapeIsKnown(made)) {
    return true;
  }
  if (!shape_only) made.seen = true;
  if (made.ready->load(std::memory_order_acquire)) return true;
  const int node = made.node;
  const int output = made.output;
  if (made.fetch_channel < 0) {
    PyRef resolved = PyRef::Steal(PyObject_CallMethod(
        controller, "on_unplanned", "iii", node, output, is_owner ? 1 : 0));
    return static_cast<bool>(resolved);
  }
  const Waited ready = WaitReady(made);
  CurrentThread().was_interrupted = ready == Waited::kError;
  if (ready != Waited::kEnded) return ready == Waited::kReady;
  PyRef resolved = PyRef::Steal(
      PyObject_CallMethod(controller, "on_dead", "ii", node, output));
  return static_cast<bool>(resolved);
}

}  // namespace terra
