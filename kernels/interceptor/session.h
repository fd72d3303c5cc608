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
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/core/handle_table.h"
#include "kernels/interceptor/call.h"
#include "kernels/interceptor/claims.h"
#include "kernels/interceptor/history.h"
#include "kernels/interceptor/library_call.h"
#include "kernels/interceptor/lifetimes.h"
#include "kernels/interceptor/making.h"
#include "kernels/interceptor/outputs.h"
#include "kernels/interceptor/plan.h"
#include "kernels/interceptor/pure_call.h"
#include "kernels/interceptor/py_ref.h"
#include "kernels/interceptor/tape_log.h"
#include "kernels/step.h"

namespace terra {

enum class Mode : int {
  kTracing = 1,
  kCoExecution = 2,
  kImperative = 3,
  kSeizing = 4,
};

class Session {
  friend class PureLearner;

 public:
  // `plan` may be null (a session that only traces). `controller` is borrowed:
  // it owns the session.
  Session(std::shared_ptr<Plan> plan, PyObject* controller);
  ~Session();
  Session(const Session&) = delete;

  Mode mode() const { return mode_; }
  void set_mode(Mode mode);
  // How many ops have been matched, and which nodes they were.
  int position() const { return static_cast<int>(path_.size()); }
  const std::vector<int>& path() const { return path_; }
  Plan* plan() const { return plan_.get(); }
  Step* step() const { return step_.get(); }
  PyObject* controller() const { return controller_; }
  std::deque<Made>& made() { return made_; }
  const Made& made(int index) const { return made_[index]; }
  // The hash of an output's shape where the plan knows it, or null.
  const uint64_t* PlannedShape(int index) const {
    const Made& made = made_[index];
    const OutputSpec& spec = plan_->nodes[made.node].outputs[made.output];
    return spec.shape_known ? &spec.shape_hash : nullptr;
  }
  bool ShapeIsKnown(int index) const { return ShapeIsKnown(made_[index]); }
  bool ShapeIsKnown(const Made& made) const {
    return made.ready->load() || made.shape.IsFullyDefined() ||
           plan_->nodes[made.node].outputs[made.output].shape_known;
  }

  // Starts the graph. Throws std::runtime_error (bindings translate it).
  void Launch();
  // Cancels the graph, also one that was not started. Needs the GIL, and lets
  // it go.
  void Cancel();

  // The ends of the step and its epochs (session_ends.cc). Each of them is done
  // at once, and once: who is interrupted in between calls it again.
  void CommitStep(int channel);
  void CommitEpoch(int number, int channel);
  // The writes of an epoch have happened.
  void FinishEpoch(int number);
  void ResumeEpoch(int number, int channel);
  int num_epochs_committed() const { return num_epochs_committed_; }
  int num_epochs_done() const { return num_epochs_done_; }
  // How many ops were matched before the open epoch.
  int epoch_start() const { return epoch_start_; }
  // A committed step is in the queue of those in flight.
  void set_is_queued() { is_queued_ = true; }
  bool is_queued() const { return is_queued_; }
  bool has_entered() const { return has_entered_; }
  // Whether nothing is left to be done by the thread that ran the step.
  bool IsOver() const;
  // The last resort where the controller cannot end the step: cancels it, and
  // poisons what is pending.
  void Abandon();
  // The recorder has been interrupted: nothing is learned from this step.
  // Returns null.
  PyObject* AbandonTrace() {
    if (mode_ == Mode::kTracing) mode_ = Mode::kImperative;
    return nullptr;
  }
  // Goes on recording what a step does that has left its graph.
  void GoOnTracing();

  // The hooks' entries. New reference, or null with an exception set.
  PyObject* OnCall(const Call& call);

