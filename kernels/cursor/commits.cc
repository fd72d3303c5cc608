#include "kernels/cursor/commits.h"

#include "kernels/runner/step.h"

namespace terra {

void Commits::CommitStep(int channel) {
  if (is_committed_) return;
  is_committed_ = true;
  context_.lamp().Say(Light::kCommits, "the step is committed, after ",
                      cursor_.position(), " ops");
  context_.step()->Send(channel, Message());
}

void Commits::CommitEpoch(int number, int channel) {
  if (num_committed_ > number) return;
  num_committed_ = number + 1;
  context_.lamp().Say(Light::kCommits, "epoch ", number,
                      " is committed, after ", cursor_.position(), " ops");
  context_.step()->Send(channel, Message());
}

void Commits::FinishEpoch(int number) {
  if (num_done_ > number) return;
  num_done_ = number + 1;
  epoch_start_ = cursor_.position();
  is_between_epochs_ = true;
  inputs_->ForgetWrites();
  context_.lamp().Say(Light::kCommits, "epoch ", number, " is done");
}

void Commits::ResumeEpoch(int number, int channel) {
  if (num_resumed_ >= number) return;
  num_resumed_ = number;
  is_between_epochs_ = false;
  inputs_->ForgetWrites();
  context_.lamp().Say(Light::kCommits, "epoch ", number, " begins");
  context_.step()->Send(channel, Message());
}

}  // namespace terra
