#include "kernels/session/session.h"

#include <algorithm>
#include <utility>

#include "kernels/core/step_state.h"
#include "kernels/python/thread.h"

namespace terra {

std::vector<Session*>& Session::Live() {
  static auto* live = new std::vector<Session*>;
  return *live;
}

void Session::ForgetLive() {
  Live().clear();
  Outputs::Live().clear();
}

Session::Session(std::shared_ptr<Plan> plan, PyObject* controller)
    : context_(std::move(plan), controller, this),
      waits_(context_),
      outputs_(&context_, &waits_),
      history_(context_.plan(), outputs_),
      call_log_(context_.plan(), outputs_, history_),
      inputs_(context_, outputs_, &history_),
      cursor_(context_, &history_),
      matcher_(context_, outputs_, inputs_, cursor_),
      commits_(context_, cursor_, &inputs_),
      tapes_(context_, &history_, &call_log_),
      execution_(this) {}

Session::~Session() { Release(); }

void Session::Join() {
  Live().push_back(this);
  Outputs::Live().push_back(&outputs_);
}

void Session::Enter() {
  has_entered_ = true;
  CurrentThread().session = this;
  if (plan() == nullptr) Join();
  tapes_.Enter();
}

void Session::set_mode(Mode mode) {
  // From here on ops are recorded at once, or the step is made up for.
  if (mode != context_.mode() && !tapes_.Flush()) {
    PyErr_WriteUnraisable(controller());
  }
  context_.set_mode(mode);
}

bool Session::HasUnsettledWrites() const {
  if (!is_live_ || plan() == nullptr) return false;
  if (commits_.is_committed()) {
    return step()->state().phase() != StepState::Phase::kDone &&
           std::any_of(plan()->variables.begin(), plan()->variables.end(),
                       [](const VariableSlot& v) { return v.written; });
  }
  return is_open() && !commits_.is_between_epochs() && inputs_.HasWritten();
}

bool Session::ConflictsWith(uint64_t key, bool writes) const {
  if (!is_live_ || plan() == nullptr || key == 0) return false;
  const bool is_committed = commits_.is_committed();
  if (!is_committed && (!is_open() || commits_.is_between_epochs())) {
    return false;
  }
  if (step()->state().phase() == StepState::Phase::kDone) return false;
  return inputs_.Uses(key, !writes, is_committed);
}

bool Session::FlushAllTapes() {
  if (Live().empty()) return true;
  // What a flush lets go of may run Python, which may end sessions.
  std::vector<std::pair<Session*, PyRef>> sessions;
  for (Session* session : Live()) {
    sessions.emplace_back(session, PyRef::Borrow(session->controller()));
  }
  for (const auto& [session, keep_alive] : sessions) {
    if (!session->tapes().Flush()) return false;
  }
  return true;
}

}  // namespace terra
