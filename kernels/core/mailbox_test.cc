#include "kernels/core/mailbox.h"

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "kernels/core/check.h"

namespace terra {
namespace {

using Boxes = Mailbox<int>;

// Appends what it is called with; no value is -1.
Boxes::Receiver AppendTo(std::vector<int>* received) {
  return [received](std::optional<int> value) {
    received->push_back(value.value_or(-1));
  };
}

void ValueThatComesFirstIsKept() {
  Boxes mailbox(1);
  std::vector<int> received;
  mailbox.Put(0, 7);
  CHECK(mailbox.Take(0, AppendTo(&received)));
  CHECK(received == std::vector<int>{7});
}

void ReceiverThatComesFirstIsKept() {
  Boxes mailbox(1);
  std::vector<int> received;
  CHECK(!mailbox.Take(0, AppendTo(&received)));
  CHECK(received.empty());
  mailbox.Put(0, 7);
  CHECK(received == std::vector<int>{7});
}

void BothSidesAreFirstInFirstOut() {
  Boxes mailbox(1);
  std::vector<int> received;
  mailbox.Put(0, 1);
  mailbox.Put(0, 2);
  mailbox.Take(0, AppendTo(&received));
  mailbox.Take(0, AppendTo(&received));
  CHECK((received == std::vector<int>{1, 2}));
  std::vector<int> first, second;
  mailbox.Take(0, AppendTo(&first));
  mailbox.Take(0, AppendTo(&second));
  mailbox.Put(0, 3);
  mailbox.Put(0, 4);
  CHECK(first == std::vector<int>{3});
  CHECK(second == std::vector<int>{4});
}

void ChannelsDoNotMix() {
  Boxes mailbox(2);
  std::vector<int> received;
  CHECK(mailbox.num_channels() == 2);
  mailbox.Put(0, 1);
  CHECK(!mailbox.Take(1, AppendTo(&received)));
  CHECK(received.empty());
}

void ChannelThatDoesNotExistThrows() {
  Boxes mailbox(1);
  std::vector<int> received;
  bool put_threw = false, take_threw = false;
  try {
    mailbox.Put(1, 1);
  } catch (const std::out_of_range&) {
    put_threw = true;
  }
  try {
    mailbox.Take(1, AppendTo(&received));
  } catch (const std::out_of_range&) {
    take_threw = true;
  }
  CHECK(put_threw && take_threw && received.empty());
  mailbox.Put(0, 1);  // The lock is free again.
}

void CloseCallsEveryWaitingReceiverWithNoValue() {
  Boxes mailbox(2);
  std::vector<int> received;
  mailbox.Take(0, AppendTo(&received));
  mailbox.Take(0, AppendTo(&received));
  mailbox.Take(1, AppendTo(&received));
  mailbox.Close();
  CHECK((received == std::vector<int>{-1, -1, -1}));
  mailbox.Close();
  CHECK(received.size() == 3);
}

void ClosedMailboxDropsValuesAndAnswersAtOnce() {
  Boxes mailbox(1);
  std::vector<int> received;
  mailbox.Put(0, 1);
  CHECK(!mailbox.closed());
  mailbox.Close();
  CHECK(mailbox.closed());
  mailbox.Put(0, 2);
  CHECK(!mailbox.Take(0, AppendTo(&received)));
  CHECK(received == std::vector<int>{-1});
}

// Counts itself, to see that nothing is leaked or dropped twice.
struct Counted {
  explicit Counted(int* count) : count(count) { ++*count; }
  Counted(Counted&& other) noexcept : count(other.count) {
    other.count = nullptr;
  }
  Counted& operator=(Counted&& other) noexcept {
    std::swap(count, other.count);
    return *this;
  }
  ~Counted() {
    if (count != nullptr) --*count;
  }
  int* count;
};

void ValuesNeedOnlyBeMovableAndAreFreedByClose() {
  int alive = 0;
  Mailbox<Counted> mailbox(1);
  mailbox.Put(0, Counted(&alive));
  mailbox.Put(0, Counted(&alive));
  CHECK(alive == 2);
  mailbox.Take(0, [&](std::optional<Counted> value) {
    CHECK(value.has_value() && alive == 2);
  });
  CHECK(alive == 1);
  mailbox.Close();
  CHECK(alive == 0);
  mailbox.Put(0, Counted(&alive));
  CHECK(alive == 0);
}

// A receiver runs outside the lock, so it may use the mailbox.
void ReceiverMayUseTheMailbox() {
  Boxes mailbox(2);
  std::vector<int> received;
  mailbox.Take(0, [&](std::optional<int> value) {
    mailbox.Put(1, *value + 1);
    mailbox.Take(1, AppendTo(&received));
    mailbox.Close();
  });
  mailbox.Put(0, 1);
  CHECK(received == std::vector<int>{2});
  CHECK(mailbox.closed());
}

void ReceiverCalledByCloseMayUseTheMailbox() {
  Boxes mailbox(1);
  std::vector<int> received;
  mailbox.Take(0, [&](std::optional<int>) {
    mailbox.Put(0, 1);
    mailbox.Take(0, AppendTo(&received));
    mailbox.Close();
  });
  mailbox.Close();
  CHECK(received == std::vector<int>{-1});
}

// The protocol as the table in mailbox.h has it, in the plainest form.
class Model {
 public:
  explicit Model(size_t num_channels) : channels_(num_channels) {}

