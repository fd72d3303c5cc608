// What a call of a function that depends on nothing but its arguments,
// variables and the objects that it is given amounted to: which ops it is, so
// that they can be delegated without its Python (docs/design/0009).
//
// Learned while the cursor follows the call op by op, kept in the plan,
// immutable then. Unlike a CallRecord it does not depend on what happened in
// the step before: where in the graph it begins is part of its key, and its
// inputs are verified like those of any op.
#ifndef TERRA_KERNELS_PLAN_PURE_RECORD_H_
#define TERRA_KERNELS_PLAN_PURE_RECORD_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "kernels/call/call.h"
#include "kernels/call/op_info.h"
#include "kernels/plan/call_record.h"
#include "kernels/plan/library_gradient.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/state_guard.h"

namespace terra {

// A tensor or a variable among a call's arguments.
struct Operand {
  PyObject* object;  // borrowed from the arguments
  PyRef handle;      // of a variable; null: `object` is the tensor
  PyRef held;        // `object`, where arguments may let go of it
  PyObject* tensor() const { return handle ? handle.get() : object; }
};

using Operands = absl::InlinedVector<Operand, 4>;

// A tensor that an op of the call takes.
struct TensorRef {
  enum class Kind : uint8_t {
    kOperand,  // number: in the call's operands
    kMade,     // number: among all outputs of its ops, in order
    kObject,   // this one
  };
  Kind kind = Kind::kObject;
  bool is_verified = false;  // by an input of an op before it in the call
  int number = -1;
  PyRef object;     // of numbers, which nobody else holds, or
  WeakRef outside;  // somebody's

  // kObject: borrowed; null once it is dead.
  PyObject* get() const { return object ? object.get() : outside.get(); }
};

// What a call does, in order.
enum class PureKind {
  kOp,
  kAccess,  // a variable is about to be read: tapes want to know
  kRecord,  // Python records the op before (learned as a part of that one)
  kStop,    // of this thread's tapes
  kRestart,
  kGradient,  // an op with a gradient function of the library's is recorded
};

struct PureStep {
  PureKind kind = PureKind::kOp;
  Route route = Route::kFast;
  int node = -1;
  int operand = -1;  // kAccess: this argument, or
  WeakRef variable;  // this one
  const OpInfo* info = nullptr;
  PyRef attrs;
  PyRef record_attrs;  // with which Python records it on the tape; or null
  std::vector<TensorRef> inputs;  // of the op, or the gradient's tensors
  Counts counts;
  std::shared_ptr<const LibraryGradient> gradient;
};

// Of what Keras' layers inherit: names, and values that live for ever.
using ContextChanges = std::vector<std::pair<PyRef, PyObject*>>;

struct PureRecord {
  std::string refusal;  // why it cannot be replayed; empty: it can
  int tries_left = 0;   // refused: learning may be tried again so often
  int64_t* num_refused = nullptr;   // counts in Plan::not_replayed
  int64_t* num_replayed = nullptr;  // counts in Plan::replayed
  std::vector<PureStep> steps;
  ResultPattern result;
  std::vector<ResultPattern> changes;  // of operands: attributes that it sets
  ContextChanges context_changes;      // of Keras', that it leaves behind
  GuardRef guard;                      // none: the call depends on no object
  Anchors anchors;
};

// A gradient: what it amounted to depends on the history, as with a CallRecord,
// but its ops are delegated one by one.
struct GradientRecord : PureRecord {
  // What it takes of the step, which stands for the operands.
  std::vector<TensorSource> taken;
  PyRef names_after;  // Python: the counts that sums and zeros are named by
};

// Null, or how two records of the same call differ.
const char* DifferenceOf(const PureRecord& a, const PureRecord& b);

}  // namespace terra

#endif  // TERRA_KERNELS_PLAN_PURE_RECORD_H_
