// The Python module `terra_tf._terra_native`. What Python may do with the
// library is here, and nothing else.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/graph_runner.h"
#include "kernels/interceptor/call.h"
#include "kernels/interceptor/hooks.h"
#include "kernels/interceptor/plan.h"
#include "kernels/interceptor/readers.h"
#include "kernels/interceptor/seeds.h"
#include "kernels/interceptor/session.h"
#include "kernels/interceptor/tf_python.h"
#include "kernels/interceptor/waiting.h"
#include "tensorflow/core/common_runtime/dma_helper.h"
#include "tensorflow/core/framework/tensor_util.h"

namespace py = pybind11;

namespace terra {

EagerRuntime& Runtime() {
  static auto* runtime = new EagerRuntime;
  return *runtime;
}

WaitingKnobs& Knobs() {
  static auto* knobs = new WaitingKnobs;
  return *knobs;
}

namespace {

using tensorflow::DataType;
using tensorflow::PartialTensorShape;
using tensorflow::Tensor;
using tensorflow::TensorHandle;

PyRef RefOf(const py::handle& object) { return PyRef::Borrow(object.ptr()); }

py::object ObjectOf(PyRef ref) {
  if (!ref) return py::none();
  return py::reinterpret_steal<py::object>(ref.release());
}

void CheckTensor(const py::handle& object) {
  if (!EagerTensor_CheckExact(object.ptr())) {
    throw py::type_error("expected an EagerTensor");
  }
}

Tensor ValueOf(const py::handle& object) {
  CheckTensor(object);
  const Tensor* value = nullptr;
  const absl::Status status = HandleOf(object.ptr())->Tensor(&value);
  if (!status.ok()) throw std::runtime_error(std::string(status.message()));
  return *value;
}

// None is an unknown rank, -1 an unknown dimension.
PartialTensorShape ShapeOf(const py::object& dims) {
  if (dims.is_none()) return PartialTensorShape();
  return PartialTensorShape(dims.cast<std::vector<int64_t>>());
}

// (dtype enum, dims or None, fetch channel, feed channel, webs)
using PyOutput =
    std::tuple<int, py::object, int, int, std::vector<int>>;

OutputSpec MakeOutput(const PyOutput& from) {
  OutputSpec spec;
  spec.dtype = static_cast<DataType>(std::get<0>(from));
  spec.SetShape(ShapeOf(std::get<1>(from)));
  spec.fetch_channel = std::get<2>(from);
  spec.feed_channel = std::get<3>(from);
  spec.webs = std::get<4>(from);
  return spec;
}

void AddNode(Plan& plan, int kind, const std::string& name,
             std::vector<int> counts,
             const std::vector<std::tuple<int, int, int>>& inputs,
             const std::vector<PyOutput>& outputs, bool is_fast,
             py::tuple attrs, py::object canonical, py::object tape_attrs,
             std::vector<py::object> folded, int seed_channel,
             int check_channel, const std::string& device,
             const py::object& marker, int level, int branch, bool is_head,
             int next, std::vector<int> successors, bool is_fork,
             const py::bytes& shape_rule) {
  PlanNode node;
  node.kind = static_cast<NodeKind>(kind);
  node.name = name;
  node.info = OpInfo::Of(name);
  node.counts = std::move(counts);
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
  node.device = device;
  node.marker = RefOf(marker);
  node.level = level;
  node.branch = branch;
  node.is_head = is_head;
  node.next = next;
  node.successors = std::move(successors);
  node.is_fork = is_fork;
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
    slot.captured = RefOf(captured);
    slot.key = ResourceKey(ValueOf(captured));
  }
  slot.feed_channel = feed_channel;
  slot.accepts = RefOf(accepts);
  slot.written = written;
  plan.variables.push_back(std::move(slot));
}

int FindOutput(Session& session, int node, int output) {
  const auto& made = session.made();
  for (size_t i = 0; i < made.size(); ++i) {
    if (made[i].node == node && made[i].output == output) {
      return static_cast<int>(i);
    }
  }
  return -1;
}

// [(index, node, output, ready, seen, referenced, fetched)]
py::list Outputs(Session& session) {
  py::list result;
  const auto& made = session.made();
  for (size_t i = 0; i < made.size(); ++i) {
    const Made& m = made[i];
    result.append(py::make_tuple(i, m.node, m.output, m.ready->load(), m.seen,
                                 Session::IsReferenced(m),
                                 m.fetch_channel >= 0));
  }
  return result;
}

// [(node, output)] that somebody else holds and nobody will ever set.
py::list Unfetched(Session& session) {
  py::list result;
  for (const Made& m : session.made()) {
    if (m.fetch_channel < 0 && !m.ready->load() && Session::IsReferenced(m)) {
      result.append(py::make_tuple(m.node, m.output));
    }
  }
  return result;
}

// [(node, output)] of real outputs that somebody else holds.
py::list Referenced(Session& session) {
  py::list result;
  for (const Made& m : session.made()) {
    if (Session::IsReferenced(m)) {
      result.append(py::make_tuple(m.node, m.output));
    }
  }
  return result;
}

// What a joined input was: (node, output), or an external tensor.
py::object DecidedInput(Session& session, int join) {
  const Decided& decided = session.decided().at(join);
  if (!decided.is_set) return py::none();
  if (decided.made >= 0) {
    const Made& made = session.made()[decided.made];
    return py::make_tuple(made.node, made.output);
  }
  return ObjectOf(decided.external_copy ? decided.external_copy
                                        : decided.external);
}

void RaiseIfFailed(int result) {
  if (result < 0) throw py::error_already_set();
}

PyMethodDef hook_methods[] = {
    {"fast_path_execute", FastPathExecuteHook, METH_VARARGS, nullptr},
    {"execute", ExecuteHook, METH_VARARGS, nullptr},
    {"record_gradient", RecordGradientHook, METH_VARARGS, nullptr},
};

py::object HookFunction(int index) {
  return py::reinterpret_steal<py::object>(
      PyCFunction_New(&hook_methods[index], nullptr));
}

void Initialize(const py::object& context, const py::capsule& handle,
                const py::dict& originals) {
  EagerRuntime& r = Runtime();
  r.c_context = static_cast<TFE_Context*>(
      PyCapsule_GetPointer(handle.ptr(), nullptr));
  r.context = tensorflow::ContextFromInterface(
      tensorflow::unwrap(r.c_context));
  auto keep = [](py::object object) { return object.release().ptr(); };
  r.py_context = keep(context);
  r.execute = keep(originals["execute"]);
  r.execute_cancelable = keep(originals["execute_cancelable"]);
  r.record_gradient = keep(originals["record_gradient"]);
  r.variable_watcher = keep(originals["variable_watcher"]);
  r.resource_variable_type = keep(originals["resource_variable_type"]);
  r.canonical_attributes = keep(originals["canonical_attributes"]);
}

py::object Alias(const py::object& tensor) {
  TensorHandle* handle = TensorHandle::CreateLocalHandle(
      tensorflow::tensor::DeepCopy(ValueOf(tensor)));
  return py::reinterpret_steal<py::object>(
      EagerTensorFromHandle(tensorflow::wrap(handle)));
}

bool OwnsMemory(const py::object& tensor) {
  const Tensor value = ValueOf(tensor);
  auto* buffer = const_cast<tensorflow::TensorBuffer*>(
      tensorflow::DMAHelper::buffer(&value));
  return buffer == nullptr || buffer->root_buffer()->OwnsMemory();
}

py::object FromUint64(const std::vector<uint64_t>& values) {
  Tensor tensor(tensorflow::DT_UINT64, {static_cast<int64_t>(values.size())});
  for (size_t i = 0; i < values.size(); ++i) {
    tensor.flat<uint64_t>()(i) = values[i];
  }
  return py::reinterpret_steal<py::object>(EagerTensorFromHandle(
      tensorflow::wrap(TensorHandle::CreateLocalHandle(tensor))));
}

void BindPlan(py::module_& m) {
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
             plan.launch_inputs.push_back(RefOf(tensor));
           })
      .def("add_node", &AddNode, py::kw_only(), py::arg("kind"),
           py::arg("name"), py::arg("counts"), py::arg("inputs"),
           py::arg("outputs"), py::arg("is_fast"), py::arg("attrs"),
           py::arg("canonical"), py::arg("tape_attrs"), py::arg("folded"),
           py::arg("seed_channel"), py::arg("check_channel"),
           py::arg("device"), py::arg("marker"), py::arg("level"),
           py::arg("branch"), py::arg("is_head"), py::arg("next"),
           py::arg("successors"), py::arg("is_fork"),
           py::arg("shape_rule"))
      .def("add_level",
           [](Plan& plan, int channel, int skip_index, int epoch) {
             plan.levels.push_back({channel, skip_index, epoch});
           },
           py::kw_only(), py::arg("channel"), py::arg("skip_index"),
           py::arg("epoch"))
      .def("add_join",
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
      .def("finish",
           [](Plan& plan, int num_webs, std::vector<int> first_nodes,
              bool starts_with_fork) {
             plan.num_webs = num_webs;
             plan.first_nodes = std::move(first_nodes);
             plan.starts_with_fork = starts_with_fork;
             plan.forks.resize(plan.nodes.size() + 1);
           },
           py::kw_only(), py::arg("num_webs"), py::arg("first_nodes"),
           py::arg("starts_with_fork"))
      .def("add_variable", &AddVariable, py::kw_only(), py::arg("variable"),
           py::arg("captured"),
           py::arg("feed_channel"), py::arg("accepts"), py::arg("written"))
      .def("add_constant",
           [](Plan& plan, const py::object& tensor) {
             ConstantSlot slot;
             slot.tensor = RefOf(tensor);
             slot.value = tensorflow::tensor::DeepCopy(ValueOf(tensor));
             plan.constants.push_back(std::move(slot));
           })
      .def("add_captured",
           [](Plan& plan, const py::object& tensor) {
             CheckTensor(tensor);
             plan.captured.push_back(RefOf(tensor));
           })
      .def("add_feed", [](Plan& plan, int dtype, const py::object& shape,
                          int channel) {
        plan.feeds.push_back(
            {static_cast<DataType>(dtype), ShapeOf(shape), channel});
      });
}

