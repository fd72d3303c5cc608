// What of a step has become permanent.
#ifndef TERRA_KERNELS_CURSOR_COMMITS_H_
#define TERRA_KERNELS_CURSOR_COMMITS_H_

#include "kernels/cursor/cursor.h"
#include "kernels/cursor/inputs.h"
#include "kernels/outputs/step_context.h"

namespace terra {

// Invariant: epochs are committed, done and resumed in order, each once, and a
// committed one is done before the next is resumed. Each method is done at
// once, and once: who is interrupted in between calls it again. None of them
// can be interrupted by an exception of Python's.
class Commits {
 public:
  Commits(const StepContext& context, const Cursor& cursor, Inputs* inputs)
      : context_(context), cursor_(cursor), inputs_(inputs) {}
  Commits(const Commits&) = delete;

  void CommitStep(int channel);
  void CommitEpoch(int number, int channel);
  // The writes of an epoch have happened.
  void FinishEpoch(int number);
  void ResumeEpoch(int number, int channel);
  // A committed step is in the queue of those in flight.
  void set_is_queued() { is_queued_ = true; }

  bool is_committed() const { return is_committed_; }
  bool is_queued() const { return is_queued_; }
  int num_committed() const { return num_committed_; }
  int num_done() const { return num_done_; }
  // From the end of an epoch until it resumes nothing is in doubt.
  bool is_between_epochs() const { return is_between_epochs_; }
  // How many ops were matched before the open epoch.
  int epoch_start() const { return epoch_start_; }

 private:
  const StepContext& context_;
  const Cursor& cursor_;
  Inputs* const inputs_;
  bool is_committed_ = false;
  bool is_queued_ = false;
  bool is_between_epochs_ = false;
  int num_committed_ = 0;
  int num_done_ = 0;
  int num_resumed_ = 0;
  int epoch_start_ = 0;
};

}  // namespace terra

#endif  // TERRA_KERNELS_CURSOR_COMMITS_H_
