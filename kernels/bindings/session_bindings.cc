// The Python class `Session` of the module: what a controller does with its
// step.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/bindings/binding_helpers.h"
#include "kernels/core/step_state.h"
#include "kernels/cursor/inputs.h"
#include "kernels/outputs/lifetimes.h"
#include "kernels/outputs/outputs.h"
#include "kernels/outputs/step_context.h"
#include "kernels/plan/plan.h"
#include "kernels/python/lamp.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"
#include "kernels/python/waiting.h"
#include "kernels/replay/makings.h"
#include "kernels/session/session.h"

namespace terra {
namespace {

// [(index, node, output, ready, seen, referenced, fetched)]
py::list ListOutputs(Session& session) {
  py::list result;
  const auto& made = session.outputs().all();
  for (size_t i = 0; i < made.size(); ++i) {
    const Made& m = made[i];
    result.append(py::make_tuple(i, m.node, m.output, m.ready->load(), m.seen,
                                 IsReferenced(m), m.fetch_channel >= 0));
  }
  return result;
}

// [(node, output)] that somebody else holds and nobody will ever set.
py::list Unfetched(Session& session) {
  if (!session.tapes().Flush()) throw py::error_already_set();
  py::list result;
  for (const Made& m : session.outputs().all()) {
    if (m.fetch_channel < 0 && !m.ready->load() && IsReferenced(m)) {
      result.append(py::make_tuple(m.node, m.output));
    }
  }
  return result;
}

// [(node, output)] of real outputs that somebody else holds.
py::list Referenced(Session& session) {
  py::list result;
  for (const Made& m : session.outputs().all()) {
    if (IsReferenced(m)) {
      result.append(py::make_tuple(m.node, m.output));
    }
  }
  return result;
}

// [(node, output, until)] of outputs that were held at a later op.
py::list LifetimesAtEnd(Session& session, int num_ops) {
  py::list result;
  for (const Lifetime& each : session.outputs().LifetimesAtEnd(num_ops)) {
    result.append(py::make_tuple(each.node, each.output, each.until));
  }
  return result;
}

// What a joined input was: (node, output), or an external tensor; with
// `as_sent`, the copy of one that NumPy could change.
py::object DecidedInput(Session& session, int join, bool as_sent) {
  const Decided& decided = session.inputs().decided().at(join);
  if (!decided.is_set) return py::none();
  if (decided.node >= 0) return py::make_tuple(decided.node, decided.output);
  const bool is_copied = as_sent && decided.external_copy;
  return ObjectOf(is_copied ? decided.external_copy : decided.external);
}

// [(category of the knob `log`, line)] of what was said since the last time.
py::list TakeLog(Session& session) {
  py::list result;
  for (const auto& [light, line] : session.context().lamp().Take()) {
    for (size_t bit = 0; bit < kLightNames.size(); ++bit) {
      if (static_cast<unsigned>(light) == 1u << bit) {
        result.append(py::make_tuple(kLightNames[bit], line));
      }
    }
  }
  return result;
}

bool IsReady(Waited waited) {
  if (waited == Waited::kError) throw py::error_already_set();
  return waited == Waited::kReady;
}

}  // namespace

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
      .def_property_readonly(
          "committed", [](Session& s) { return s.commits().is_committed(); })
      .def_property_readonly("position",
                             [](Session& s) { return s.cursor().position(); })
      .def_property_readonly("plan_is_set",
                             [](Session& s) { return s.plan() != nullptr; })
      .def_property_readonly(
          "num_recorded",
          [](Session& s) { return s.tapes().log().num_recorded(); })
      .def_property_readonly(
          "num_unrecorded",
          [](Session& s) { return s.tapes().log().num_dropped(); })
      .def_property_readonly("python_stall_s",
                             [](Session& s) { return s.waits().stall_s(); })
      .def_property_readonly(
          "graph_stall_s",
          [](Session& s) { return s.step()->graph_stall().total_s(); })
      .def("set_stop_frame",
           [](Session& s, const py::object& frame) {
             s.cursor().set_stop_frame(frame.ptr());
           })
      .def_property_readonly("path",
                             [](Session& s) { return s.cursor().path(); })
      // Where on the path an op has raised.
      .def_property_readonly("raised",
                             [](Session& s) { return s.cursor().raised(); })
      .def("path_from",
           [](Session& s, size_t begin) {
             const std::vector<int>& path = s.cursor().path();
             const size_t first = std::min(begin, path.size());
             return std::vector<int>(path.begin() + first, path.end());
           })
      .def("skip_to_end", [](Session& s) { return s.cursor().SkipToEnd(); })
      .def_property_readonly("epochs_left",
                             [](Session& s) { return s.cursor().EpochsLeft(); })
      .def("go_on_tracing", &Session::GoOnTracing)
      .def("decided", &DecidedInput)
      .def("launch",
           [](Session& s) {
             const std::string error = s.Launch();
             if (!error.empty()) throw std::runtime_error(error);
           })
      .def("commit_step",
           [](Session& s, int channel) { s.commits().CommitStep(channel); })
      .def("commit_epoch",
           [](Session& s, int number, int channel) {
             s.commits().CommitEpoch(number, channel);
           })
      .def("finish_epoch",
           [](Session& s, int number) { s.commits().FinishEpoch(number); })
      .def("resume_epoch",
           [](Session& s, int number, int channel) {
             s.commits().ResumeEpoch(number, channel);
           })
      .def_property_readonly(
          "num_epochs_committed",
          [](Session& s) { return s.commits().num_committed(); })
      .def_property_readonly("num_epochs_done",
                             [](Session& s) { return s.commits().num_done(); })
      .def_property_readonly(
          "epoch_start", [](Session& s) { return s.commits().epoch_start(); })
      .def("set_is_queued", [](Session& s) { s.commits().set_is_queued(); })
      .def_property_readonly("is_queued",
                             [](Session& s) { return s.commits().is_queued(); })
      .def_property_readonly("has_entered", &Session::has_entered)
      .def("cancel", &Session::Cancel)
      .def("await_end", [](Session& s) { IsReady(s.waits().ForEnd()); })
      .def("await_channel",
           [](Session& s, int channel) {
             return IsReady(
                 s.waits().ForChannel(channel, s.cursor().bound_for()));
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
      .def_property_readonly(
          "error", [](Session& s) { return s.step()->state().error(); })
      .def("outputs", &ListOutputs)
      .def("unfetched", &Unfetched)
      .def("referenced", &Referenced)
      .def("lifetimes_at_end", &LifetimesAtEnd)
      .def("made_index",
           [](Session& s, const py::object& tensor) -> py::object {
             CheckTensor(tensor);
             const int32_t i = s.outputs().Find(HandleOf(tensor.ptr()));
             if (i < 0) return py::none();
             return py::make_tuple(s.outputs()[i].node, s.outputs()[i].output);
           })
      // (how many outputs came before, the op's marker, output), or None.
      .def("origin",
           [](Session& s, const py::object& tensor) -> py::object {
             CheckTensor(tensor);
             const int32_t i = s.outputs().Find(HandleOf(tensor.ptr()));
             if (i < 0 || s.outputs()[i].marker == nullptr) return py::none();
             const Made& made = s.outputs()[i];
             return py::make_tuple(
                 i, py::reinterpret_borrow<py::object>(made.marker),
                 made.output);
           })
      .def("output_tensor",
           [](Session& s, int index) {
             return ObjectOf(s.outputs().Tensor(index));
           })
      .def("set_output",
           [](Session& s, int index, const py::object& tensor) {
             CheckTensor(tensor);
             s.outputs().Set(index, tensor.ptr());
           })
      .def("poison_output",
           [](Session& s, int index, const std::string& message, int code) {
             s.outputs().Poison(index, message, code);
           })
      .def("feed",
           [](Session& s, int slot) { return ObjectOf(s.inputs().Feed(slot)); })
      .def("feed_value",
           [](Session& s, int slot) {
             return ObjectOf(s.inputs().FeedValue(slot));
           })
      .def("variable",
           [](Session& s, int slot) {
             return ObjectOf(s.inputs().Variable(slot));
           })
      .def_property_readonly("seeds",
                             [](Session& s) { return s.inputs().seeds(); })
      .def("note_user_gradient",
           [](Session& s) { s.tapes().NoteUserGradient(); })
      .def("make_once",
           [](Session& s, const std::string& name, const py::object& function,
              const py::object& tape, const py::tuple& given,
              const py::object& make) {
             PyRef made = PyRef::Steal(Makings(&s).On(
                 {name, function.ptr(), tape.ptr(), given.ptr(), make.ptr()}));
             if (!made) throw py::error_already_set();
             return ObjectOf(std::move(made));
           })
      .def("take_names",
           [](Session& s) { return ObjectOf(s.call_log().TakeNames()); })
      .def("take_log", &TakeLog)
      .def("release", &Session::Release)
      // The calling thread is inside the step from enter to leave.
      .def("enter", &Session::Enter)
      .def("leave", [](Session& s) {
        CurrentThread().session = nullptr;
        if (!s.tapes().Flush()) throw py::error_already_set();
      });
}

}  // namespace terra