  void Put(size_t channel, int value) {
    Channel& c = channels_[channel];
    if (closed_) return;
    if (c.receivers.empty()) {
      c.values.push_back(value);
    } else {
      got[c.receivers.front()] = value;
      c.receivers.pop_front();
    }
  }
  bool Take(size_t channel) {
    Channel& c = channels_[channel];
    const int receiver = static_cast<int>(got.size());
    got.push_back(closed_ ? -1 : kWaiting);
    if (closed_) return false;
    if (c.values.empty()) {
      c.receivers.push_back(receiver);
      return false;
    }
    got[receiver] = c.values.front();
    c.values.pop_front();
    return true;
  }
  void Close() {
    closed_ = true;
    for (int& value : got) value = value == kWaiting ? -1 : value;
    channels_.assign(channels_.size(), Channel());
  }

  static constexpr int kWaiting = -2;
  std::vector<int> got;  // by receiver, in the order of Take

 private:
  struct Channel {
    std::deque<int> values;
    std::deque<int> receivers;
  };
  std::vector<Channel> channels_;
  bool closed_ = false;
};

void RandomUseFollowsTheModel() {
  for (uint32_t seed = 0; seed < 500; ++seed) {
    std::mt19937 random(seed);
    const size_t num_channels = 1 + random() % 4;
    Boxes mailbox(num_channels);
    Model model(num_channels);
    std::deque<int> got;  // a deque: receivers keep pointers into it
    for (int step = 0; step < 200; ++step) {
      const size_t channel = random() % num_channels;
      const uint32_t action = random() % 200;
      if (action == 0) {
        mailbox.Close();
        model.Close();
      } else if (action % 2 == 0) {
        mailbox.Put(channel, step);
        model.Put(channel, step);
      } else {
        got.push_back(Model::kWaiting);
        int* slot = &got.back();
        const bool was_there =
            mailbox.Take(channel, [slot](std::optional<int> value) {
              CHECK(*slot == Model::kWaiting);  // called once only
              *slot = value.value_or(-1);
            });
        CHECK(was_there == model.Take(channel));
      }
      CHECK(std::vector<int>(got.begin(), got.end()) == model.got);
    }
  }
}

// Producers and consumers race; every value arrives once, and the values of
// one producer arrive in its order.
void EveryValueArrivesOnceUnderContention() {
  static constexpr int kThreads = 4, kValues = 5000;
  Boxes mailbox(1);
  std::vector<std::atomic<int>> arrivals(kThreads * kValues);
  std::atomic<int> received{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kValues; ++i) mailbox.Put(0, t * kValues + i);
    });
    threads.emplace_back([&] {
      for (int i = 0; i < kValues; ++i) {
        mailbox.Take(0, [&](std::optional<int> value) {
          CHECK(value.has_value());
          arrivals[*value].fetch_add(1);
          received.fetch_add(1);
        });
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(received.load() == kThreads * kValues);
  for (const auto& count : arrivals) CHECK(count.load() == 1);
}

void OneProducerAndOneConsumerKeepTheOrder() {
  constexpr int kValues = 20000;
  Boxes mailbox(1);
  std::vector<int> got(kValues, Model::kWaiting);
  std::thread producer([&] {
    for (int i = 0; i < kValues; ++i) mailbox.Put(0, i);
  });
  for (int i = 0; i < kValues; ++i) {
    mailbox.Take(0, [&got, i](std::optional<int> value) { got[i] = *value; });
  }
  producer.join();
  for (int i = 0; i < kValues; ++i) CHECK(got[i] == i);
}

// Whatever Close races with, every receiver is called exactly once.
void CloseLosesNoReceiver() {
  for (int round = 0; round < 200; ++round) {
    static constexpr int kTakes = 50;
    Boxes mailbox(2);
    std::vector<std::atomic<int>> calls(2 * kTakes);
    std::vector<std::thread> threads;
    for (int t = 0; t < 2; ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < kTakes; ++i) {
          mailbox.Take(t, [&calls, t, i](std::optional<int>) {
            calls[t * kTakes + i].fetch_add(1);
          });
        }
      });
      threads.emplace_back([&, t] {
        for (int i = 0; i < kTakes / 2; ++i) mailbox.Put(t, i);
      });
    }
    std::thread closer([&] {
      if (round % 2 == 1) std::this_thread::yield();
      mailbox.Close();
    });
    for (std::thread& thread : threads) thread.join();
    closer.join();
    for (const auto& count : calls) CHECK(count.load() == 1);
  }
}

}  // namespace
}  // namespace terra

int main() {
  using namespace terra;
  RUN_TEST(ValueThatComesFirstIsKept);
  RUN_TEST(ReceiverThatComesFirstIsKept);
  RUN_TEST(BothSidesAreFirstInFirstOut);
  RUN_TEST(ChannelsDoNotMix);
  RUN_TEST(ChannelThatDoesNotExistThrows);
  RUN_TEST(CloseCallsEveryWaitingReceiverWithNoValue);
  RUN_TEST(ClosedMailboxDropsValuesAndAnswersAtOnce);
  RUN_TEST(ValuesNeedOnlyBeMovableAndAreFreedByClose);
  RUN_TEST(ReceiverMayUseTheMailbox);
  RUN_TEST(ReceiverCalledByCloseMayUseTheMailbox);
  RUN_TEST(RandomUseFollowsTheModel);
  RUN_TEST(EveryValueArrivesOnceUnderContention);
  RUN_TEST(OneProducerAndOneConsumerKeepTheOrder);
  RUN_TEST(CloseLosesNoReceiver);
}
