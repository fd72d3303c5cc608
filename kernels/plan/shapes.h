// Shapes that the graph does not know statically: TensorFlow's own shape
// functions, run by the cursor on the shapes of this step.
#ifndef TERRA_KERNELS_PLAN_SHAPES_H_
#define TERRA_KERNELS_PLAN_SHAPES_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tensorflow/core/framework/node_def.pb.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/framework/tensor_shape.h"

namespace terra {

// How to infer one op's shapes.
struct ShapeRule {
  tensorflow::NodeDef def;
  const tensorflow::OpRegistrationData* op;

  // Null when the op is not registered or has no shape function.
  static std::unique_ptr<ShapeRule> Parse(const std::string& serialized_def);
};

// What is known of one input.
struct KnownInput {
  tensorflow::PartialTensorShape shape;
  const tensorflow::Tensor* value = nullptr;  // where Python has it
};

// Runs the shape function. False when it refuses the inputs. `outputs` get
// the shapes, as far as they follow from the inputs; `requested`, if given,
// the inputs whose values the shape function asked for.
bool InferShapes(const ShapeRule& rule, const std::vector<KnownInput>& inputs,
                 std::vector<tensorflow::PartialTensorShape>* outputs,
                 std::vector<int>* requested = nullptr);

}  // namespace terra

#endif  // TERRA_KERNELS_PLAN_SHAPES_H_
