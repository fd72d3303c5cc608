// Session: waiting for the graph, with signals served.
#include "kernels/interceptor/controller.h"
#include "kernels/interceptor/session.h"
#include "kernels/interceptor/stall.h"
#include "kernels/interceptor/waiting.h"

namespace terra {

int Session::WaitReady(const Made& made) {
  if (made.ready->load(std::memory_order_acquire)) return 1;
  const auto keep_alive = ready_;
  const std::atomic<bool>* ready = made.ready;
  const int node = made.node;
  Stall stall(this, Awaited::kValue, node);
  return stall.End(WaitInSlices(
      &python_stall_s,
      [&](double slice_s) {
        return step_->state().Wait(slice_s, [&] { return ready->load(); });
      },
      [&](double waited_s) {
        return CallController(controller_, "on_stall", "(id)", node, waited_s);
      }));
}

int Session::WaitChannel(int channel, int node) {
  if (node < 0) node = bound_for_;
  // Who is interrupted waits for the same message again.
  std::shared_ptr<std::atomic<bool>>& awaited = awaited_[channel];
  if (awaited == nullptr) {
    awaited = std::make_shared<std::atomic<bool>>(false);
    const auto arrived = awaited;
    std::shared_ptr<Step> step = step_;
    step_->mailbox().Take(channel, [arrived, step](std::optional<Message> m) {
      if (m.has_value()) arrived->store(true);
      step->state().Notify();
    });
  }
  const auto arrived = awaited;
  Stall stall(this, Awaited::kGoAhead, node);
  const int result = stall.End(WaitInSlices(
      &python_stall_s,
      [&](double slice_s) {
        return step_->state().Wait(slice_s, [&] { return arrived->load(); });
      },
      [&](double waited_s) {
        return CallController(controller_, "on_stall", "(id)", node, waited_s);
      }));
  if (result >= 0) awaited_.erase(channel);
  return result;
}

int Session::WaitEnded() {
  Stall stall(this, Awaited::kEnd, -1);
  const int result = stall.End(WaitInSlices(
      &python_stall_s,
      [&](double slice_s) {
        return step_->state().Wait(slice_s, [] { return false; });
      },
      [&](double waited_s) {
        return CallController(controller_, "on_stall", "(id)", -1, waited_s);
      }));
  return result < 0 ? -1 : 1;
}

}  // namespace terra
