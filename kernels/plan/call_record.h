// What a call of a library function amounted to, for doing it again without its
// Python: which nodes it was, what it told the graph, and what it returned.
//
// Learned by the session while the cursor follows the call op by op
// (replay/library_learning.cc), kept in the plan, immutable then.
#ifndef TERRA_KERNELS_PLAN_CALL_RECORD_H_
#define TERRA_KERNELS_PLAN_CALL_RECORD_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/state_guard.h"
#include "tensorflow/core/framework/tensor_shape.h"

namespace terra {

// What a record's key knows by its address or id. Once one of them is dead the
// record is of no use: no other object is taken for it.
class Anchors {
 public:
  void Add(PyObject* object) { objects_.push_back(WeakRef::To(object)); }
  bool AreAlive() const {
    return std::none_of(objects_.begin(), objects_.end(),
                        [](const WeakRef& object) { return object.is_dead(); });
  }

 private:
  std::vector<WeakRef> objects_;
};

// Records by their keys, at most so many. What the dead were known by is
// forgotten before there are twice as many records as there were alive.
template <typename Record>
class RecordTable {
 public:
  explicit RecordTable(size_t max_size) : max_size_(max_size) {}
  // Null if there is none.
  std::shared_ptr<const Record> Find(uint64_t key) const {
    const auto it = records_.find(key);
    return it == records_.end() ? nullptr : it->second;
  }
  void Put(uint64_t key, std::shared_ptr<const Record> record) {
    if (records_.size() >= prune_at_) Prune();
    std::swap(records_[key], record);  // destroyed when the table is in order
  }
  size_t size() const { return records_.size(); }

 private:
  using Map = absl::flat_hash_map<uint64_t, std::shared_ptr<const Record>>;

  void Prune() {
    Map before;
    std::swap(before, records_);
    for (const auto& [key, record] : before) {
      if (record->anchors.AreAlive()) records_.emplace(key, record);
    }
    if (records_.size() >= max_size_) Map().swap(records_);
    prune_at_ = std::min(max_size_, std::max(kMinSize, 2 * records_.size()));
  }

  static constexpr size_t kMinSize = 64;
  const size_t max_size_;
  size_t prune_at_ = kMinSize;
  Map records_;
};

// The first use of something in a step, as the session notes it.
struct Binding {
  enum class Kind {
    kFeed,          // slot: feed, a: name of the outside tensor
    kVariable,      // slot: variable slot, a: name of the handle
    kVariableFeed,  // slot: its handle has gone to the graph
    kWrite,         // slot: variable slot, a: how (InputRef::b)
    kJoinMade,      // slot: join, (a, b): node and output
    kJoinOutside,   // slot: join, a: name
    kConstant,      // slot: constant, a: name; its value is to be compared
  };
  Kind kind;
  int slot;
  int a;
  int b;

  bool HasName() const {
    return kind == Kind::kFeed || kind == Kind::kVariable ||
           kind == Kind::kConstant || kind == Kind::kJoinOutside;
  }
};

// Where a step has a tensor.
struct TensorSource {
  int node = -1;  // it is an output of the step, or -1:
  int output = -1;
  int name = -1;  // in the history, or -1:
  PyRef object;   // one of this value
};

// A value that a call returned: how to make the next one like it.
struct ResultPattern {
  enum class Kind {
    kObject,   // this very object: None, a number, a string
    kMade,     // number: in CallRecord::made
    kFolded,   // this tensor's value
    kOutside,  // number: name
    kOperand,  // number: this argument (of a PureCall)
    kList,
    kTuple,
    kNamedTuple,  // object: its class
    kDict,        // object: a tuple of its keys
    kSlices,      // IndexedSlices of three items
    // What an assignment returns; object: its attributes without the handle,
    // which is that of argument `number`, of a CallRecord: variable slot.
    kUnread,
  };
  Kind kind = Kind::kObject;
  int number = -1;
  bool is_zeros = false;  // a tensor with TensorFlow's mark for zeros
  PyRef assign;           // of a slice of a variable, as of `AssignOfSlice`
  PyRef object;
  std::vector<ResultPattern> items;
  // Of a tensor: what Keras has set of its attributes, each with its number in
  // TensorAttributes::carried.
  std::vector<ResultPattern> attributes;
  int attribute = -1;
};

struct CallRecord {
  struct Output {
    int node;
    int output;
    tensorflow::PartialTensorShape shape;  // as inferred
  };
  std::string refusal;              // why it cannot be replayed; empty: it can
  int64_t* num_replayed = nullptr;  // counts in Plan::replayed
  int tries_left = 0;  // refused: learning may be tried again so often
  int begin = 0;       // how many ops the step had matched
  std::vector<int> path;
  std::vector<std::pair<int, int64_t>> decisions;  // channel, branch
  std::vector<Binding> bindings;
  // To each binding a tensor that the call makes of numbers, which is the same
  // each time, or null.
  std::vector<PyRef> own;
  std::vector<std::array<int, 3>> latest;  // web, node, output
  std::vector<Output> made;                // those that Python gets
  ResultPattern result;
  uint64_t history_after = 0;
  int num_names_after = 0;
  GuardRef guard;     // none: the call depends on no object
  PyRef names_after;  // Python: the counts that sums and zeros are named by
  Anchors anchors;
};

}  // namespace terra

#endif  // TERRA_KERNELS_PLAN_CALL_RECORD_H_
