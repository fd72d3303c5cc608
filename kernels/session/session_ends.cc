// Session: how it begins and ends, and its epochs. Nothing here can be
// interrupted by an exception of Python's.
#include <string>
#include <unordered_map>

#include "kernels/outputs/outputs.h"
#include "kernels/plan/hash.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"
#include "kernels/runner/graph_runner.h"
#include "kernels/runner/step.h"
#include "kernels/session/session.h"

namespace terra {
namespace {

constexpr double kWaitSliceS = 0.05;

bool IsStopped() {
  return PyRef::Steal(TFE_Py_TapeSetIsStopped()).get() == Py_True;
}

}  // namespace

std::string Session::Launch() {
  history_.hash().Mix(Event::kTape, IsStopped());
  std::vector<TFE_TensorHandle*> inputs;
  for (const WeakRef& input : plan_->launch_inputs) {
    if (input.get() == nullptr) {
      return "Terra: a tensor of the plan is not held";
    }
    inputs.push_back(EagerTensor_Handle(input.get()));
  }
  const std::string error = GraphRunner::Get().Launch(
      Runtime().c_context, step_, plan_->function_name, plan_->config_proto,
      inputs);
  if (!error.empty()) return error;
  was_launched_ = true;
  Live().push_back(this);
  return "";
}

void Session::Cancel() {
  const std::shared_ptr<Step> step = step_;
  const bool was_launched = was_launched_;
  ReleaseGil release;
  step->Cancel();
  // Nobody else will say of this one that it has ended.
  if (!was_launched) step->state().BeginRunning();
}

void Session::CommitStep(int channel) {
  if (committed_) return;
  committed_ = true;
  step_->Send(channel, Message());
}

void Session::CommitEpoch(int number, int channel) {
  if (num_epochs_committed_ > number) return;
  num_epochs_committed_ = number + 1;
  step_->Send(channel, Message());
}

void Session::FinishEpoch(int number) {
  if (num_epochs_done_ > number) return;
  num_epochs_done_ = number + 1;
  epoch_start_ = position();
  epoch_closed_ = true;
  slot_written_.assign(slot_written_.size(), 0);
}

void Session::ResumeEpoch(int number, int channel) {
  if (num_epochs_resumed_ >= number) return;
  num_epochs_resumed_ = number;
  epoch_closed_ = false;
  slot_written_.assign(slot_written_.size(), 0);
  step_->Send(channel, Message());
}

bool Session::IsOver() const {
  return CurrentThread().session != this &&
         (!live_ || (committed_ && is_queued_));
}

void Session::Abandon() {
  if (step_ != nullptr && !committed_) {
    Cancel();
    ReleaseGil release;
    while (!step_->state().WaitEnded(kWaitSliceS)) {
    }
  }
  for (size_t i = 0; i < made_.size(); ++i) {
    PoisonOutput(static_cast<int>(i), "Terra could not end the step",
                 static_cast<int>(absl::StatusCode::kInternal));
  }
  if (CurrentThread().session == this) CurrentThread().session = nullptr;
  mode_ = Mode::kImperative;
  Release();
}

void Session::GoOnTracing() {
  std::unordered_map<int, int> place;
  for (size_t i = 0; i < path_.size(); ++i) place[path_[i]] = i;
  for (Made& made : made_) {
    const auto it = place.find(made.node);
    made.node = it == place.end() ? -1 : it->second;
  }
  set_mode(Mode::kTracing);
}

bool Session::Release() {
  if (!live_) return false;
  live_ = false;
  auto& live = Live();
  for (size_t i = 0; i < live.size(); ++i) {
    if (live[i] == this) {
      live.erase(live.begin() + i);
      break;
    }
  }
  if (plan_ != nullptr) {
    plan_->num_made_before = made_.size();
    plan_->num_ops_before = path_.size();
  }
  table_.Clear();
  for (Made& made : made_) {
    if (made.handle != nullptr) made.handle->Unref();
    made.handle = nullptr;
  }
  made_.clear();
  feeds_.clear();
  feed_copies_.clear();
  variables_.clear();
  decided_.clear();
  history_.Clear();
  tape_log_.Clear();
  markers_.clear();
  if (step_ != nullptr) step_->Unregister();
  return true;
}

}  // namespace terra
