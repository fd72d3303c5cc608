// The flat form of a TraceGraph, as the cursor follows it.
//
// Built once per graph by Python (runtime/plan.py), then immutable but for
// caches. Shared by all sessions of the graph; only touched with the GIL held.
#ifndef TERRA_KERNELS_PLAN_PLAN_H_
#define TERRA_KERNELS_PLAN_PLAN_H_

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kernels/call/call.h"
#include "kernels/call/op_info.h"
#include "kernels/plan/call_record.h"
#include "kernels/plan/making.h"
#include "kernels/plan/pure_record.h"
#include "kernels/plan/shapes.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/tf_python.h"
#include "tensorflow/core/common_runtime/eager/tensor_handle.h"
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
  kJoin = 6,      // a: join
  kResource = 7,  // an imperative op's resource, a: variable slot
};

// InputRef::b of a variable that is written: densely, or in place.
constexpr int kInPlace = 2;

// How a joined input is decided (Python: trace/joins.py).
enum class JoinRule : int { kLatest = 0, kSame = 1, kSelect = 2 };

// An input that is one of several tensors, by path.
struct JoinSpec {
  JoinRule rule;
  int web;   // kLatest: whose latest producer it is
  int same;  // kSame: the join that it equals
  std::vector<std::pair<int, int>> alternatives;  // kSelect: (node, output)
  bool allows_external;
  int channel;  // where Python's decision goes; -1: none is needed
  tensorflow::DataType dtype;
  tensorflow::PartialTensorShape shape;
};

// A trip of a rolled loop begins: Python says whether it does.
struct LoopTurn {
  int channel;  // -1: every path makes all trips, so nobody asks
  int end;      // the first level behind the loop
};

// A level of the case assignment: a switch-case, or a block of every path.
struct LevelSpec {
  int channel;     // where the decision goes; -1: no decision
  int skip_index;  // the branch that does nothing; -1: there is none
  int epoch;
  std::vector<LoopTurn> turns;  // trips that begin here, outermost loop first
  // Every trip of a rolled loop passes this level: who skips it leaves the loop
  // (its first level behind) before the trip begins (its first level). -1:
  // none.
  int trip_begin = -1;
  int loop_end = -1;
};

struct InputRef {
  InputKind kind;
  int a;
  int b;
};

// What every matched op reads stands first: it is then in one cache line.
struct OutputSpec {
  tensorflow::DataType dtype;
  bool shape_known;         // fully
  int fetch_channel;        // -1: never set
  int same_as_input = -1;   // a function's: the handle that it returns again
  uint64_t shape_hash = 0;  // if it is known
  // Pending, too: a new handle learns a known shape from it. Else null.
  tensorflow::core::RefCountPtr<tensorflow::TensorHandle> shaped;
  std::vector<int> webs;  // that this output is a producer of
  int feed_channel;       // imperative and seeded nodes: where the value goes
  Placement placement;    // what it says of where it is
  tensorflow::PartialTensorShape shape;

  // Sets `shape` and what follows from it. Needs `dtype` and `placement`.
  void SetShape(const tensorflow::PartialTensorShape& new_shape);
};

// What a node's input has been so far, where nothing guards it.
struct InputSpec {
  tensorflow::DataType dtype;
  tensorflow::PartialTensorShape shape;
};

// The name of nodes that stand for whatever function Python calls there.
constexpr char kAnyFunction[] = "function";

enum class NodeKind : int { kDelegated = 0, kFolded = 1, kImperative = 2 };

// What every matched op reads stands first: in a large graph no node is in the
// nearest cache any more, so the number of cache lines counts.
struct PlanNode {
  NodeKind kind;
  bool seeded = false;  // attributes seed and seed2 are fed
  // kDelegated: follows from shapes and small values that Python has.
  bool on_host = false;
  bool asks_for_shapes = false;  // on_host: of its inputs' shapes alone
  bool of_shapes = false;  // on_host: follows from shapes and constants alone
  bool may_raise = false;  // kImperative: has raised, and the step went on
  // kImperative: other nodes have this place and type. What the op is given and
  // returns tells which one it is.
  bool has_siblings = false;
  bool is_head = false;   // the first of its block
  bool is_fork = false;   // which one follows is the location's matter
  int level = 0;          // where it is in the case assignment
  int branch = 0;         // its block's number in the level
  int next = -1;          // the next of its block
  int exit_channel = -1;  // the last op of a `try`: fetch to await after it
  const OpInfo* info;     // null: a function, known by `name`
  PyRef marker;           // names the op to its gradient function
  std::vector<InputRef> inputs;
  std::vector<OutputSpec> outputs;
  // Where the graph does not know the shapes: of the results, or whether what
  // is written fits the variable.
  std::shared_ptr<const ShapeRule> shape_rule;
  PyRef tape_attrs;  // tuple for TFE_Py_RecordGradient
  // Attribute tuples known to mean the same as `canonical`.
  std::vector<std::pair<Route, PyRef>> attrs;
  Counts counts;
  std::string name;
  PyRef canonical;              // Python: hashable canonical attributes
  std::vector<PyRef> folded;    // kFolded: the ready outputs
  std::vector<int> successors;  // at a block's end, as traced; without END
  int seed_channel = -1;
  int check_channel = -1;  // kImperative: fetch to await before it runs
  std::string device;
  std::vector<InputSpec> input_specs;  // has_siblings: of its inputs
  // has_siblings: the attributes that say which results it has. Null: it is a
  // function, or all of its attributes tell.
  PyRef result_attributes;

