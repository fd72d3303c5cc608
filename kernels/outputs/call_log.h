// Calls that are being followed so as to be replayed the next time.
#ifndef TERRA_KERNELS_OUTPUTS_CALL_LOG_H_
#define TERRA_KERNELS_OUTPUTS_CALL_LOG_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/call/call.h"
#include "kernels/call/op_info.h"
#include "kernels/outputs/history.h"
#include "kernels/outputs/outputs.h"
#include "kernels/plan/library_gradient.h"
#include "kernels/plan/plan.h"
#include "kernels/plan/pure_record.h"
#include "kernels/python/py_ref.h"

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
};

struct PureLearning {
  size_t log_begin;
  size_t path_begin;
  size_t made_begin;
  int epoch;
  int64_t num_obstacles;
  int64_t first_id;      // tensors with lower ids were there before the call
  PyRef context_values;  // a copy of what Keras' layers inherited, or null
  bool is_taped;
  const char* obstacle = nullptr;  // why it cannot be replayed
};

// Which calls of a step are being followed, and why they cannot be replayed.
//
// Invariant: `pure_` has the pure calls that run now, the innermost last, and
// they are among the `num_learning_`; `log_` has what happened since the
// outermost of them began, and is empty if there is none.
class CallLog {
 public:
  // `plan` may be null.
  CallLog(const Plan* plan, const Outputs& outputs, const History& history)
      : plan_(plan), outputs_(outputs), history_(history) {}
  CallLog(const CallLog&) = delete;

  bool is_learning() const { return num_learning_ > 0; }
  bool is_learning_pure() const { return !pure_.empty(); }
  // A call begins that is followed, until it ends.
  void Begin() { ++num_learning_; }
  void End() { --num_learning_; }
  // The same of a pure one, which is borrowed. What has happened in it.
  void BeginPure(PureLearning* learning);
  std::vector<LoggedStep> EndPure();

  // What is going on cannot be replayed.
  void Obstruct(const char* why) {
    obstacle_ = why;
    ++num_obstacles_;
  }
  // The same for pure calls only.
  void ObstructPure(const char* why) {
    for (PureLearning* learning : pure_) learning->obstacle = why;
  }
  int64_t num_obstacles() const { return num_obstacles_; }
  // The last one.
  const char* obstacle() const { return obstacle_; }

  // What sums and zeros are counted by after replayed calls; null if none was.
  PyRef TakeNames() { return std::move(names_); }
  void set_names(const PyRef& names) { names_ = names; }

  // An op is about to be delegated.
  void LogOp(const Call& call, int number);
  // Something that tapes are going to be told.
  void LogEvent(PureKind kind, PyObject* variable);
  // Python records the last op itself.
  void LogRecord(PyObject* name, PyObject* inputs, PyObject* attrs);
  void LogGradient(const std::shared_ptr<const LibraryGradient>& gradient,
                   absl::Span<const PyRef> tensors);
  // Python reads a tensor.
  void NoteRead(PyObject* tensor, bool shape_only);

 private:
  LoggedInput LoggedFrom(const PyRef& tensor) const;

  const Plan* const plan_;
  const Outputs& outputs_;
  const History& history_;
  int num_learning_ = 0;
  int64_t num_obstacles_ = 0;
  const char* obstacle_ = "";
  std::vector<PureLearning*> pure_;
  std::vector<LoggedStep> log_;
  PyRef names_;
};

}  // namespace terra

#endif  // TERRA_KERNELS_OUTPUTS_CALL_LOG_H_
