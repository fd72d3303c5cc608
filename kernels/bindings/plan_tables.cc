// A plan as the cursor has it, for Python to show and to verify.
#include <string>
#include <utility>
#include <vector>

#include "kernels/bindings/binding_helpers.h"
#include "kernels/plan/plan.h"

namespace terra {
namespace {

using py::literals::operator""_a;

py::object DimsOf(const tensorflow::PartialTensorShape& shape) {
  if (shape.unknown_rank()) return py::none();
  py::tuple dims(shape.dims());
  for (int i = 0; i < shape.dims(); ++i) dims[i] = shape.dim_size(i);
  return dims;
}

py::dict OutputTable(const OutputSpec& output) {
  return py::dict("dtype"_a = static_cast<int>(output.dtype),
                  "shape"_a = DimsOf(output.shape),
                  "fetch_channel"_a = output.fetch_channel,
                  "feed_channel"_a = output.feed_channel,
                  "webs"_a = output.webs,
                  "same_as_input"_a = output.same_as_input);
}

py::list InputTable(const PlanNode& node) {
  py::list inputs;
  for (const InputRef& input : node.inputs) {
    inputs.append(
        py::make_tuple(static_cast<int>(input.kind), input.a, input.b));
  }
  return inputs;
}

py::dict NodeTable(const PlanNode& node) {
  py::list outputs;
  for (const OutputSpec& output : node.outputs) {
    outputs.append(OutputTable(output));
  }
  py::list folded;
  for (const PyRef& tensor : node.folded) folded.append(ObjectOf(tensor));
  return py::dict(
      "kind"_a = static_cast<int>(node.kind), "name"_a = node.name,
      "counts"_a = std::vector<int>(node.counts.begin(), node.counts.end()),
      "inputs"_a = InputTable(node), "outputs"_a = outputs, "folded"_a = folded,
      "seed_channel"_a = node.seed_channel,
      "check_channel"_a = node.check_channel,
      "exit_channel"_a = node.exit_channel,
      "has_shape_rule"_a = node.shape_rule != nullptr,
      "on_host"_a = node.on_host, "may_raise"_a = node.may_raise,
      "has_siblings"_a = node.has_siblings,
      "num_input_specs"_a = node.input_specs.size(), "level"_a = node.level,
      "branch"_a = node.branch, "is_head"_a = node.is_head,
      "next"_a = node.next, "successors"_a = node.successors,
      "is_fork"_a = node.is_fork);
}

py::dict LevelTable(const LevelSpec& level) {
  py::list turns;
  for (const LoopTurn& turn : level.turns) {
    turns.append(py::make_tuple(turn.channel, turn.end));
  }
  return py::dict("channel"_a = level.channel,
                  "skip_index"_a = level.skip_index, "epoch"_a = level.epoch,
                  "turns"_a = turns, "trip_begin"_a = level.trip_begin,
                  "loop_end"_a = level.loop_end);
}

py::dict JoinTable(const JoinSpec& join) {
  return py::dict(
      "rule"_a = static_cast<int>(join.rule), "web"_a = join.web,
      "same"_a = join.same, "alternatives"_a = join.alternatives,
      "allows_external"_a = join.allows_external, "channel"_a = join.channel,
      "dtype"_a = static_cast<int>(join.dtype), "shape"_a = DimsOf(join.shape));
}

py::dict VariableTable(const VariableSlot& slot) {
  return py::dict("variable"_a = slot.variable,
                  "is_captured"_a = static_cast<bool>(slot.captured),
                  "feed_channel"_a = slot.feed_channel,
                  "written"_a = slot.written);
}

py::dict FeedTable(const FeedSlot& feed) {
  return py::dict("dtype"_a = static_cast<int>(feed.dtype),
                  "shape"_a = DimsOf(feed.shape), "channel"_a = feed.channel,
                  "allowed"_a = feed.allowed);
}

py::object ConstantTable(const ConstantSlot& constant) {
  return ObjectOf(constant.tensor);
}

template <typename Row, typename Show>
py::list Table(const std::vector<Row>& rows, Show show) {
  py::list table;
  for (const Row& row : rows) table.append(show(row));
  return table;
}

}  // namespace

py::dict TablesOf(const Plan& plan) {
  return py::dict("num_channels"_a = plan.num_channels,
                  "nodes"_a = Table(plan.nodes, NodeTable),
                  "levels"_a = Table(plan.levels, LevelTable),
                  "joins"_a = Table(plan.joins, JoinTable),
                  "variables"_a = Table(plan.variables, VariableTable),
                  "feeds"_a = Table(plan.feeds, FeedTable),
                  "constants"_a = Table(plan.constants, ConstantTable),
                  "num_captured"_a = plan.captured.size(),
                  "num_launch_inputs"_a = plan.launch_inputs.size(),
                  "num_webs"_a = plan.num_webs,
                  "first_nodes"_a = plan.first_nodes,
                  "starts_with_fork"_a = plan.starts_with_fork);
}

}  // namespace terra
