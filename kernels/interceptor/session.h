// The session of a step: what the PythonRunner's thread is doing between the
// entry and the return of one call of a decorated function.
//
// Modes:
//   kTracing      ops run for real and are recorded by the controller
//   kCoExecution  ops are matched against the plan and delegated
//   kImperative   ops run for real, nothing is recorded
//   kSeizing      the step diverges: the owner waits until it is settled
// A session starts in one of the first two. kCoExecution goes over to
// kTracing or kImperative when it diverges; that is the controller's doing
// (Python: runtime/session.py), which replays the open epoch first.
//
// All members are touched with the GIL held, except where `Pending::ready` and
// the Step say otherwise. The owner thread matches; another thread may
// observe (readers, drain) and, through the controller, seize.
#ifndef TERRA_KERNELS_INTERCEPTOR_SESSION_H_
#define TERRA_KERNELS_INTERCEPTOR_SESSION_H_

#include <array>
#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/core/handle_table.h"
#include "kernels/interceptor/call.h"
#include "kernels/interceptor/plan.h"
#include "kernels/interceptor/py_ref.h"
#include "kernels/step.h"

namespace terra {

enum class Mode : int {
  kTracing = 1,
  kCoExecution = 2,
  kImperative = 3,
  kSeizing = 4,
};

// One output that this step has made.
struct Made {
  Made(tensorflow::TensorHandle* handle, int node, int output, int channel,
       bool ready)
      : handle(handle),
        node(node),
        output(output),
        fetch_channel(channel),
        ready(std::make_shared<std::atomic<bool>>(ready)) {}
  tensorflow::TensorHandle* handle;  // owned; null once released
  int node;
  int output;
  int fetch_channel;
  std::shared_ptr<std::atomic<bool>> ready;  // has a value (or is poisoned)
  bool seen = false;  // Python has looked at the value: pinned
};

class Session {
 public:
  // `plan` may be null (a session that only traces). `controller` is borrowed:
  // it owns the session.
  Session(std::shared_ptr<Plan> plan, PyObject* controller);
  ~Session();
  Session(const Session&) = delete;

  Mode mode() const { return mode_; }
  void set_mode(Mode mode) { mode_ = mode; }
  int position() const { return position_; }
  Plan* plan() const { return plan_.get(); }
  Step* step() const { return step_.get(); }
  PyObject* controller() const { return controller_; }
  std::deque<Made>& made() { return made_; }
  bool ShapeIsKnown(const Made& made) const {
    return made.ready->load() ||
           plan_->nodes[made.node].outputs[made.output].shape_known;
  }

  // Starts the graph. Throws std::runtime_error (bindings translate it).
  void Launch();
  void Commit(int channel);

  // The hooks' entries. New reference, or null with an exception set.
  PyObject* OnCall(const Call& call);

  // Index into made() of a handle, or -1.
  int32_t FindMade(const tensorflow::TensorHandle* handle) const {
    return table_.Find(handle);
  }

  // Waits (GIL released, signals served) until `made` has a value. Returns 1;
  // 0 when the step ended without it; -1 with an exception set.
  int WaitReady(const Made& made);
  // The same for a check channel that carries no tensor.
  int WaitChannel(int channel);
  // Waits for the end of the graph. 1, or -1 with an exception set.
  int WaitEnded();

  // Whether somebody besides this session holds the output's handle.
  static bool IsReferenced(const Made& made);
  // Gives a pending output its value, or an error.
  void SetOutput(int index, PyObject* tensor);
  void PoisonOutput(int index, const std::string& message, int code);
  PyRef OutputTensor(int index) const;
  // Registers outputs of an op that ran for real under node `node`.
  void AddReal(int node, PyObject* outputs);
  // Drops every handle and feed; readers no longer find this session.
  void Release();

  // Whether an op outside the step that touches the resource must not run
  // before this step is settled.
  bool ConflictsWith(uint64_t resource_key, bool writes) const;
  // Whether some variable will hold another value once this step is settled:
  // for ops that may read variables unseen (dataset iterators).
  bool HasUnsettledWrites() const;
  // From closing an epoch until it resumes, nothing is in doubt.
  void MarkEpochClosed();
  void set_committed(bool committed) { committed_ = committed; }
  bool committed() const { return committed_; }
  bool is_live() const { return live_; }

  PyRef Feed(int slot) const;
  PyRef Variable(int slot) const;
  // (key, counter_low, counter_high) of a seeded node that was matched.
  const std::vector<std::pair<int, std::array<uint64_t, 3>>>& seeds() const {
    return seeds_;
  }
  double python_stall_s = 0;
  int64_t num_matched = 0;

  static std::vector<Session*>& Live();

 private:
  PyObject* Trace(const Call& call);
  PyObject* CoExecute(const Call& call);
  // While the session is being seized by another thread, waits. False with an
  // exception set.
  bool AwaitSeizure();
  // Writes an op down that has run although its session left co-execution.
  bool RecordAfterwards(const Call& call, int index, PyObject* outputs);
  PyObject* RunImperative(const Call& call, PlanNode* node);
  PyObject* Delegate(const Call& call, PlanNode* node);
  // Null when the call is what the plan expects; else why not.
  const char* Verify(const Call& call, PlanNode* node, std::string* detail);
  const char* VerifyInput(const InputRef& ref, PyObject* tensor,
                          std::string* detail);
  const char* VerifyVariable(const InputRef& ref, PyObject* tensor,
                             std::string* detail);
  const char* VerifyFeed(const InputRef& ref, PyObject* tensor,
                         std::string* detail);
  const char* VerifySeeds(const Call& call, PlanNode* node,
                          std::string* detail);
  // Calls the controller. False with an exception set.
  bool Diverge(const char* reason, const std::string& detail);
  void BindInputs(const Call& call, const PlanNode& node);
  void PushSeeds(const Call& call, const PlanNode& node, int index);
  // Returns the copy it made because somebody else could change the bytes.
  PyRef PutTensor(int channel, PyObject* tensor);
  PyRef MakePending(const OutputSpec& spec, int node, int output);
  void RegisterReal(PyObject* tensor, int node, int output);
  bool RecordOnTape(const Call& call, const PlanNode& node,
                    const std::vector<PyRef>& outputs);
  int AwaitInputs(const Call& call);
  void SweepDead();

  std::shared_ptr<Plan> plan_;
  std::shared_ptr<Step> step_;
  PyObject* controller_;
  Mode mode_;
  int position_ = 0;
  bool live_ = true;
  bool committed_ = false;
  bool epoch_closed_ = false;
  HandleTable table_;
  std::deque<Made> made_;
  std::vector<PyRef> feeds_;        // as Python gave them: for identity
  std::vector<PyRef> feed_copies_;  // where NumPy could change the bytes
  std::vector<PyRef> variables_;
  std::vector<std::pair<uint64_t, int>> bound_;  // resource key, slot
  std::vector<char> slot_written_;               // in the open epoch
  std::vector<std::pair<int, std::array<uint64_t, 3>>> seeds_;
  int64_t real_bytes_ = 0;
};

// Runs the call for real with the tape stopped, then records it with a marker
// that names `node`. New reference to the result.
PyObject* ExecuteAndRecord(const Call& call, int node);

// Whether a gradient tape or forward accumulator listens on this thread.
bool TapeIsActive();

}  // namespace terra

#endif  // TERRA_KERNELS_INTERCEPTOR_SESSION_H_
