#include "kernels/core/step_state.h"

#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "kernels/core/check.h"

namespace terra {
namespace {

using Phase = StepState::Phase;
using WaitResult = StepState::WaitResult;
using Seconds = std::chrono::duration<double>;

constexpr double kForever_s =
    15;  // Longer than any test may take to get there.

void Sleep(double seconds) { std::this_thread::sleep_for(Seconds(seconds)); }

void StepIsQueuedThenRunsThenIsDone() {
  StepState state;
  CHECK(state.phase() == Phase::kQueued && !state.ended());
  CHECK(state.BeginRunning());
  CHECK(state.phase() == Phase::kRunning && !state.ended());
  state.EndRunning(true, "");
  CHECK(state.phase() == Phase::kDone && state.ended());
  CHECK(state.error().empty());
}

void FailureKeepsItsError() {
  StepState state;
  CHECK(state.BeginRunning());
  state.EndRunning(false, "division by zero");
  CHECK(state.phase() == Phase::kFailed && state.ended());
  CHECK(state.error() == "division by zero");
}

void CancelBeforeLaunchPreventsRunning() {
  StepState state;
  state.RequestCancel();
  CHECK(state.cancel_requested() && !state.ended());
  CHECK(!state.BeginRunning());
  CHECK(state.phase() == Phase::kCancelled);
}

void CancelWhileRunningWaitsForTheGraphToEnd() {
  StepState state;
  CHECK(state.BeginRunning());
  state.RequestCancel();
  CHECK(state.phase() == Phase::kRunning && !state.ended());
  state.EndRunning(true, "");
  CHECK(state.phase() == Phase::kCancelled);
}

void CancelledStepIsNotFailedWhateverTheGraphSays() {
  StepState state;
  CHECK(state.BeginRunning());
  state.RequestCancel();
  state.EndRunning(false, "CANCELLED");
  CHECK(state.phase() == Phase::kCancelled);
  CHECK(state.error() == "CANCELLED");
}

void QueuedStepCanBeAborted() {
  StepState state;
  state.RequestCancel();
  state.EndRunning(false, "aborted");
  CHECK(state.phase() == Phase::kCancelled && state.ended());
}

void EndIsFinal() {
  StepState state;
  CHECK(state.BeginRunning());
  state.EndRunning(true, "");
  state.RequestCancel();
  state.EndRunning(false, "late");
  CHECK(state.phase() == Phase::kDone);
  CHECK(!state.BeginRunning());
  CHECK(state.phase() == Phase::kDone);
}

void RunningStepIsNotLaunchedAgain() {
  StepState state;
  CHECK(state.BeginRunning());
  CHECK(!state.BeginRunning());
}

void WaitReturnsAtOnceWhenReady() {
  StepState state;
  CHECK(state.Wait(kForever_s, [] { return true; }) == WaitResult::kReady);
}

void WaitTimesOutAfterItsSlice() {
  StepState state;
  const auto start = std::chrono::steady_clock::now();
  CHECK(state.Wait(0.02, [] { return false; }) == WaitResult::kTimeout);
  const Seconds waited = std::chrono::steady_clock::now() - start;
  CHECK(waited.count() >= 0.019 && waited.count() < 5);
  CHECK(!state.WaitEnded(0.001));
}

void ReadyComesBeforeEnded() {
  StepState state;
  CHECK(state.BeginRunning());
  state.EndRunning(true, "");
  CHECK(state.Wait(kForever_s, [] { return true; }) == WaitResult::kReady);
  CHECK(state.Wait(kForever_s, [] { return false; }) == WaitResult::kEnded);
  CHECK(state.WaitEnded(kForever_s));
}

void NotifyWakesAWaiter() {
  StepState state;
  std::atomic<bool> is_ready{false};
  std::thread setter([&] {
    Sleep(0.02);
    is_ready = true;
    state.Notify();
  });
  const auto ready = [&] { return is_ready.load(); };
  CHECK(state.Wait(kForever_s, ready) == WaitResult::kReady);
  setter.join();
}

void EndWakesAllWaiters() {
  StepState state;
  CHECK(state.BeginRunning());
  std::atomic<int> ended{0};
  std::vector<std::thread> waiters;
  for (int i = 0; i < 4; ++i) {
    waiters.emplace_back([&] {
      const auto never = [] { return false; };
      CHECK(state.Wait(kForever_s, never) == WaitResult::kEnded);
      ++ended;
    });
  }
  Sleep(0.02);
  CHECK(ended == 0);
  state.EndRunning(false, "error");
  for (std::thread& waiter : waiters) waiter.join();
  CHECK(ended == 4);
}

// A waiter whose condition is the cancellation itself must see it.
void CancelWakesAWaiterOfTheRunner() {
  StepState state;
  std::atomic<bool> flag{false};
  std::thread canceller([&] {
    Sleep(0.02);
    flag = true;
    state.RequestCancel();
  });
  const auto cancelled = [&] { return flag.load(); };
  CHECK(state.Wait(kForever_s, cancelled) == WaitResult::kReady);
  canceller.join();
}

// The phases that each thread sees only ever go forward.
void RacingCancelAndRunEndInOneFinalPhase() {
  for (int round = 0; round < 1000; ++round) {
    StepState state;
    std::thread runner([&] {
      if (state.BeginRunning()) state.EndRunning(round % 3 != 0, "error");
    });
    std::thread canceller([&] {
      if (round % 2 == 0) state.RequestCancel();
    });
    CHECK(state.WaitEnded(kForever_s));
    const Phase seen = state.phase();
    runner.join();
    canceller.join();
    CHECK(state.phase() == seen);
    if (round % 2 == 1) {
      CHECK(seen == (round % 3 != 0 ? Phase::kDone : Phase::kFailed));
    }
  }
}

void NoNotificationIsLostUnderContention() {
  constexpr int kRounds = 3000;
  StepState state;
  std::atomic<int> turn{0};
  std::thread other([&] {
    for (int i = 0; i < kRounds; ++i) {
      const auto mine = [&] { return turn.load() == 2 * i + 1; };
      CHECK(state.Wait(kForever_s, mine) == WaitResult::kReady);
      turn = 2 * i + 2;
      state.Notify();
    }
  });
  for (int i = 0; i < kRounds; ++i) {
    turn = 2 * i + 1;
    state.Notify();
    const auto mine = [&] { return turn.load() == 2 * i + 2; };
    CHECK(state.Wait(kForever_s, mine) == WaitResult::kReady);
  }
  other.join();
}

void StallClockCountsTimeWithAtLeastOneWaiter() {
  StallClock clock;
  CHECK(clock.total_s() == 0);
  clock.Enter();
  Sleep(0.02);
  clock.Enter();
  clock.Leave();
  CHECK(clock.total_s() == 0);  // somebody still waits
  Sleep(0.02);
  clock.Leave();
  const double total_s = clock.total_s();
  CHECK(total_s >= 0.039 && total_s < 5);
  Sleep(0.02);
  CHECK(clock.total_s() == total_s);
}

void StallClockAddsUpFromManyThreads() {
  StallClock clock;
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        clock.Enter();
        clock.Leave();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const Seconds passed = std::chrono::steady_clock::now() - start;
  CHECK(clock.total_s() > 0 && clock.total_s() <= passed.count());
}

}  // namespace
}  // namespace terra

int main() {
  using namespace terra;
  RUN_TEST(StepIsQueuedThenRunsThenIsDone);
  RUN_TEST(FailureKeepsItsError);
  RUN_TEST(CancelBeforeLaunchPreventsRunning);
  RUN_TEST(CancelWhileRunningWaitsForTheGraphToEnd);
  RUN_TEST(CancelledStepIsNotFailedWhateverTheGraphSays);
  RUN_TEST(QueuedStepCanBeAborted);
  RUN_TEST(EndIsFinal);
  RUN_TEST(RunningStepIsNotLaunchedAgain);
  RUN_TEST(WaitReturnsAtOnceWhenReady);
  RUN_TEST(WaitTimesOutAfterItsSlice);
  RUN_TEST(ReadyComesBeforeEnded);
  RUN_TEST(NotifyWakesAWaiter);
  RUN_TEST(EndWakesAllWaiters);
  RUN_TEST(CancelWakesAWaiterOfTheRunner);
  RUN_TEST(RacingCancelAndRunEndInOneFinalPhase);
  RUN_TEST(NoNotificationIsLostUnderContention);
  RUN_TEST(StallClockCountsTimeWithAtLeastOneWaiter);
  RUN_TEST(StallClockAddsUpFromManyThreads);
}
