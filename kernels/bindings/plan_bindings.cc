// The Python class `Plan` of the module: how Python writes a graph down.
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "kernels/bindings/binding_helpers.h"
#include "kernels/call/call.h"
#include "kernels/call/op_info.h"
#include "kernels/plan/plan.h"
#include "kernels/plan/shapes.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/tf_python.h"
#include "kernels/runner/held_handles.h"
#include "tensorflow/core/framework/tensor_util.h"

namespace terra {
namespace {

using tensorflow::DataType;

// (dtype enum, dims or None, fetch channel, feed channel, webs, names of the
// devices that ran its op and that holds it, the input that it is or -1)
using PyOutput = std::tuple<int, py::object, int, int, std::vector<int>,
                            std::pair<std::string, std::string>, int>;

// (dtype enum, dims or None)
using PyInputSpec = std::tuple<int, py::object>;

OutputSpec MakeOutput(const PyOutput& from) {
  OutputSpec spec;
  spec.dtype = static_cast<DataType>(std::get<0>(from));
  const auto& [op_device, device] = std::get<5>(from);
  if (!device.empty()) spec.placement = FindPlacement(op_device, device);
  spec.SetShape(ShapeOf(std::get<1>(from)));
  spec.fetch_channel = std::get<2>(from);
  spec.feed_channel = std::get<3>(from);
  spec.webs = std::get<4>(from);
  spec.same_as_input = std::get<6>(from);
  return spec;
}

void AddNode(Plan& plan, int kind, const std::string& name,
             const std::vector<int>& counts,
             const std::vector<std::tuple<int, int, int>>& inputs,
             const std::vector<PyOutput>& outputs, bool is_fast,
             py::tuple attrs, py::object canonical, py::object tape_attrs,
             std::vector<py::object> folded, int seed_channel,
             int check_channel, int exit_channel, const std::string& device,
             const py::object& marker, int level, int branch, bool is_head,
             int next, std::vector<int> successors, bool is_fork,
             const py::bytes& shape_rule, bool on_host, bool asks_for_shapes,
             bool of_shapes, bool may_raise, bool has_siblings,
             const std::vector<PyInputSpec>& input_specs,
             const py::object& result_attributes) {
  PlanNode node;
  node.kind = static_cast<NodeKind>(kind);
  node.name = name;
  node.info = OpInfo::Of(name);
  node.counts.assign(counts.begin(), counts.end());
  for (const auto& [input_kind, a, b] : inputs) {
    node.inputs.push_back({static_cast<InputKind>(input_kind), a, b});
  }
  for (const PyOutput& output : outputs) {
    node.outputs.push_back(MakeOutput(output));
  }
  node.attrs.emplace_back(is_fast ? Route::kFast : Route::kFull, RefOf(attrs));
  node.canonical = RefOf(canonical);
  node.tape_attrs = RefOf(tape_attrs);
  for (const py::object& tensor : folded) {
    CheckTensor(tensor);
    node.folded.push_back(RefOf(tensor));
  }
  node.seeded = seed_channel >= 0;
  node.seed_channel = seed_channel;
  node.check_channel = check_channel;
  node.exit_channel = exit_channel;
  node.device = device;
  node.marker = RefOf(marker);
  node.level = level;
  node.branch = branch;
  node.is_head = is_head;
  node.next = next;
  node.successors = std::move(successors);
  node.is_fork = is_fork;
  node.on_host = on_host;
  node.asks_for_shapes = asks_for_shapes;
  node.of_shapes = of_shapes;
  node.may_raise = may_raise;
  node.has_siblings = has_siblings;
  for (const auto& [dtype, shape] : input_specs) {
    node.input_specs.push_back({static_cast<DataType>(dtype), ShapeOf(shape)});
  }
  if (!result_attributes.is_none()) {
    node.result_attributes = RefOf(result_attributes);
  }
  const std::string rule = shape_rule;
  if (!rule.empty()) node.shape_rule = ShapeRule::Parse(rule);
  plan.nodes.push_back(std::move(node));
}

void AddVariable(Plan& plan, int variable, const py::object& captured,
                 int feed_channel, const py::object& accepts, bool written) {
  VariableSlot slot;
  slot.variable = variable;
  slot.key = 0;
  if (!captured.is_none()) {
    slot.captured = WeakRef::To(captured.ptr());
    slot.key = ResourceKey(ValueOf(captured));
  }
  slot.feed_channel = feed_channel;
  slot.accepts = RefOf(accepts);
  slot.written = written;
  plan.variables.push_back(std::move(slot));
}

// Numbers the handles that are the same in every step.
void Fix(Plan& plan) {
  auto fix = [&](const WeakRef& tensor) {
    if (tensor.get() == nullptr) return;
    const int number = static_cast<int>(plan.fixed.size());
    plan.fixed.emplace(HandleOf(tensor.get()), number);
  };
  for (const VariableSlot& variable : plan.variables) fix(variable.captured);
  for (const WeakRef& tensor : plan.captured) fix(tensor);
}

// Which shapes follow from these ones, and whose values they ask for: (whether
// all are known, positions of inputs); None where the op takes no such inputs.
py::object InferShapesOf(const py::bytes& rule,
                         const std::vector<py::object>& shapes,
                         const std::vector<py::object>& values) {
  const std::string serialized = rule;
  const auto parsed = ShapeRule::Parse(serialized);
  if (parsed == nullptr) return py::make_tuple(py::list(), py::list());
  std::vector<tensorflow::Tensor> held(values.size());
  std::vector<KnownInput> inputs(shapes.size());
  for (size_t i = 0; i < shapes.size(); ++i) {
    inputs[i].shape = ShapeOf(shapes[i]);
    if (values[i].is_none()) continue;
    held[i] = ValueOf(values[i]);
    inputs[i].value = &held[i];
  }
  std::vector<tensorflow::PartialTensorShape> outputs;
  std::vector<int> requested;
  if (!InferShapes(*parsed, inputs, &outputs, &requested)) return py::none();
  std::vector<bool> are_known;
  for (const auto& shape : outputs) are_known.push_back(shape.IsFullyDefined());
  return py::make_tuple(are_known, requested);
}

}  // namespace

void BindPlan(py::module_& m) {
  m.def("infer_shapes", &InferShapesOf, py::arg("rule"), py::arg("shapes"),
        py::arg("values"));
  py::class_<HeldHandle>(m, "HeldHandle")
      .def(py::init([](const py::object& handle) {
             return std::make_unique<HeldHandle>(ValueOf(handle));
           }),
           py::arg("handle"))
      .def_property_readonly("number", &HeldHandle::number);
  py::class_<CallCounts, std::shared_ptr<CallCounts>>(m, "CallCounts")
      // [(library function, how often it was replayed)]
      .def_property_readonly(
          "replayed",
          [](const CallCounts& counts) {
            py::list list;
            for (const auto& [name, count] : counts.replayed) {
              list.append(py::make_tuple(name, count));
            }
            return list;
          })
      // [(library function, why it was not replayed, how often)]
      .def_property_readonly("not_replayed", [](const CallCounts& counts) {
        py::list list;
        for (const auto& [what, count] : counts.not_replayed) {
          list.append(py::make_tuple(what.first, what.second, count));
        }
        return list;
      });
  py::class_<Plan, std::shared_ptr<Plan>>(m, "Plan")
      .def(py::init([](const std::string& function_name,
                       const py::bytes& config_proto, int num_channels,
                       bool check_devices) {
             auto plan = std::make_shared<Plan>();
             plan->function_name = function_name;
             plan->config_proto = config_proto;
             plan->num_channels = num_channels;
             plan->check_devices = check_devices;
             return plan;
           }),
           py::arg("function_name"), py::arg("config_proto"),
           py::arg("num_channels"), py::arg("check_devices"))
      .def("add_launch_input",
           [](Plan& plan, const py::object& tensor) {
             CheckTensor(tensor);
             plan.launch_inputs.push_back(WeakRef::To(tensor.ptr()));
           })
      .def("add_node", &AddNode, py::kw_only(), py::arg("kind"),
           py::arg("name"), py::arg("counts"), py::arg("inputs"),
           py::arg("outputs"), py::arg("is_fast"), py::arg("attrs"),
           py::arg("canonical"), py::arg("tape_attrs"), py::arg("folded"),
           py::arg("seed_channel"), py::arg("check_channel"),
           py::arg("exit_channel"), py::arg("device"), py::arg("marker"),
           py::arg("level"), py::arg("branch"), py::arg("is_head"),
           py::arg("next"), py::arg("successors"), py::arg("is_fork"),
           py::arg("shape_rule"), py::arg("on_host"),
           py::arg("asks_for_shapes"), py::arg("of_shapes"),
           py::arg("may_raise"), py::arg("has_siblings"),
           py::arg("input_specs"), py::arg("result_attributes"))
      .def(
          "add_level",
          [](Plan& plan, int channel, int skip_index, int epoch) {
            plan.levels.push_back({channel, skip_index, epoch, {}});
          },
          py::kw_only(), py::arg("channel"), py::arg("skip_index"),
          py::arg("epoch"))
      .def(
          "add_loop_turn",
          [](Plan& plan, int level, int channel, int end) {
            plan.levels.at(level).turns.push_back({channel, end});
          },
          py::kw_only(), py::arg("level"), py::arg("channel"), py::arg("end"))
      .def(
          "keep_in_trip",
          [](Plan& plan, int level, int trip_begin, int loop_end) {
            plan.levels.at(level).trip_begin = trip_begin;
            plan.levels.at(level).loop_end = loop_end;
          },
          py::kw_only(), py::arg("level"), py::arg("trip_begin"),
          py::arg("loop_end"))
      .def(
          "add_join",
          [](Plan& plan, int rule, int web, int same,
             std::vector<std::pair<int, int>> alternatives,
             bool allows_external, int channel, int dtype,
             const py::object& shape) {
            plan.joins.push_back({static_cast<JoinRule>(rule), web, same,
                                  std::move(alternatives), allows_external,
                                  channel, static_cast<DataType>(dtype),
                                  ShapeOf(shape)});
          },
          py::kw_only(), py::arg("rule"), py::arg("web"), py::arg("same"),
          py::arg("alternatives"), py::arg("allows_external"),
          py::arg("channel"), py::arg("dtype"), py::arg("shape"))
      .def(
          "finish",
          [](Plan& plan, int num_webs, std::vector<int> first_nodes,
             bool starts_with_fork) {
            plan.num_webs = num_webs;
            plan.first_nodes = std::move(first_nodes);
            plan.starts_with_fork = starts_with_fork;
            plan.forks.resize(plan.nodes.size() + 1);
            Fix(plan);
          },
          py::kw_only(), py::arg("num_webs"), py::arg("first_nodes"),
          py::arg("starts_with_fork"))
      .def_readwrite("counts", &Plan::counts)
      .def("tables", &TablesOf)
      // What has to be held while a step follows the plan; None: it is gone.
      .def("hold", [](const Plan& plan) { return ObjectOf(plan.Hold()); })
      .def("add_variable", &AddVariable, py::kw_only(), py::arg("variable"),
           py::arg("captured"), py::arg("feed_channel"), py::arg("accepts"),
           py::arg("written"))
      .def("add_constant",
           [](Plan& plan, const py::object& tensor) {
             ConstantSlot slot;
             slot.tensor = RefOf(tensor);
             plan.constant_of[HandleOf(tensor.ptr())] =
                 static_cast<int>(plan.constants.size());
             slot.value = tensorflow::tensor::DeepCopy(ValueOf(tensor));
             plan.constants.push_back(std::move(slot));
           })
      .def("add_captured",
           [](Plan& plan, const py::object& tensor) {
             CheckTensor(tensor);
             plan.captured.push_back(WeakRef::To(tensor.ptr()));
           })
      .def("add_feed",
           [](Plan& plan, int dtype, const py::object& shape, int channel,
              const std::optional<std::pair<int64_t, int64_t>>& allowed) {
             plan.feeds.push_back({static_cast<DataType>(dtype), ShapeOf(shape),
                                   channel, allowed});
           });
}

}  // namespace terra