void BindSession(py::module_& m) {
  py::enum_<Mode>(m, "Mode")
      .value("TRACING", Mode::kTracing)
      .value("CO_EXECUTION", Mode::kCoExecution)
      .value("IMPERATIVE", Mode::kImperative)
      .value("SEIZING", Mode::kSeizing);
  py::class_<Session>(m, "Session")
      .def(py::init([](std::shared_ptr<Plan> plan, const py::object& owner) {
             return std::make_unique<Session>(std::move(plan), owner.ptr());
           }),
           py::arg("plan").none(true), py::arg("controller"))
      .def_property("mode", &Session::mode, &Session::set_mode)
      .def_property("committed", &Session::committed, &Session::set_committed)
      .def_property_readonly("position", &Session::position)
      .def_property_readonly("plan_is_set",
                             [](Session& s) { return s.plan() != nullptr; })
      .def_property_readonly("num_matched",
                             [](Session& s) { return s.num_matched; })
      .def_property_readonly("python_stall_s",
                             [](Session& s) { return s.python_stall_s; })
      .def_property_readonly(
          "graph_stall_s",
          [](Session& s) { return s.step()->graph_stall().total_s(); })
      .def("set_stop_frame",
           [](Session& s, const py::object& frame) {
             s.set_stop_frame(frame.ptr());
           })
      .def_property_readonly("path", &Session::path)
      .def("waiting_channels",
           [](Session& s) { return s.step()->mailbox().Waiting(); })
      .def("skip_to_end", &Session::SkipToEnd)
      .def_property_readonly("epochs_left", &Session::EpochsLeft)
      .def("renumber", &Session::Renumber)
      .def("decided", &DecidedInput)
      .def("launch", &Session::Launch)
      .def("commit", &Session::Commit)
      .def("toggle_epoch_closed", &Session::MarkEpochClosed)
      .def("cancel",
           [](Session& s) {
             // The Step outlives this call even if the session goes away.
             auto step = Step::Find(s.step()->id());
             py::gil_scoped_release release;
             if (step != nullptr) step->Cancel();
           })
      .def("await_end", [](Session& s) { RaiseIfFailed(s.WaitEnded()); })
      .def("await_channel",
           [](Session& s, int channel) {
             const int result = s.WaitChannel(channel);
             RaiseIfFailed(result);
             return result == 1;
           })
      .def("await_output",
           [](Session& s, int index) {
             const int result = s.WaitReady(s.made().at(index));
             RaiseIfFailed(result);
             return result == 1;
           })
      .def_property_readonly("ended",
                             [](Session& s) {
                               return s.step() == nullptr ||
                                      s.step()->state().ended();
                             })
      .def_property_readonly("succeeded",
                             [](Session& s) {
                               return s.step() != nullptr &&
                                      s.step()->state().phase() ==
                                          StepState::Phase::kDone;
                             })
      .def_property_readonly("error",
                             [](Session& s) {
                               return s.step()->state().error();
                             })
      .def("outputs", &Outputs)
      .def("unfetched", &Unfetched)
      .def("referenced", &Referenced)
      .def("find_output", &FindOutput)
      .def("made_index",
           [](Session& s, const py::object& tensor) -> py::object {
             CheckTensor(tensor);
             const int32_t i = s.FindMade(HandleOf(tensor.ptr()));
             if (i < 0) return py::none();
             return py::make_tuple(s.made()[i].node, s.made()[i].output);
           })
      // (how many outputs came before, the op's marker, output), or None.
      .def("origin",
           [](Session& s, const py::object& tensor) -> py::object {
             CheckTensor(tensor);
             const int32_t i = s.FindMade(HandleOf(tensor.ptr()));
             if (i < 0 || s.made()[i].marker == nullptr) return py::none();
             const Made& made = s.made()[i];
             return py::make_tuple(
                 i, py::reinterpret_borrow<py::object>(made.marker),
                 made.output);
           })
      .def("output_tensor",
           [](Session& s, int index) { return ObjectOf(s.OutputTensor(index)); })
      .def("set_output",
           [](Session& s, int index, const py::object& tensor) {
             CheckTensor(tensor);
             s.SetOutput(index, tensor.ptr());
           })
      .def("poison_output", &Session::PoisonOutput)
      .def("feed", [](Session& s, int slot) { return ObjectOf(s.Feed(slot)); })
      .def("variable",
           [](Session& s, int slot) { return ObjectOf(s.Variable(slot)); })
      .def_property_readonly("seeds", &Session::seeds)
      .def("release", &Session::Release)
      // The calling thread is inside the step from enter to leave.
      .def("enter", [](Session& s) { CurrentThread().session = &s; })
      .def("leave", [](Session&) { CurrentThread().session = nullptr; });
}

