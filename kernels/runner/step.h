// One co-executed step on the C++ side: mailbox, state, cancellation.
//
// Knows TensorFlow but not Python. A step is created by the PythonRunner,
// found by the kernels through its id, launched by the GraphRunner, and
// forgotten when the PythonRunner drops it; a kernel that still holds it keeps
// it alive.
#ifndef TERRA_KERNELS_RUNNER_STEP_H_
#define TERRA_KERNELS_RUNNER_STEP_H_

#include <atomic>
#include <cstdint>
#include <memory>

#include "kernels/core/mailbox.h"
#include "kernels/core/step_state.h"
#include "tensorflow/core/common_runtime/eager/tensor_handle.h"
#include "tensorflow/core/framework/cancellation.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/platform/refcount.h"

namespace terra {

// What travels through a channel: a decision, a tensor, or a link to another
// step's pending tensor (resolved when it is taken; that step has ended by
// then).
struct Message {
  int64_t index = -1;  // a decision: which branch, which alternative
  tensorflow::Tensor tensor;
  tensorflow::core::RefCountPtr<tensorflow::TensorHandle> link;
};

class Step {
 public:
  explicit Step(size_t num_channels);
  ~Step();

  int64_t id() const { return id_; }
  Mailbox<Message>& mailbox() { return mailbox_; }
  StepState& state() { return state_; }
  StallClock& graph_stall() { return graph_stall_; }
  tensorflow::CancellationManager& cancellation() { return cancellation_; }

  // Puts a message of Python's into the mailbox; a profile shows when.
  void Send(size_t channel, Message message);

  // Ends the step from outside: the graph's waiting ops fail with CANCELLED.
  // Does not wait for the graph. Any thread; must not hold the GIL.
  void Cancel();

  // Makes the step unfindable for kernels that start from now on.
  void Unregister();

  // The step with this id, or null.
  static std::shared_ptr<Step> Find(int64_t id);
  static std::shared_ptr<Step> Create(size_t num_channels);

 private:
  const int64_t id_;
  Mailbox<Message> mailbox_;
  StepState state_;
  StallClock graph_stall_;
  tensorflow::CancellationManager cancellation_;
};

// What the ops of a graph know their step by: the step's id, and how far the
// channels of a loop's trip are from those of its first trip.
struct StepPlace {
  int64_t id;
  int64_t offset;

  static StepPlace Of(int64_t token);
  int64_t Token() const;
};

// For tests that look for races: up to how many microseconds each runner is
// held up, at random, at every op. 0 is off.
struct InjectedDelays {
  std::atomic<int64_t> graph_us{0};
  std::atomic<int64_t> python_us{0};
};
InjectedDelays& Delays();

// Sleeps for a random time of at most `max_us`.
void SleepAtRandom(int64_t max_us);

}  // namespace terra

#endif  // TERRA_KERNELS_RUNNER_STEP_H_
