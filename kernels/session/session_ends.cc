// Session: how it begins and ends. Nothing here can be
// interrupted by an exception of Python's.
#include <algorithm>
#include <string>

#include "kernels/outputs/outputs.h"
#include "kernels/outputs/step_context.h"
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
  for (const WeakRef& input : plan()->launch_inputs) {
    if (input.get() == nullptr) {
      return "Terra: a tensor of the plan is not held";
    }
    inputs.push_back(EagerTensor_Handle(input.get()));
  }
  const std::string error = GraphRunner::Get().Launch(
      Runtime().c_context, context_.shared_step(), plan()->function_name,
      plan()->config_proto, inputs);
  if (!error.empty()) return error;
  was_launched_ = true;
  Join();
  return "";
}

void Session::Cancel() {
  const std::shared_ptr<Step> step = context_.shared_step();
  const bool was_launched = was_launched_;
  ReleaseGil release;
  step->Cancel();
  // Nobody else will say of this one that it has ended.
  if (!was_launched) step->state().BeginRunning();
}

bool Session::IsOver() const {
  return CurrentThread().session != this &&
         (!is_live_ || (commits_.is_committed() && commits_.is_queued()));
}

void Session::Abandon() {
  if (step() != nullptr && !commits_.is_committed()) {
    Cancel();
    ReleaseGil release;
    while (!step()->state().WaitEnded(kWaitSliceS)) {
    }
  }
  for (size_t i = 0; i < outputs_.size(); ++i) {
    outputs_.Poison(static_cast<int>(i), "Terra could not end the step",
                    static_cast<int>(absl::StatusCode::kInternal));
  }
  if (CurrentThread().session == this) CurrentThread().session = nullptr;
  context_.set_mode(Mode::kImperative);
  Release();
}

void Session::GoOnTracing() {
  outputs_.Renumber(cursor_.path());
  set_mode(Mode::kTracing);
}

bool Session::Release() {
  if (!is_live_) return false;
  is_live_ = false;
  auto& live = Live();
  const auto it = std::find(live.begin(), live.end(), this);
  if (it != live.end()) live.erase(it);
  auto& outputs = Outputs::Live();
  const auto its = std::find(outputs.begin(), outputs.end(), &outputs_);
  if (its != outputs.end()) outputs.erase(its);
  if (plan() != nullptr) {
    plan()->num_made_before = outputs_.size();
    plan()->num_ops_before = cursor_.path().size();
  }
  outputs_.Clear();
  inputs_.Clear();
  history_.Clear();
  tapes_.Clear();
  if (step() != nullptr) step()->Unregister();
  return true;
}

}  // namespace terra
