// Waiting from Python: GIL released, in slices, with signals served.
#ifndef TERRA_KERNELS_PYTHON_WAITING_H_
#define TERRA_KERNELS_PYTHON_WAITING_H_

#include <atomic>
#include <chrono>

#include "kernels/core/step_state.h"
#include "kernels/python/py_ref.h"

namespace terra {

// The knobs that native code reads: wait_slice_s, stall_warning_s,
// replay_calls, check_pure, and of `log` its own categories (lamp.h).
struct NativeKnobs {
  std::atomic<double> slice_s{0.05};
  std::atomic<double> stall_warning_s{10.0};
  std::atomic<bool> replays_calls{true};
  std::atomic<bool> checks_pure{false};
  std::atomic<unsigned> lights{0};
};
NativeKnobs& Knobs();

// The thread that waits for a graph now, as Python numbers threads; 0: none.
// One thread co-executes at a time.
inline std::atomic<unsigned long>& WaitingThread() {
  static std::atomic<unsigned long> thread{0};
  return thread;
}

class WaitingMark {
 public:
  WaitingMark() { WaitingThread().store(PyThread_get_thread_ident()); }
  ~WaitingMark() { WaitingThread().store(0); }
  WaitingMark(const WaitingMark&) = delete;
  WaitingMark& operator=(const WaitingMark&) = delete;
};

// How a wait has ended: with what was awaited, without it since the step had
// ended, or with an exception set.
enum class Waited { kReady, kEnded, kError };

// Calls `wait(slice_s)` until it is ready or the step has ended. Fails when a
// signal handler raises. Adds the time to `*stall_s`; calls `warn(waited_s)`
// once after the stall knob.
template <typename Wait, typename Warn>
Waited WaitInSlices(double* stall_s, Wait wait, Warn warn) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  auto waited_s = [&] {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  bool warned = false;
  WaitingMark is_waiting;
  for (;;) {
    StepState::WaitResult result;
    {
      ReleaseGil release;
      result = wait(Knobs().slice_s.load());
    }
    if (result != StepState::WaitResult::kTimeout) {
      *stall_s += waited_s();
      return result == StepState::WaitResult::kReady ? Waited::kReady
                                                     : Waited::kEnded;
    }
    if (PyErr_CheckSignals() != 0) return Waited::kError;
    if (!warned && waited_s() > Knobs().stall_warning_s.load()) {
      warned = true;
      if (!warn(waited_s())) return Waited::kError;
    }
  }
}

}  // namespace terra

#endif  // TERRA_KERNELS_PYTHON_WAITING_H_
