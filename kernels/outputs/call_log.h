// Calls that are being followed so as to be replayed the next time.
#ifndef TERRA_KERNELS_OUTPUTS_CALL_LOG_H_
#define TERRA_KERNELS_OUTPUTS_CALL_LOG_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "kernels/call/call.h"
#include "kernels/call/op_info.h"
#include "kernels/outputs/history.h"
#include "kernels/outputs/outputs.h"
#include "kernels/plan/library_gradient.h"
#include "kernels/plan/plan.h"
#include "kernels/plan/pure_record.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/tf_python.h"

namespace terra {

// What has happened in a call that is being learned. Outputs are known by
// their node and not held, so that what nobody else holds is free.
struct LoggedInput {
  int node = -1;
  int output = -1;
  PyRef outside;
};

struct LoggedStep {
  PureKind kind = PureKind::kOp;
  PyRef variable;
  int node = -1;
  const OpInfo* info = nullptr;
  Route route = Route::kFast;
  Counts counts;
  PyRef attrs;
  std::shared_ptr<const LibraryGradient> gradient;
  std::vector<LoggedInput> inputs;
  std::vector<int64_t> folded;  // ids of the results of a folded op
};

// A call that is being followed.
struct CallLearning {
  // `num_made`: how many outputs there are whose shapes its key tells.
  CallLearning(int64_t first_id, size_t num_made, bool has_history)
      : first_id(first_id), num_made(num_made), has_history(has_history) {}

  // Whether it makes a tensor of numbers itself.
  bool Makes(PyObject* tensor) const {
    return IdOf(tensor) >= first_id || kept.count(IdOf(tensor)) > 0;
  }

  const int64_t first_id;  // tensors with lower ids were there before the call
  // Its key tells the shapes of tensors that it is given. Of one that depends
  // on the history only this tells them: 0.
  const size_t num_made;
  // It depends on what has happened in the step, and so on what the history
  // tells of it.
  const bool has_history;
  std::string obstacle;  // why it cannot be replayed; empty: it can
  // Outputs (their indices) with values that follow from shapes and from
  // numbers of which the call makes tensors itself. Of these it makes the same
  // each time: its key or its history tells shapes.
  std::unordered_set<int32_t> determined;
  // What replayed calls in it have made of numbers before, and kept.
  std::unordered_set<int64_t> kept;
};

// One that depends on nothing but its arguments.
struct PureLearning {
  CallLearning call;
  size_t log_begin;
  size_t path_begin;
  size_t made_begin;
  int epoch;
  int64_t num_obstacles;
  PyRef context_values;  // a copy of what Keras' layers inherited, or null
  bool is_taped;
};

// Which calls of a step are being followed, and why they cannot be replayed.
//
// Invariant: `learned_` has the calls that are followed now, the innermost
// last, and `pure_` those of them that are pure; `log_` has what happened since
// the outermost pure one began, and is empty if there is none.
class CallLog {
 public:
  // `plan` may be null.
  CallLog(const Plan* plan, const Outputs& outputs, const History& history)
      : plan_(plan), outputs_(outputs), history_(history) {}
  CallLog(const CallLog&) = delete;

  bool is_learning() const { return !learned_.empty(); }
  bool is_learning_pure() const { return !pure_.empty(); }
  // A call begins that is followed until it ends; it is borrowed. Of a pure
  // one: what has happened in it.
  void Begin(CallLearning* learning) { learned_.push_back(learning); }
  void End() { learned_.pop_back(); }
  void BeginPure(PureLearning* learning);
  std::vector<LoggedStep> EndPure();

  // What is going on cannot be replayed.
  void Obstruct(const char* why) {
    obstacle_ = why;
    ++num_obstacles_;
  }
  // The same for pure calls only.
  void ObstructPure(const char* why) {
    for (PureLearning* learning : pure_) learning->call.obstacle = why;
  }
  int64_t num_obstacles() const { return num_obstacles_; }
  // The last one.
  const char* obstacle() const { return obstacle_; }

  // What sums and zeros are counted by after replayed calls; null if none was.
  PyRef TakeNames() { return std::move(names_); }
  void set_names(const PyRef& names) { names_ = names; }

  // An op is about to be delegated.
  void LogOp(const Call& call, int number);
  // Which objects a folded op, the last one, has returned.
  void LogFolded(absl::Span<const PyRef> results);
  // Something that tapes are going to be told.
  void LogEvent(PureKind kind, PyObject* variable);
  // Python records the last op itself.
  void LogRecord(PyObject* name, PyObject* inputs, PyObject* attrs);
  void LogGradient(const std::shared_ptr<const LibraryGradient>& gradient,
                   absl::Span<const PyRef> tensors);
  // Python reads a tensor.
  void NoteRead(PyObject* tensor, bool shape_only);
  // A replayed call takes a tensor that it has made of numbers once.
  void NoteKept(PyObject* tensor) {
    for (CallLearning* learning : learned_) learning->kept.insert(IdOf(tensor));
  }
  // Something follows from a tensor's shape. Where neither the plan nor the
  // history tells it, and the call's key does not, it cannot be replayed.
  void NoteShapeUse(PyObject* tensor);
  void NoteShapeUse(int32_t index);
  // The shape of an op's result follows from the value of a tensor that is no
  // constant of the plan.
  void NoteShapeValue(PyObject* tensor, const std::string& op);
  // Python knows the results of an op, which are the last ones made.
  void NoteKnownResults(const Call& call, const PlanNode& node);

 private:
  // Whether a call that does the same again has the same value there.
  bool IsDetermined(const CallLearning& learning, PyObject* tensor) const;
  LoggedInput LoggedFrom(const PyRef& tensor) const;

  const Plan* const plan_;
  const Outputs& outputs_;
  const History& history_;
  int64_t num_obstacles_ = 0;
  const char* obstacle_ = "";
  std::vector<PureLearning*> pure_;
  std::vector<CallLearning*> learned_;
  std::vector<LoggedStep> log_;
  PyRef names_;
};

}  // namespace terra

#endif  // TERRA_KERNELS_OUTPUTS_CALL_LOG_H_
