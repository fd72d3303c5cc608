// Of the Python module: what keeps the runtime's own Python whole, whatever
// exceptions come from outside.
#include <utility>

#include "kernels/bindings/binding_helpers.h"
#include "kernels/python/monitor.h"
#include "kernels/python/py_ref.h"
#include "kernels/session/session.h"
#include "kernels/session/step_run.h"

namespace terra {
namespace {

py::object Result(PyObject* result) {
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

}  // namespace

void BindStepRun(py::module_& m) {
  py::class_<Monitor>(m, "Monitor")
      .def(py::init<>())
      .def("run",
           [](Monitor& monitor, const py::object& function,
              const py::args& args) {
             return Result(monitor.Run(function.ptr(), args.ptr()));
           })
      .def("try_run",
           [](Monitor& monitor, const py::object& if_busy,
              const py::object& function, const py::args& args) {
             return Result(
                 monitor.TryRun(function.ptr(), args.ptr(), if_busy.ptr()));
           })
      .def_property_readonly("is_mine", &Monitor::IsMine);
  m.def("run_step", [](Session& session, const py::object& function,
                       const py::tuple& args, const py::dict& kwargs) {
    return Result(RunStep(&session, function.ptr(), args.ptr(), kwargs.ptr()));
  });
  m.def("run_once", [](const py::object& scope, const py::dict& results,
                       const py::object& key, const py::object& function,
                       const py::args& args) {
    if (!RunOnce(scope.ptr(), results.ptr(), key.ptr(), function.ptr(),
                 args.ptr())) {
      throw py::error_already_set();
    }
  });
  m.def("run_unrecorded", [](const py::object& function) {
    return Result(RunUnrecorded(function.ptr()));
  });
}

}  // namespace terra