  // Call replay (session_calls.cc). Runs a call of a library function, or does
  // without its Python. New reference, or null with an exception set.
  PyObject* OnLibraryCall(const LibraryCall& call);
  // The same for a function that depends on its arguments only.
  PyObject* OnPureCall(const PureCall& call);
  // What Python makes of the step so far, or has made in a step like it, and
  // whether it is from such a step (session_making.cc). New reference to a
  // tuple, or null with an exception set.
  PyObject* OnMaking(const Making& making);
  // Something that tapes are going to be told: part of calls being learned.
  void LogEvent(PureKind kind, PyObject* variable);
  // Python records the last op itself.
  void LogRecord(PyObject* name, PyObject* inputs, PyObject* attrs);
  // Calls being learned cannot be replayed as pure ones.
  void ObstructPure(const char* why) {
    for (PureLearning* learning : pure_learnings_) learning->obstacle = why;
  }
  // Something has happened to a tape: part of the history.
  void NoteTapeEvent(TapeEvent event, PyObject* tape, PyObject* tensor);
  void NoteFlags(PyObject* flags);
  // Tapes are told of an op whose gradient is a Python function
  // (session_gradients.cc). New reference, or null with an exception set.
  PyObject* OnRecordOperation(PyObject* original, PyObject* args,
                              PyObject* kwargs);
  void ForgetTape(PyObject* tape) { tapes_.erase(tape); }
  bool KnowsTape(PyObject* tape) const { return tapes_.count(tape) > 0; }
  // Python reads a tensor while calls may be learned.
  void NoteRead(PyObject* tensor, bool shape_only);
  // What is going on cannot be replayed.
  void Obstruct(const char* why) {
    obstacle_ = why;
    ++num_obstacles_;
  }
  // From now on no gradient of this step is replayed.
  void NoteUserGradient() { runs_user_gradients_ = true; }
  // What sums and zeros are counted by after replayed calls; null if none was.
  PyRef TakeNames() { return std::move(names_); }

  // Says which branches are skipped from here to the end of the step. False
  // if the step cannot end here; then nothing has been said.
  bool SkipToEnd();
  // The number of epochs that lie between here and the end.
  int EpochsLeft() const;
  // How long outputs were held while the step was traced, which has ended.
  std::vector<Lifetime> LifetimesAtEnd(int num_ops) const {
    return lifetimes_.AtEnd(made_, num_ops);
  }
  const std::vector<Decided>& decided() const { return decided_; }
  void set_stop_frame(PyObject* frame) { stop_frame_ = frame; }

  // Index into made() of a handle, or -1.
  int32_t FindMade(const tensorflow::TensorHandle* handle) const {
    return table_.Find(handle);
  }

  // Waits (GIL released, signals served) until `made` has a value. Returns 1;
  // 0 when the step ended without it; -1 with an exception set.
  int WaitReady(const Made& made);
  // The same for a check channel that carries no tensor.
  int WaitChannel(int channel, int node = -1);
  // Waits for the end of the graph. 1, or -1 with an exception set.
  int WaitEnded();

  // Whether somebody besides this session holds the output's handle.
  static bool IsReferenced(const Made& made);
  // Gives a pending output its value, or an error.
  void SetOutput(int index, PyObject* tensor);
  void PoisonOutput(int index, const std::string& message, int code);
  PyRef OutputTensor(int index) const;
  // Registers outputs of an op that ran for real under node `node`.
  void AddReal(int node, PyObject* marker, PyObject* outputs);
  // Tells tapes of an op that has run, now or when somebody looks at them.
  bool TellTapes(PyObject* name, absl::Span<const PyRef> inputs,
                 PyObject* attrs, absl::Span<const PyRef> outputs);
  // Puts what tapes have not been told on them. False with an exception set.
  bool FlushTapes() { return tape_log_.is_empty() || tape_log_.Flush(); }
  // The same for all sessions.
  static bool FlushAllTapes();
  // Before a variable is watched.
  bool NoteAccess(PyObject* handle);
  // A tape has been made: others may be gone.
  void PruneTapes() { tape_log_.Prune(); }
  const TapeLog& tape_log() const { return tape_log_; }
  // The calling thread comes into the step.
  void Enter();

  // Keeps the name of an op that is being traced.
  PyObject* KeepMarker(PyRef marker) {
    markers_.push_back(std::move(marker));
    return markers_.back().get();
  }
  // Drops every handle and feed; readers no longer find this session. False if
  // that has been done.
  bool Release();

  // Whether an op outside the step that touches the resource must not run
  // before this step is settled.
  bool ConflictsWith(uint64_t resource_key, bool writes) const;
  // Whether some variable will hold another value once this step is settled:
  // for ops that may read variables unseen (dataset iterators).
  bool HasUnsettledWrites() const;
  bool committed() const { return committed_; }
  bool is_live() const { return live_; }

