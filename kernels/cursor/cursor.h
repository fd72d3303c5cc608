// Where Python is in the plan.
#ifndef TERRA_KERNELS_CURSOR_CURSOR_H_
#define TERRA_KERNELS_CURSOR_CURSOR_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/outputs/history.h"
#include "kernels/outputs/step_context.h"
#include "kernels/plan/call_record.h"
#include "kernels/plan/hash.h"
#include "kernels/plan/plan.h"
#include "kernels/python/py_ref.h"

namespace terra {

// Invariant: `path_` has the nodes that have been matched, `at_` the last of
// them. The graph has been told the way up to `at_`, or up to `bound_for_` if
// that is set: the node that comes next for sure, which has not run yet. The
// epochs before `epoch_` are closed; if it is pending, it has not begun yet.
class Cursor {
 public:
  using Decision = std::pair<int, int64_t>;  // channel, branch

  Cursor(const StepContext& context, History* history);
  Cursor(const Cursor&) = delete;

  // How many ops have been matched, and which nodes they were.
  int position() const { return static_cast<int>(path_.size()); }
  const std::vector<int>& path() const { return path_; }
  // Where on the path an op has raised.
  const std::vector<int>& raised() const { return raised_; }
  // The last node, or -1 before the first.
  int at() const { return at_; }
  // The node whose way has been told but that has not run, or -1.
  int bound_for() const { return bound_for_; }
  bool is_bound() const { return bound_for_ >= 0; }
  int epoch() const { return epoch_; }
  bool epoch_is_pending() const { return epoch_is_pending_; }
  // The frame around the step's Python; borrowed from the controller.
  PyObject* stop_frame() const { return stop_frame_; }
  void set_stop_frame(PyObject* frame) { stop_frame_ = frame; }

  // Whether Python may come to the node from where it is, as far as the graph
  // knows.
  bool IsLegal(int number) const;
  // Whether what follows the last node is a matter of the location.
  bool IsAtFork() const;
  // What is to be said on the way between two nodes.
  std::vector<Decision> Decisions(int from, int to) const;
  // Says which way is taken from the last node to this one, once.
  void Decide(int number) {
    if (bound_for_ != number) Tell(number);
    bound_for_ = number;
  }
  // A node has been matched, and Python has its results.
  void Arrive(int number) {
    at_ = number;
    bound_for_ = -1;
    path_.push_back(number);
    history_->hash().Mix(Event::kNode, static_cast<uint64_t>(number));
  }
  // The same of one that has raised, and the step goes on.
  void ArriveAfterError(int number) {
    raised_.push_back(position());
    Arrive(number);
    history_->hash().Mix(Event::kNumber, ~uint64_t{0});
  }
  // As if a call had run that is being replayed.
  void Jump(const CallRecord& record);
  // Says which branches are skipped from here to the end of the step. False
  // if the step cannot end here; then nothing has been said.
  bool SkipToEnd();

  // An output has been made.
  void NoteProduced(const OutputSpec& spec, int node, int output) {
    for (int web : spec.webs) latest_[web] = {node, output};
  }
  // Whether an output is the latest of a web.
  bool IsLatest(int web, int node, int output) const {
    return latest_[web] == std::make_pair(node, output);
  }

  // The number of epochs that lie between here and the end.
  int EpochsLeft() const;
  // Whether an epoch begins with the node.
  bool BeginsEpoch(const PlanNode& node) const;
  // Closes the epochs before a node, all but the last of them resumed. False
  // with an exception set.
  bool CloseEpochs(int epoch);
  bool ResumePending();

 private:
  const Plan& plan() const { return *context_.plan(); }
  // Whether a way may go from one level to a later one, or to the end.
  bool CanSkip(int from, int to) const;
  // As Decisions, between two levels, without the latter's own decision.
  std::vector<Decision> DecisionsBefore(int from, int to) const;
  void Tell(int number);
  void Send(const std::vector<Decision>& decisions) const;

  const StepContext& context_;
  History* const history_;
  int at_ = -1;
  int bound_for_ = -1;
  int epoch_ = 0;
  bool epoch_is_pending_ = false;
  std::vector<int> path_;
  std::vector<int> raised_;
  std::vector<std::pair<int, int>> latest_;  // by web: node and output, or -1
  PyObject* stop_frame_ = nullptr;
};

}  // namespace terra

#endif  // TERRA_KERNELS_CURSOR_CURSOR_H_
