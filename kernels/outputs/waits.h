// Waiting for the graph of a step, with signals served.
#ifndef TERRA_KERNELS_OUTPUTS_WAITS_H_
#define TERRA_KERNELS_OUTPUTS_WAITS_H_

#include <atomic>
#include <memory>
#include <unordered_map>

#include "kernels/outputs/step_context.h"
#include "kernels/python/waiting.h"

namespace terra {

// Invariant: a check channel's message is asked for once, and `awaited_` has
// the channel from then until who waits for it has been told.
class Waits {
 public:
  explicit Waits(const StepContext& context) : context_(context) {}
  Waits(const Waits&) = delete;

  // Waits until `ready`, which is of an output of `node`.
  Waited ForValue(std::shared_ptr<const std::atomic<bool>> ready, int node);
  // The same for a check channel that carries no tensor, before `node`.
  Waited ForChannel(int channel, int node);
  // Waits for the end of the graph: kEnded or kError.
  Waited ForEnd();

  // How long Python has waited in all.
  double stall_s() const { return stall_s_; }

 private:
  template <typename IsDone>
  Waited Until(IsDone is_done, int node);

  const StepContext& context_;
  double stall_s_ = 0;
  // Check channels that are awaited -> whether the message has come.
  std::unordered_map<int, std::shared_ptr<std::atomic<bool>>> awaited_;
};

}  // namespace terra

#endif  // TERRA_KERNELS_OUTPUTS_WAITS_H_