  // The very tensor that was fed, and what the graph got: a copy of one that
  // NumPy could change.
  PyRef Feed(int slot) const;
  PyRef FeedValue(int slot) const;
  PyRef Variable(int slot) const;
  // (key, counter_low, counter_high) of a seeded node that was matched.
  const std::vector<std::pair<int, std::array<uint64_t, 3>>>& seeds() const {
    return seeds_;
  }
  // Where on the path an op has raised.
  const std::vector<int>& raised() const { return raised_; }
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
  bool RecordAfterwards(const Call& call, int index, PyObject* marker,
                        PyObject* outputs);
  // A node has been matched, and Python has its results.
  void Arrive(int number) {
    at_ = number;
    bound_for_ = -1;
    path_.push_back(number);
    history_.hash().Mix(Event::kNode, static_cast<uint64_t>(number));
    ++num_matched;
  }
  // The same for one that has raised.
  bool RecordError(const Call& call, int index, PyObject* type);
  PyObject* RunImperative(const Call& call, int number);
  // An imperative op has raised. The graph has been told that Python took this
  // way, and if the program catches the error, it goes on another.
  void LeaveAfterError(const Call& call);
  // The same where steps are known to go on behind an op that has raised: the
  // graph gets something in the place of its results, of which nothing is used.
  // False if this step cannot; with the error set in either case.
  bool PassAfterError(int number);
  PyObject* FinishReal(const Call& call, int number, int index, PyRef result);
  // With `flat`, results may be added there, and None is what is returned.
  PyObject* Delegate(const Call& call, int number, Tensors* flat = nullptr);
  // Behind the last op of a `try`: what can fail in it has failed or has not.
  bool LeaveTry(int exit_channel, int number);
  // Ops whose results the cursor knows (session_host.cc).
  PyObject* RunOnHost(const Call& call, int number);
  int AwaitKnown(const Call& call, bool shapes_only);
  PyRef AskForShapes(const Call& call, const PlanNode& node);
  // The node that the call is, or -1 (then `reason` says why, or the mode has
  // changed), or -2 with an exception set.
  int FindNode(const Call& call, const char** reason, std::string* detail);
  int TryNodes(const std::vector<int>& candidates, const Call& call,
               const char** reason, std::string* detail);
  // Puts those first that merging would take the call for: where Python runs an
  // op itself, Verify lets pass what any of several siblings could be.
  void PreferFitting(const Call& call, std::vector<int>* candidates);
  // The nodes at the place where Python is. Null with an exception set.
  const Place* PlaceHere();
  bool IsLegal(int number) const;
  // Whether a way may go from one level to a later one, or to the end.
  bool CanSkip(int from, int to) const;
  // What is to be said on the way between two nodes: (channel, branch).
  std::vector<std::pair<int, int64_t>> Decisions(int from, int to) const;
  // The same between two levels, without the latter's own decision.
  std::vector<std::pair<int, int64_t>> DecisionsBefore(int from, int to) const;
  void SendDecision(int channel, int64_t branch) {
    Message message;
    message.index = branch;
    step_->Send(channel, std::move(message));
  }
  // Says which way is taken from the last node to this one.
  void Decide(int number);
  // Closes the epochs before a node, all but the last of them resumed. False
  // with an exception set.
  bool CloseEpochs(int epoch);
  bool ResumePending();
  // Whether an epoch begins with the node.
  bool BeginsEpoch(const PlanNode& node) const;
  // Null when the call is what the plan expects; else why not.
  const char* Verify(const Call& call, PlanNode* node, std::string* detail);
  // `claims`: of the inputs that have been verified together with this one.
  const char* VerifyInput(const InputRef& ref, PyObject* tensor, Claims* claims,
                          std::string* detail);
  const char* VerifyVariable(const InputRef& ref, PyObject* tensor,
                             Claims* claims, std::string* detail);
  const char* VerifyFeed(const InputRef& ref, PyObject* tensor, Claims* claims,
                         std::string* detail);
  const char* VerifyNewFeed(const InputRef& ref, PyObject* tensor,
                            std::string* detail);
  const char* VerifySeeds(const Call& call, PlanNode* node,
                          std::string* detail);
  // A call that is being followed so as to be replayed the next time.
  struct Learning {
    int begin;
    int at;
    int epoch;
    size_t num_made;
    size_t num_bindings;
    int num_names;
    int64_t num_obstacles;
    int64_t first_id;  // tensors with lower ids were there before the call
  };
  const char* MixArgument(PyObject* value, Hash* key, int depth);
  const char* MixItems(PyObject* items, Hash* key, int depth);
  // Null where there is no object; a string that says why there is no guard.
  PyRef GuardObjects(const std::vector<PyObject*>& objects);
  const char* MixTensor(PyObject* tensor, Hash* key);
  void MixIdentity(PyObject* tensor);
  const char* KeyOf(const LibraryCall& call, uint64_t* key);
  std::string WhyNotNow(const LibraryCall& call) const;
  PyObject* RunAndLearn(const LibraryCall& call, uint64_t key);
  std::shared_ptr<CallRecord> Learn(const Learning& learning, PyObject* result);
  std::string LearnPath(const Learning& learning, CallRecord* record);
  std::string LearnBindings(const Learning& learning, CallRecord* record);
  std::string LearnResult(PyObject* value, const Learning& learning,
                          CallRecord* record, ResultPattern* pattern);
  std::string LearnTensor(PyObject* tensor, const Learning& learning,
                          CallRecord* record, ResultPattern* pattern);
  std::string LearnKept(const Learning& learning,
                        const CallRecord& record) const;
  bool DependsOnNumbers(const PlanNode& node) const;
  std::string WhyNotMade(const Making& making) const;
  PyObject* ReplayMaking(const MakingRecord& record, PyObject* tensors);
  PyObject* MakeAndLearn(const Making& making, uint64_t key);
  std::string LearnTensors(PyObject* tensors, int num_names,
                           MakingRecord* record) const;
  PyRef FindTensors(const MakingRecord& record) const;
  bool IsAtFork() const;
  const char* KeyOfPure(const PureCall& call, bool is_at_fork,
                        PureKey* key) const;
  // Keeps in `held` alive what is neither the record's nor an argument.
  bool PureFits(const PureRecord& record, const Operands& operands,
                Tensors* held);
  bool ReplayOp(const PureStep& step, const Operands& operands, Tensors* made);
  PyObject* ReplayPure(const PureRecord& record, const Operands& operands);
  bool ReplayGradient(const PureStep& step, const Operands& operands,
                      const Tensors& made);
  // Puts it into the history. False if it cannot be there.
  bool NoteGradient(const std::shared_ptr<const LibraryGradient>& gradient,
                    absl::Span<const PyRef> tensors);
  // Its gradient may be the user's, or what it depends on is not known.
  void NoteUnknownGradient();
  LoggedInput LoggedFrom(const PyRef& tensor) const;
  // Runs it, and compares.
  PyObject* CheckPure(const PureCall& call, const PureKey& key,
                      const std::shared_ptr<const PureRecord>& known);
  PyObject* LearnPureCall(const PureCall& call, const PureKey& key);
  void KeepPure(const char* name, uint64_t key,
                const std::shared_ptr<PureRecord>& record);
  void LogOp(const Call& call, int number);
  // 1: may be replayed, 0: not this time, -1 with an exception set.
  int Fits(const CallRecord& record);
  PyObject* ReplayCall(const CallRecord& record);
  void Rebind(const Binding& binding);
  PyRef MakeResult(const ResultPattern& pattern, const Tensors& made,
                   const Operands& operands) const;
  // Calls the controller. False with an exception set.
  bool Diverge(const char* reason, const std::string& detail);
  // What this step knows of a call's inputs, without waiting.
  std::vector<KnownInput> KnownInputs(const Call& call);
  static bool IsReadyOutside(tensorflow::TensorHandle* handle);
  bool WriteFits(const Call& call, const PlanNode& node);
  const char* VerifyJoin(const InputRef& ref, PyObject* tensor,
                         std::string* detail);
  void BindInputs(const Call& call, const PlanNode& node);
  void BindVariable(const VariableSlot& slot, PyObject* tensor);
  void BindJoin(int number, PyObject* tensor);
  void TellJoin(int number);
  // Mixes the name of a tensor that has one; returns it, or -1.
  int NoteOutside(PyObject* tensor);
  // A constant that is not made on the spot is part of the history.
  void NoteConstant(int slot, PyObject* tensor);
  void NoteProduced(const OutputSpec& spec, int node, int output) {
    for (int web : spec.webs) web_latest_[web] = {node, output};
  }
  void BindFeed(int slot, PyObject* tensor);
  void FeedVariable(int slot, PyObject* tensor);
  void MixShapeOf(PyObject* tensor);
  void PushSeeds(const Call& call, const PlanNode& node, int index,
                 const std::vector<tensorflow::PartialTensorShape>& inferred);
  // Returns the copy it made because somebody else could change the bytes.
  PyRef PutTensor(int channel, PyObject* tensor);
  PyRef MakePending(const OutputSpec& spec, int node, int output,
                    PyObject* marker,
                    const tensorflow::PartialTensorShape& inferred);
  void RegisterReal(PyObject* tensor, int node, int output, PyObject* marker);
  // Whether this thread's tapes can be told later.
  bool DefersTapes();
  // Runs the call for real with the tape stopped, then records it with a marker
  // that names it. New reference to the result.
  PyObject* ExecuteAndRecord(const Call& call, PyObject* marker);
  std::atomic<bool>* NewReady(bool is_ready) {
    return &ready_->emplace_back(is_ready);
  }
  int AwaitInputs(const Call& call);
  void SweepDead();

