// Ops on shapes and small host values. Their results are known as
// soon as Python asks, so they run on the spot; the graph, which may need
// them too, computes them once more for itself.
#include <algorithm>

#include "kernels/call/call.h"
#include "kernels/outputs/outputs.h"
#include "kernels/outputs/readable.h"
#include "kernels/plan/plan.h"
#include "kernels/plan/reason.h"
#include "kernels/plan/shapes.h"
#include "kernels/python/controller.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/waiting.h"
#include "kernels/session/execution.h"

namespace terra {
namespace {

using tensorflow::PartialTensorShape;
using tensorflow::Tensor;

Tensor Integers(tensorflow::DataType dtype, tensorflow::TensorShape shape,
                const std::vector<int64_t>& values) {
  Tensor tensor(dtype, shape);
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == tensorflow::DT_INT32) {
      tensor.flat<int32_t>()(i) = static_cast<int32_t>(values[i]);
    } else {
      tensor.flat<int64_t>()(i) = values[i];
    }
  }
  return tensor;
}

// What Shape, ShapeN, Size or Rank gives.
Tensor Ask(const std::string& op, const PartialTensorShape& shape,
           tensorflow::DataType dtype) {
  if (op == "Size") return Integers(dtype, {}, {shape.num_elements()});
  if (op == "Rank") return Integers(dtype, {}, {shape.dims()});
  std::vector<int64_t> dims(shape.dims());
  for (int i = 0; i < shape.dims(); ++i) dims[i] = shape.dim_size(i);
  return Integers(dtype, {shape.dims()}, dims);
}

}  // namespace

Waited Execution::AwaitKnown(const Call& call, bool shapes_only) {
  for (const PyRef& input : call.inputs) {
    const int32_t index = outputs_.Find(HandleOf(input.get()));
    if (index < 0) {
      const Reading reading = shapes_only ? Reading::kShape : Reading::kValue;
      if (!EnsureReadable(input.get(), reading)) return Waited::kError;
      continue;
    }
    Made& made = outputs_[index];
    if (made.ready->load() || (shapes_only && outputs_.ShapeIsKnown(made)))
      continue;
    if (made.fetch_channel < 0) {  // the next graph fetches it
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
    made.seen = true;
  }
  return Waited::kReady;
}

PyRef Execution::AskForShapes(const Call& call, const PlanNode& node) {
  const std::vector<KnownInput> inputs = matcher_.KnownInputs(call);
  Tensors outputs;
  for (size_t i = 0; i < node.outputs.size(); ++i) {
    if (!inputs[i].shape.IsFullyDefined()) return PyRef();
    const Tensor value = Ask(node.name, inputs[i].shape, node.outputs[i].dtype);
    outputs.push_back(PyRef::Steal(EagerTensorFromHandle(
        tensorflow::wrap(NewLocal(value, node.outputs[i].placement)))));
  }
  return WrapOutputs(call, absl::MakeSpan(outputs));
}

// Its results follow from shapes that the history tells from now on.
void Execution::TellShapes(const Call& call) {
  NoteShapeUses(call);
  for (const PyRef& input : call.inputs) {
    const int32_t index = outputs_.Find(HandleOf(input.get()));
    if (index < 0 || outputs_[index].is_told) continue;
    history_.MixShapeOf(input.get());
    outputs_[index].is_told = true;
  }
}

// No shape function is asked here: any input may say how large a result is.
void Execution::NoteShapeValues(const Call& call, const PlanNode& node) {
  const bool are_planned =
      node.asks_for_shapes ||
      std::all_of(node.outputs.begin(), node.outputs.end(),
                  [](const OutputSpec& spec) { return spec.shape_known; });
  for (size_t i = 0; !are_planned && i < call.inputs.size(); ++i) {
    if (node.inputs[i].kind == InputKind::kConstant) continue;
    call_log_.NoteShapeValue(call.inputs[i].get(), node.name);
  }
}

PyObject* Execution::RunOnHost(const Call& call, int number) {
  const PlanNode& node = plan().nodes[number];
  const int index = cursor_.position();
  const Waited known = AwaitKnown(call, node.asks_for_shapes);
  if (known == Waited::kError) return nullptr;
  if (known == Waited::kEnded || !context_.is_co_executing())
    return OnCall(call);
  if (call_log_.is_learning_pure()) call_log_.LogOp(call, number);
  if (node.asks_for_shapes) TellShapes(call);
  if (call_log_.is_learning()) NoteShapeValues(call, node);
  inputs_.BindInputs(call, node);
  PyRef result = node.asks_for_shapes ? AskForShapes(call, node) : PyRef();
  if (!result && !PyErr_Occurred()) {
    result = PyRef::Steal(ExecuteUntold(call));
  }
  if (!AwaitSeizure()) return nullptr;
  if (!result && context_.is_co_executing() &&
      PyErr_ExceptionMatches(PyExc_Exception)) {
    PyErr_Clear();  // it fails once more, and for good, outside of the graph
    if (!Diverge(Reason::kOpError, Describe(call))) return nullptr;
    return OnCall(call);
  }
  if (!result) return nullptr;
  result = PyRef::Steal(FinishReal(call, number, index, std::move(result)));
  if (result && context_.is_co_executing()) {
    call_log_.NoteKnownResults(call, node);
  }
  if (!result || !TellOfReal(call, node.marker.get(), result.get())) {
    return nullptr;
  }
  return result.release();
}

}  // namespace terra
