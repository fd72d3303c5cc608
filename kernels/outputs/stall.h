// A time in which Python waited for the graph: for profiles and explain().
#ifndef TERRA_KERNELS_OUTPUTS_STALL_H_
#define TERRA_KERNELS_OUTPUTS_STALL_H_

#include <string>

#include "kernels/outputs/step_context.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/waiting.h"
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
  // `stall_s`: what the wait adds its time to.
  Stall(const StepContext& context, const double* stall_s, Awaited what,
        int node)
      : context_(context),
        stall_s_(stall_s),
        what_(what),
        node_(node),
        before_s_(*stall_s),
        trace_([&] {
          return tsl::profiler::TraceMeEncode("TerraStall",
                                              {{"step", context.step()->id()},
                                               {"what", static_cast<int>(what)},
                                               {"node", node}});
        }) {}

  // Tells the controller, which knows the user's line. Returns the wait's own
  // result, or kError.
  Waited End(Waited result) {
    const double waited_s = *stall_s_ - before_s_;
    if (result == Waited::kError || waited_s < kLeastWaitS) return result;
    PyRef where = PyRef::Steal(
        PyObject_CallMethod(context_.controller(), "on_waited", "iid",
                            static_cast<int>(what_), node_, waited_s));
    if (!where) return Waited::kError;
    trace_.AppendMetadata([&] {
      const char* text = PyUnicode_AsUTF8(where.get());
      return tsl::profiler::TraceMeEncode({{"line", text ? text : "?"}});
    });
    return result;
  }

 private:
  // Below this nothing was awaited: it is what looking takes.
  static constexpr double kLeastWaitS = 5e-6;

  const StepContext& context_;
  const double* stall_s_;
  Awaited what_;
  int node_;
  double before_s_;
  tsl::profiler::TraceMe trace_;
};

}  // namespace terra

#endif  // TERRA_KERNELS_OUTPUTS_STALL_H_
