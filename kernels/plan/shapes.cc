#include "kernels/plan/shapes.h"

#include "tensorflow/core/framework/resource_handle.h"
#include "tensorflow/core/public/version.h"

namespace terra {
namespace {

using tensorflow::DataType;
using tensorflow::PartialTensorShape;
using tensorflow::Tensor;
using tensorflow::shape_inference::InferenceContext;

using HandleShapes = std::vector<std::pair<PartialTensorShape, DataType>>;

std::unique_ptr<HandleShapes> ShapesOfHandle(const Tensor* value) {
  if (value == nullptr || value->dtype() != tensorflow::DT_RESOURCE ||
      value->NumElements() != 1) {
    return nullptr;
  }
  auto shapes = std::make_unique<HandleShapes>();
  for (const auto& known :
       value->scalar<tensorflow::ResourceHandle>()().dtypes_and_shapes()) {
    shapes->emplace_back(known.shape, known.dtype);
  }
  return shapes;
}

}  // namespace

std::unique_ptr<ShapeRule> ShapeRule::Parse(const std::string& serialized) {
  auto rule = std::make_unique<ShapeRule>();
  if (!rule->def.ParseFromString(serialized) ||
      !tensorflow::OpRegistry::Global()
           ->LookUp(rule->def.op(), &rule->op)
           .ok() ||
      rule->op->shape_inference_fn == nullptr) {
    return nullptr;
  }
  return rule;
}

bool InferShapes(const ShapeRule& rule, const std::vector<KnownInput>& inputs,
                 std::vector<PartialTensorShape>* outputs,
                 std::vector<int>* requested) {
  std::vector<PartialTensorShape> shapes;
  std::vector<const Tensor*> values;
  std::vector<std::unique_ptr<HandleShapes>> handles;
  for (const KnownInput& input : inputs) {
    shapes.push_back(input.shape);
    handles.push_back(ShapesOfHandle(input.value));
    values.push_back(handles.back() == nullptr ? input.value : nullptr);
  }
  InferenceContext context(TF_GRAPH_DEF_VERSION, rule.def, rule.op->op_def,
                           shapes, values, {}, handles);
  if (!context.construction_status().ok() ||
      !context.Run(rule.op->shape_inference_fn).ok()) {
    return false;
  }
  for (int i = 0; requested != nullptr && i < context.num_inputs(); ++i) {
    if (context.requested_input_tensor(i) ||
        context.requested_input_tensor_as_partial_shape(i)) {
      requested->push_back(i);
    }
  }
  outputs->clear();
  for (int i = 0; i < context.num_outputs(); ++i) {
    const auto handle = context.output(i);
    if (!context.RankKnown(handle)) {
      outputs->emplace_back();
      continue;
    }
    std::vector<int64_t> dims;
    for (int d = 0; d < context.Rank(handle); ++d) {
      dims.push_back(context.Value(context.Dim(handle, d)));
    }
    outputs->emplace_back(dims);
  }
  return true;
}

}  // namespace terra