  std::shared_ptr<Plan> plan_;
  std::shared_ptr<Step> step_;
  PyObject* controller_;
  Mode mode_;
  int at_ = -1;         // the last node, or -1 before the first
  int bound_for_ = -1;  // the node whose way has been told but that has not run
  int uncertain_write_ = -1;  // the node that was refused last
  int refused_feed_ = -1;     // the slot whose integers were out of range
  int epoch_ = 0;
  bool epoch_is_pending_ = false;  // closed, and not resumed yet
  std::vector<int> path_;
  std::vector<int> raised_;
  std::vector<std::pair<int, int>> web_latest_;  // node and output, or -1
  std::vector<Decided> decided_;
  std::vector<PyRef> markers_;
  PyObject* stop_frame_ = nullptr;  // borrowed from the controller
  bool live_ = true;
  bool committed_ = false;
  bool epoch_closed_ = false;  // until it resumes nothing is in doubt
  int num_epochs_committed_ = 0;
  int num_epochs_done_ = 0;
  int num_epochs_resumed_ = 0;
  int epoch_start_ = 0;
  bool has_entered_ = false;
  bool was_launched_ = false;
  bool is_queued_ = false;
  // Check channels that are awaited -> whether the message has come.
  std::unordered_map<int, std::shared_ptr<std::atomic<bool>>> awaited_;
  HandleTable table_;
  std::deque<Made> made_;
  // Whether each of them has a value. Whoever waits for one keeps them all.
  std::shared_ptr<std::deque<std::atomic<bool>>> ready_ =
      std::make_shared<std::deque<std::atomic<bool>>>();
  std::vector<PyRef> feeds_;        // as Python gave them: for identity
  std::vector<PyRef> feed_copies_;  // where NumPy could change the bytes
  std::vector<PyRef> variables_;    // by variable
  std::vector<char> is_fed_;        // by slot
  std::vector<std::pair<uint64_t, int>> bound_;  // resource key, slot
  std::vector<char> slot_written_;               // in the open epoch
  std::vector<std::pair<int, std::array<uint64_t, 3>>> seeds_;
  int64_t real_bytes_ = 0;
  Lifetimes lifetimes_;
  History history_;
  std::vector<Binding> bindings_;             // in the order of first use
  std::unordered_map<PyObject*, int> tapes_;  // made in this step -> number
  int num_tapes_ = 0;
  int num_learning_ = 0;
  int64_t num_obstacles_ = 0;
  const char* obstacle_ = "";
  bool runs_user_gradients_ = false;
  TapeLog tape_log_;
  bool has_outer_tapes_ = false;     // that recorded before the step began
  int64_t tapes_version_ = -1;       // of the active tapes, when
  bool knows_active_tapes_ = false;  // this was found out
  PyRef names_;
  bool takes_objects_ = false;      // of the call whose key is being made
  std::vector<PyObject*> objects_;  // among its arguments
  std::vector<PureLearning*> pure_learnings_;  // the innermost last
  std::vector<LoggedStep> log_;                // of the outermost
};

// Hashes where the calling thread's Python is: code and instruction of every
// frame inside `stop_frame`.
uint64_t HashOfStack(PyObject* stop_frame);

// Whether a gradient tape or forward accumulator listens on this thread.
bool TapeIsActive();

}  // namespace terra

#endif  // TERRA_KERNELS_INTERCEPTOR_SESSION_H_
