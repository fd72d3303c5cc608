// What a call of a library function amounted to, for doing it again without its
// Python: which nodes it was, what it told the graph, and what it returned.
//
// Learned by the session while the cursor follows the call op by op
// (session_learning.cc), kept in the plan, immutable then.
#ifndef TERRA_KERNELS_INTERCEPTOR_CALL_RECORD_H_
#define TERRA_KERNELS_INTERCEPTOR_CALL_RECORD_H_

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/interceptor/py_ref.h"
#include "tensorflow/core/framework/tensor_shape.h"

namespace terra {

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
    kSlices,  // IndexedSlices of three items
    kUnread,  // what an assignment returns; object: its attributes
  };
  Kind kind = Kind::kObject;
  int number = -1;
  bool is_zeros = false;  // a tensor with TensorFlow's mark for zeros
  PyRef assign;           // of a tensor that is a slice of a variable
  PyRef object;
  std::vector<ResultPattern> items;  // of a tensor: its logits, or none
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
  std::vector<std::array<int, 3>> latest;  // web, node, output
  std::vector<Output> made;                // those that Python gets
  ResultPattern result;
  uint64_t history_after = 0;
  int num_names_after = 0;
  PyRef guard;        // a StateGuard; null: the call depends on no object
  PyRef names_after;  // Python: the counts that sums and zeros are named by
};

}  // namespace terra

#endif  // TERRA_KERNELS_INTERCEPTOR_CALL_RECORD_H_