void BindFunctions(py::module_& m) {
  m.def("initialize", &Initialize);
  m.def("hook_function", &HookFunction);
  m.def("wrap_reader",
        [](const py::object& original, bool shape_only, bool as_method) {
          return ObjectOf(WrapReader(original.ptr(), shape_only, as_method));
        });
  m.def("install_buffer_reader", &InstallBufferReader);
  m.def("uninstall_buffer_reader", &UninstallBufferReader);
  m.def("set_knobs", [](double slice_s, double stall_warning_s) {
    Knobs().slice_s = slice_s;
    Knobs().stall_warning_s = stall_warning_s;
  });
  m.def("set_delays", [](int64_t graph_us, int64_t python_us) {
    Delays().graph_us = graph_us;
    Delays().python_us = python_us;
  });
  m.def("in_step", [] { return CurrentThread().session != nullptr; });
  m.def("current_controller", []() -> py::object {
    const ThreadState& thread = CurrentThread();
    if (thread.session == nullptr || thread.nested > 0) return py::none();
    return py::reinterpret_borrow<py::object>(thread.session->controller());
  });
  m.def("enter_nested", [] { ++CurrentThread().nested; });
  m.def("leave_nested", [] { --CurrentThread().nested; });
  m.def("note_internal_seed", &NoteInternalSeed);
  m.def("clear_seed_ledger", &ClearSeedLedger);
  m.def("num_live_sessions", [] { return Session::Live().size(); });
  m.def("live_controllers", [] {
    py::list controllers;
    for (Session* session : Session::Live()) {
      if (session->plan() != nullptr) {
        controllers.append(py::handle(session->controller()));
      }
    }
    return controllers;
  });
  m.def("runner_resume", [] { GraphRunner::Get().Resume(); });
  m.def("runner_halted", [] { return GraphRunner::Get().halted(); });
  m.def("runner_shutdown", [] {
    py::gil_scoped_release release;
    GraphRunner::Get().Shutdown();
  });
  m.def("after_fork_in_child", [] {
    GraphRunner::Get().AfterForkInChild();
    CurrentThread() = ThreadState();
    Session::Live().clear();
  });
  m.def("copy_tensor", &Alias);
  m.def("owns_memory", &OwnsMemory);
  m.def("from_uint64", &FromUint64);
  m.def("handle_id", [](const py::object& tensor) {
    CheckTensor(tensor);
    return reinterpret_cast<uintptr_t>(HandleOf(tensor.ptr()));
  });
  m.def("resource_key",
        [](const py::object& tensor) { return ResourceKey(ValueOf(tensor)); });
}

}  // namespace
}  // namespace terra

PYBIND11_MODULE(_terra_native, m) {
  terra::BindPlan(m);
  terra::BindSession(m);
  terra::BindFunctions(m);
}
