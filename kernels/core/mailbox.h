// The mailbox of one step: where the PythonRunner and the GraphRunner meet.
//
// A mailbox is a fixed number of channels. A channel is a FIFO with one
// producer side (`Put`) and one consumer side (`Take`); which of the two is
// Python depends on the channel (a feed is put by Python, a fetch is put by
// the graph). Either side may come first: a value without a receiver is kept,
// a receiver without a value is kept. Nothing here ever blocks.
//
// States of a channel            Put(v)              Take(r)
//   empty                        -> holds v          -> holds r
//   holds values v1..vn          -> holds v1..vn,v   r(v1), -> holds v2..vn
//   holds receivers r1..rn       r1(v), -> r2..rn    -> holds r1..rn,r
// After `Close`: every held receiver is called with no value, every held value
// is dropped, Put drops its value, Take calls its receiver with no value.
//
// A receiver is called exactly once, outside the lock, on the thread that
// completed the pair.
#ifndef TERRA_KERNELS_CORE_MAILBOX_H_
#define TERRA_KERNELS_CORE_MAILBOX_H_

#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

namespace terra {

template <typename Value>
class Mailbox {
 public:
  using Receiver = std::function<void(std::optional<Value>)>;

  explicit Mailbox(size_t num_channels) : channels_(num_channels) {}
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  size_t num_channels() const { return channels_.size(); }

  // Hands `value` to the oldest waiting receiver, or keeps it.
  void Put(size_t channel, Value value) {
    Receiver receiver;
    {
      std::lock_guard<std::mutex> lock(mu_);
      if (closed_) return;
      Channel& c = channels_.at(channel);
      if (c.receivers.empty()) {
        c.values.push_back(std::move(value));
        return;
      }
      receiver = std::move(c.receivers.front());
      c.receivers.pop_front();
    }
    receiver(std::optional<Value>(std::move(value)));
  }

  // Calls `receiver` with the oldest value: now, or when one is put. Returns
  // whether the value was there already.
  bool Take(size_t channel, Receiver receiver) {
    std::optional<Value> value;
    bool was_there = true;
    {
      std::lock_guard<std::mutex> lock(mu_);
      if (!closed_) {
        Channel& c = channels_.at(channel);
        if (c.values.empty()) {
          c.receivers.push_back(std::move(receiver));
          return false;
        }
        value = std::move(c.values.front());
        c.values.pop_front();
      } else {
        was_there = false;
      }
    }
    receiver(std::move(value));
    return was_there;
  }

  // Ends all waiting. Idempotent.
  void Close() {
    std::vector<Receiver> waiting;
    std::vector<Value> dropped;  // destroyed outside the lock
    {
      std::lock_guard<std::mutex> lock(mu_);
      if (closed_) return;
      closed_ = true;
      for (Channel& c : channels_) {
        for (Receiver& r : c.receivers) waiting.push_back(std::move(r));
        for (Value& v : c.values) dropped.push_back(std::move(v));
        c.receivers.clear();
        c.values.clear();
      }
    }
    for (Receiver& r : waiting) r(std::nullopt);
  }

  // The channels on which somebody waits for a value.
  std::vector<size_t> Waiting() const {
    std::lock_guard<std::mutex> lock(mu_);
    std::vector<size_t> waiting;
    for (size_t i = 0; i < channels_.size(); ++i) {
      if (!channels_[i].receivers.empty()) waiting.push_back(i);
    }
    return waiting;
  }

  bool closed() const {
    std::lock_guard<std::mutex> lock(mu_);
    return closed_;
  }

 private:
  struct Channel {
    std::deque<Value> values;
    std::deque<Receiver> receivers;
  };

  mutable std::mutex mu_;
  std::vector<Channel> channels_;  // guarded by mu_; at most one side nonempty
  bool closed_ = false;            // guarded by mu_
};

}  // namespace terra

#endif  // TERRA_KERNELS_CORE_MAILBOX_H_
