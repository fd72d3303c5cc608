// The flat form of one path of a TraceGraph, as the cursor follows it.
//
// Built once per graph by Python (runtime/plan.py), then immutable but for
// caches. Shared by all sessions of the graph; only touched with the GIL held.
#ifndef TERRA_KERNELS_INTERCEPTOR_PLAN_H_
#define TERRA_KERNELS_INTERCEPTOR_PLAN_H_

#include <memory>
#include <string>
#include <vector>

#include "kernels/interceptor/call.h"
#include "kernels/interceptor/op_info.h"
#include "kernels/interceptor/py_ref.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/framework/tensor_shape.h"

namespace terra {

enum class InputKind : int {
  kOutput = 0,    // a: node, b: output of that node
  kVariable = 1,  // a: variable slot
  kConstant = 2,  // a: constant
  kCaptured = 3,  // a: captured tensor
  kFeed = 4,      // a: feed
  kAny = 5,       // an imperative op's external input: no guard
};

struct InputRef {
  InputKind kind;
  int a;
  int b;
};

struct OutputSpec {
  tensorflow::DataType dtype;
  bool shape_known;  // fully
  tensorflow::PartialTensorShape shape;
  int fetch_channel;  // -1: never set
  int feed_channel;   // imperative and seeded nodes: where the value goes
  std::unique_ptr<tensorflow::shape_inference::InferenceContext> context;
  tensorflow::shape_inference::ShapeHandle shape_handle;
};

enum class NodeKind : int { kDelegated = 0, kFolded = 1, kImperative = 2 };

struct PlanNode {
  NodeKind kind;
  const OpInfo* info;  // null: a function, known by `name`
  std::string name;
  std::vector<int> counts;
  std::vector<InputRef> inputs;
  std::vector<OutputSpec> outputs;
  // Attribute tuples known to mean the same as `canonical`.
  std::vector<std::pair<Route, PyRef>> attrs;
  PyRef canonical;   // Python: hashable canonical attributes
  PyRef tape_attrs;  // tuple for TFE_Py_RecordGradient
  std::vector<PyRef> folded;  // kFolded: the ready outputs
  bool seeded = false;        // attributes seed and seed2 are fed
  int seed_channel = -1;
  bool closes_epoch = false;  // kImperative: before it runs
  int check_channel = -1;     // kImperative: fetch to await before it runs
  std::string device;
};

// A variable slot: captured (always this handle) or bound at first use.
struct VariableSlot {
  PyRef captured;     // handle tensor, or null
  int feed_channel;   // -1 when captured
  PyRef accepts;      // Python: (handle tensor) -> bool, type and shape fit
  bool written;       // by some op of the plan
  uint64_t key;       // ResourceKey of the captured handle
};

struct ConstantSlot {
  PyRef tensor;
  tensorflow::Tensor value;
};

struct FeedSlot {
  tensorflow::DataType dtype;
  tensorflow::PartialTensorShape shape;
  int channel;
};

struct Plan {
  std::string function_name;
  std::string config_proto;
  int num_channels = 0;
  std::vector<PyRef> launch_inputs;  // captured handles and tensors, in order
  std::vector<PlanNode> nodes;
  std::vector<VariableSlot> variables;
  std::vector<ConstantSlot> constants;
  std::vector<PyRef> captured;
  std::vector<FeedSlot> feeds;
  bool check_devices = false;
};

// Whether the call's attributes mean what the node's do. -1: exception set.
int AttributesMatch(PlanNode* node, const Call& call);

// Whether `tensor` equals the constant's value, type and shape.
bool ConstantMatches(const ConstantSlot& constant,
                     const tensorflow::Tensor& tensor);

// A key that two handles of the same resource share.
uint64_t ResourceKey(const tensorflow::Tensor& handle);

}  // namespace terra

#endif  // TERRA_KERNELS_INTERCEPTOR_PLAN_H_