  // Whether it writes something that may have another shape than its variable.
  bool ChecksWrite() const { return shape_rule != nullptr && outputs.empty(); }
};

// A variable slot: captured (always this handle) or bound at first use. A
// branch that may be the first to use a variable has a slot, and a feed, of
// its own.
struct VariableSlot {
  int variable;      // slots of one variable have its first slot's number
  WeakRef captured;  // handle tensor, or null
  int feed_channel;  // -1: never fed
  PyRef accepts;     // Python: (handle tensor) -> bool, type and shape fit
  bool written;      // by some op of the plan
  uint64_t key;      // ResourceKey of the captured handle
};

struct ConstantSlot {
  PyRef tensor;
  tensorflow::Tensor value;
};

struct FeedSlot {
  tensorflow::DataType dtype;
  tensorflow::PartialTensorShape shape;
  int channel;
  // Integers [first, end) that no op fails on; none: nobody looks at them.
  std::optional<std::pair<int64_t, int64_t>> allowed;
};

// Where Python is, as the TraceGraph knows it.
struct Place {
  std::vector<int> here;
  std::vector<int> other_trips;  // the same code in trips for other variables
};

// How often library calls were replayed. Shared by a function's plans; entries
// stay where they are.
struct CallCounts {
  std::map<std::string, int64_t> replayed;  // by function
  // By function, and why it was not replayed.
  std::map<std::pair<std::string, std::string>, int64_t> not_replayed;
};

// It keeps none of the tensors that it takes from outside alive. A step holds
// them while it follows the plan (Hold); without them it cannot.
struct Plan {
  std::string function_name;
  std::string config_proto;
  int num_channels = 0;
  std::vector<WeakRef> launch_inputs;  // captured handles and tensors, in order
  std::vector<PlanNode> nodes;
  std::vector<VariableSlot> variables;
  std::vector<ConstantSlot> constants;
  std::vector<WeakRef> captured;
  std::vector<FeedSlot> feeds;
  std::vector<JoinSpec> joins;
  std::vector<LevelSpec> levels;
  int num_webs = 0;
  std::vector<int> first_nodes;  // what may follow the start, as traced
  bool starts_with_fork = false;
  // By node + 1: hash of the static stack -> the nodes of that location.
  std::vector<std::unordered_map<uint64_t, Place>> forks;
  bool check_devices = false;
  // Handles that are the same in every step -> a number.
  std::unordered_map<const void*, int> fixed;
  // Handles of constants -> their numbers.
  absl::flat_hash_map<const void*, int> constant_of;
  // Library calls by (history, function, arguments), for replay.
  RecordTable<CallRecord> calls{16384};
  // Gradients whose ops are delegated one by one, by the same.
  RecordTable<GradientRecord> gradients_op_by_op{16384};
  // What Python makes, by (history, function, arguments).
  RecordTable<MakingRecord> makings{1024};
  // Pure calls by (function, place, arguments).
  RecordTable<PureRecord> pure_calls{1 << 16};
  // How many outputs and ops the last step had: the next one makes room.
  size_t num_made_before = 0;
  size_t num_ops_before = 0;
  std::shared_ptr<CallCounts> counts = std::make_shared<CallCounts>();

  // All that is the same in every step, as a tuple. Null without an exception
  // if some of it is dead.
  PyRef Hold() const;
};

// A handle without a value yet, which will be in the host's memory. The caller
// owns it.
tensorflow::TensorHandle* NewPending(tensorflow::DataType dtype,
                                     const Placement& placement);
// Tells it its shape, fully known.
void TellShape(const tensorflow::PartialTensorShape& shape,
               tensorflow::TensorHandle* pending);

// Whether the call's attributes mean what the node's do. -1: exception set.
int AttributesMatch(PlanNode* node, const Call& call);

// Whether the call's results are as many as the node's, and of their types, as
// far as that is known before it runs.
bool ResultsFit(PlanNode* node, const Call& call);

// Whether `tensor` equals the constant's value, type and shape.
bool ConstantMatches(const ConstantSlot& constant,
                     const tensorflow::Tensor& tensor);

// A key that two handles of the same resource share.
uint64_t ResourceKey(const tensorflow::Tensor& handle);

}  // namespace terra

#endif  // TERRA_KERNELS_PLAN_PLAN_H_
