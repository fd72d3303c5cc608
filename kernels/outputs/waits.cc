#include "kernels/outputs/waits.h"

#include <optional>
#include <utility>

#include "kernels/outputs/stall.h"
#include "kernels/python/controller.h"
#include "kernels/runner/step.h"

namespace terra {

template <typename IsDone>
Waited Waits::Until(IsDone is_done, int node) {
  // Whatever it waits for, and for ever maybe, what led here is seen.
  if (!context_.LogLines()) return Waited::kError;
  return WaitInSlices(
      &stall_s_,
      [&](double slice_s) {
        return context_.step()->state().Wait(slice_s, is_done);
      },
      [&](double waited_s) {
        return CallController(context_.controller(), "on_stall", "(id)", node,
                              waited_s);
      });
}

Waited Waits::ForValue(std::shared_ptr<const std::atomic<bool>> ready,
                       int node) {
  Stall stall(context_, &stall_s_, Awaited::kValue, node);
  return stall.End(Until([&] { return ready->load(); }, node));
}

Waited Waits::ForChannel(int channel, int node) {
  // Who is interrupted waits for the same message again.
  std::shared_ptr<std::atomic<bool>>& awaited = awaited_[channel];
  if (awaited == nullptr) {
    awaited = std::make_shared<std::atomic<bool>>(false);
    const auto arrived = awaited;
    std::shared_ptr<Step> step = context_.shared_step();
    context_.step()->mailbox().Take(channel,
                                    [arrived, step](std::optional<Message> m) {
                                      if (m.has_value()) arrived->store(true);
                                      step->state().Notify();
                                    });
  }
  const auto arrived = awaited;
  Stall stall(context_, &stall_s_, Awaited::kGoAhead, node);
  const Waited result = stall.End(Until([&] { return arrived->load(); }, node));
  if (result != Waited::kError) awaited_.erase(channel);
  return result;
}

Waited Waits::ForEnd() {
  Stall stall(context_, &stall_s_, Awaited::kEnd, -1);
  return stall.End(Until([] { return false; }, -1));
}

}  // namespace terra
