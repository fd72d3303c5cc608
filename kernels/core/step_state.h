// The life of one co-executed step, as both runners see it.
//
//   kQueued ---- launched ----> kRunning ---- graph ok ----> kDone
//      |                           |--------- graph error --> kFailed
//      |                           '--------- cancelled ----> kCancelled
//      '---- cancelled or aborted before it was launched ----> kCancelled
//
// Beside it runs the commit count: how many epochs Python has validated. Only
// Python commits, only while the step is not ended, and a step is never
// cancelled after its last commit.
//
// Waiting is always for "a condition of mine, or the step has ended", in
// slices, so that the caller can look at signals in between.
#ifndef TERRA_KERNELS_CORE_STEP_STATE_H_
#define TERRA_KERNELS_CORE_STEP_STATE_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <utility>

namespace terra {

class StepState {
 public:
  enum class Phase { kQueued, kRunning, kDone, kFailed, kCancelled };
  enum class WaitResult { kReady, kEnded, kTimeout };

  Phase phase() const {
    std::lock_guard<std::mutex> lock(mu_);
    return phase_;
  }
  bool ended() const {
    std::lock_guard<std::mutex> lock(mu_);
    return EndedLocked();
  }
  bool cancel_requested() const {
    std::lock_guard<std::mutex> lock(mu_);
    return cancel_requested_;
  }
  std::string error() const {
    std::lock_guard<std::mutex> lock(mu_);
    return error_;
  }

  // Runner: the graph is about to run. False if it must not any more.
  bool BeginRunning() {
    std::lock_guard<std::mutex> lock(mu_);
    if (cancel_requested_ || phase_ != Phase::kQueued) {
      EndLocked(Phase::kCancelled);
      return false;
    }
    phase_ = Phase::kRunning;
    return true;
  }

  // Runner: the graph has ended; an empty error means success.
  void EndRunning(bool ok, std::string error) {
    std::lock_guard<std::mutex> lock(mu_);
    error_ = std::move(error);
    EndLocked(cancel_requested_ ? Phase::kCancelled
              : ok              ? Phase::kDone
                                : Phase::kFailed);
  }

  // Python: nobody wants this step any more. The graph still has to be
  // awaited with WaitEnded.
  void RequestCancel() {
    std::lock_guard<std::mutex> lock(mu_);
    cancel_requested_ = true;
    changed_.notify_all();
  }

  // Something a waiter may be waiting for has become true.
  void Notify() {
    std::lock_guard<std::mutex> lock(mu_);
    changed_.notify_all();
  }

  // Waits at most `slice_s` for `ready()` (evaluated under the lock that
  // Notify takes) or the end of the step.
  template <typename Predicate>
  WaitResult Wait(double slice_s, Predicate ready) {
    std::unique_lock<std::mutex> lock(mu_);
    changed_.wait_for(lock, std::chrono::duration<double>(slice_s),
                      [&] { return ready() || EndedLocked(); });
    if (ready()) return WaitResult::kReady;
    return EndedLocked() ? WaitResult::kEnded : WaitResult::kTimeout;
  }

  // Waits at most `slice_s` for the end of the step.
  bool WaitEnded(double slice_s) {
    return Wait(slice_s, [] { return false; }) == WaitResult::kEnded;
  }

 private:
  bool EndedLocked() const {
    return phase_ != Phase::kQueued && phase_ != Phase::kRunning;
  }
  void EndLocked(Phase phase) {
    if (!EndedLocked()) phase_ = phase;
    changed_.notify_all();
  }

  mutable std::mutex mu_;
  std::condition_variable changed_;
  Phase phase_ = Phase::kQueued;   // guarded by mu_
  bool cancel_requested_ = false;  // guarded by mu_
  std::string error_;              // guarded by mu_
};

// Adds up the time in which at least one party was waiting.
class StallClock {
 public:
  void Enter() {
    std::lock_guard<std::mutex> lock(mu_);
    if (waiting_++ == 0) since_ = std::chrono::steady_clock::now();
  }
  void Leave() {
    std::lock_guard<std::mutex> lock(mu_);
    if (--waiting_ == 0) {
      total_s_ += std::chrono::duration<double>(
                      std::chrono::steady_clock::now() - since_)
                      .count();
    }
  }
  double total_s() const {
    std::lock_guard<std::mutex> lock(mu_);
    return total_s_;
  }

 private:
  mutable std::mutex mu_;
  int waiting_ = 0;                              // guarded by mu_
  std::chrono::steady_clock::time_point since_;  // guarded by mu_
  double total_s_ = 0;                           // guarded by mu_
};

}  // namespace terra

#endif  // TERRA_KERNELS_CORE_STEP_STATE_H_
