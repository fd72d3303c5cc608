// A time in which Python waited for the graph: for profiles and explain().
#ifndef TERRA_KERNELS_SESSION_STALL_H_
#define TERRA_KERNELS_SESSION_STALL_H_

#include <string>

#include "kernels/python/py_ref.h"
#include "kernels/session/session.h"
#include "tsl/profiler/lib/traceme.h"
#include "tsl/profiler/lib/traceme_encode.h"

namespace terra {

// What Python waited for. The numbers are runtime/waits.py's.
enum class Awaited {
  kValue = 0,    // a value or shape of the graph
  kGoAhead = 1,  // that all before an imperative op has succeeded
  kEnd = 2,      // the end of a step's graph
};

// Made before the wait, with the GIL held, and ended after it.
class Stall {
 public:
  Stall(Session* session, Awaited what, int node)
      : session_(session),
        what_(what),
        node_(node),
        before_s_(session->python_stall_s),
        trace_([&] {
          return tsl::profiler::TraceMeEncode("TerraStall",
                                              {{"step", session->step()->id()},
                                               {"what", static_cast<int>(what)},
                                               {"node", node}});
        }) {}

  // Tells the controller, which knows the user's line. Returns the wait's own
  // result, or -1 with an exception set.
  int End(int result) {
    const double waited_s = session_->python_stall_s - before_s_;
    if (result < 0 || waited_s < kLeastWaitS) return result;
    PyRef where = PyRef::Steal(
        PyObject_CallMethod(session_->controller(), "on_waited", "iid",
                            static_cast<int>(what_), node_, waited_s));
    if (!where) return -1;
    trace_.AppendMetadata([&] {
      const char* text = PyUnicode_AsUTF8(where.get());
      return tsl::profiler::TraceMeEncode({{"line", text ? text : "?"}});
    });
    return result;
  }

 private:
  // Below this nothing was awaited: it is what looking takes.
  static constexpr double kLeastWaitS = 5e-6;

  Session* session_;
  Awaited what_;
  int node_;
  double before_s_;
  tsl::profiler::TraceMe trace_;
};

}  // namespace terra

#endif  // TERRA_KERNELS_SESSION_STALL_H_
