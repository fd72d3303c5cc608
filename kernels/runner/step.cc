#include "kernels/runner/step.h"

#include <chrono>
#include <mutex>
#include <random>
#include <thread>
#include <unordered_map>
#include <utility>

#include "tsl/profiler/lib/traceme.h"
#include "tsl/profiler/lib/traceme_encode.h"

namespace terra {
namespace {

struct Registry {
  std::mutex mu;
  std::unordered_map<int64_t, std::weak_ptr<Step>> steps;  // guarded by mu
};

Registry& GetRegistry() {
  static Registry* registry = new Registry;
  return *registry;
}

std::atomic<int64_t> next_id{1};

constexpr int kIdBits = 40;  // of a token; the rest is the offset

}  // namespace

StepPlace StepPlace::Of(int64_t token) {
  return {token & ((int64_t{1} << kIdBits) - 1), token >> kIdBits};
}

int64_t StepPlace::Token() const { return id | (offset << kIdBits); }

InjectedDelays& Delays() {
  static auto* delays = new InjectedDelays;
  return *delays;
}

void SleepAtRandom(int64_t max_us) {
  static thread_local std::minstd_rand engine(std::random_device{}());
  std::uniform_int_distribution<int64_t> distribution(0, max_us);
  std::this_thread::sleep_for(std::chrono::microseconds(distribution(engine)));
}

Step::Step(size_t num_channels)
    : id_(next_id.fetch_add(1)), mailbox_(num_channels) {}

Step::~Step() { Unregister(); }

std::shared_ptr<Step> Step::Create(size_t num_channels) {
  auto step = std::make_shared<Step>(num_channels);
  Registry& r = GetRegistry();
  std::lock_guard<std::mutex> lock(r.mu);
  r.steps[step->id()] = step;
  return step;
}

std::shared_ptr<Step> Step::Find(int64_t id) {
  Registry& r = GetRegistry();
  std::lock_guard<std::mutex> lock(r.mu);
  auto it = r.steps.find(id);
  return it == r.steps.end() ? nullptr : it->second.lock();
}

void Step::Unregister() {
  Registry& r = GetRegistry();
  std::lock_guard<std::mutex> lock(r.mu);
  r.steps.erase(id_);
}

void Step::Send(size_t channel, Message message) {
  // What the message sets free runs in here, so its own span would mislead.
  tsl::profiler::TraceMe::InstantActivity([&] {
    return tsl::profiler::TraceMeEncode("TerraSend",
                                        {{"step", id_}, {"channel", channel}});
  });
  mailbox_.Put(channel, std::move(message));
}

void Step::Cancel() {
  state_.RequestCancel();
  mailbox_.Close();
  cancellation_.StartCancel();
}

}  // namespace terra
