// What the unit tests of kernels/core need: a CHECK, a deadline, a main.
#ifndef TERRA_KERNELS_CORE_CHECK_H_
#define TERRA_KERNELS_CORE_CHECK_H_

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <thread>

#define CHECK(condition)                                                    \
  do {                                                                      \
    if (!(condition)) {                                                     \
      std::fprintf(stderr, "%s:%d: CHECK failed: %s\n", __FILE__, __LINE__, \
                   #condition);                                             \
      std::abort();                                                         \
    }                                                                       \
  } while (false)

namespace terra {

// Aborts the program if it still lives after `timeout_s`: a lost wake-up must
// fail, not hang.
class Deadline {
 public:
  Deadline(const char* name, double timeout_s)
      : watcher_([this, name, timeout_s] {
          std::unique_lock<std::mutex> lock(mu_);
          const bool met = met_or_late_.wait_for(
              lock, std::chrono::duration<double>(timeout_s),
              [this] { return met_; });
          if (met) return;
          std::fprintf(stderr, "%s: not done after %.0f s\n", name, timeout_s);
          std::abort();
        }) {}
  ~Deadline() {
    {
      std::lock_guard<std::mutex> lock(mu_);
      met_ = true;
      met_or_late_.notify_all();
    }
    watcher_.join();
  }

 private:
  std::mutex mu_;
  std::condition_variable met_or_late_;
  bool met_ = false;  // guarded by mu_
  std::thread watcher_;
};

// Runs one test and says so.
inline void RunTest(const char* name, const std::function<void()>& test) {
  const Deadline deadline(name, 20);
  test();
  std::printf("  %s\n", name);
}

}  // namespace terra

#define RUN_TEST(function) ::terra::RunTest(#function, function)

#endif  // TERRA_KERNELS_CORE_CHECK_H_
