// A call of a function that depends on nothing but its arguments, variables and
// the objects that it is given: which ops it is, so that they can be delegated
// without its Python (docs/design/0009).
//
// Learned while the cursor follows the call op by op, kept in the plan,
// immutable then. Unlike a CallRecord it does not depend on what happened in
// the step before: where in the graph it begins is part of its key, and its
// inputs are verified like those of any op.
#ifndef TERRA_KERNELS_INTERCEPTOR_PURE_CALL_H_
#define TERRA_KERNELS_INTERCEPTOR_PURE_CALL_H_

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels/interceptor/call.h"
#include "kernels/interceptor/call_record.h"
#include "kernels/interceptor/history.h"
#include "kernels/interceptor/library_gradient.h"
#include "kernels/interceptor/py_ref.h"

namespace terra {

class Session;
struct InputRef;

struct PureCall {
  const char* name;    // for people
  PyObject* function;  // what runs when it is not replayed
  PyObject* args;      // a tuple
  PyObject* kwargs;    // or null
  bool takes_objects;  // of which Python can see a change
  bool is_declared;    // by the user: terra_tf.pure
  PyObject* marker;    // of a gradient function: names its forward op; or null
};

// A tensor or a variable among a call's arguments.
struct Operand {
  PyObject* object;  // borrowed from the arguments
  PyRef handle;      // of a variable; null: `object` is the tensor
  PyObject* tensor() const { return handle ? handle.get() : object; }
};

using Operands = absl::InlinedVector<Operand, 4>;

// A tensor that an op of the call takes.
struct TensorRef {
  enum class Kind {
    kOperand,  // number: in the call's operands
    kMade,     // number: among all outputs of its ops, in order
    kObject,   // this one
  };
  Kind kind = Kind::kObject;
  int number = -1;
  PyRef object;              // of numbers, which nobody else holds, or
  WeakRef outside;           // somebody's
  bool is_verified = false;  // by an input of an op before it in the call

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
  WeakRef variable;  // kAccess: this one, or
  int operand = -1;  // this argument
  int node = -1;
  const OpInfo* info = nullptr;
  Route route = Route::kFast;
  Counts counts;
  PyRef attrs;
  PyRef record_attrs;  // with which Python records it on the tape; or null
  std::shared_ptr<const LibraryGradient> gradient;
  std::vector<TensorRef> inputs;  // of the op, or the gradient's tensors
};

struct PureRecord {
  std::string refusal;  // why it cannot be replayed; empty: it can
  int tries_left = 0;   // refused: learning may be tried again so often
  int64_t* num_refused = nullptr;   // counts in Plan::not_replayed
  int64_t* num_replayed = nullptr;  // counts in Plan::replayed
  std::vector<PureStep> steps;
  ResultPattern result;
  PyRef guard;  // a StateGuard; null: the call depends on no object
  Anchors anchors;
};

// Null, or how two records of the same call differ.
const char* DifferenceOf(const PureRecord& a, const PureRecord& b);

// What has happened in a call that is being learned. Outputs are known by
// their node and not held, so that what nobody else holds is free.
struct LoggedInput {
  int node = -1;
  int output = -1;
  PyRef outside;
};

struct LoggedStep {
  PureKind kind = PureKind::kOp;
  PyRef variable;
  int node = -1;
  const OpInfo* info = nullptr;
  Route route = Route::kFast;
  Counts counts;
  PyRef attrs;
  std::shared_ptr<const LibraryGradient> gradient;
  std::vector<LoggedInput> inputs;
};

struct PureLearning {
  size_t log_begin;
  size_t path_begin;
  size_t made_begin;
  int epoch;
  int64_t num_obstacles;
  int64_t first_id;  // tensors with lower ids were there before the call
  uint64_t keras_context;
  bool is_taped;
  const char* obstacle = nullptr;  // why it cannot be replayed
};

// What somebody has set of a tensor's attributes.
enum class Attributes {
  kNone,
  kZeros,   // TensorFlow's mark that all its items are zero, nothing else
  kSlice,   // `assign`, which a slice of a variable has, nothing else
  kLogits,  // what Keras' softmax was given, a tensor; nothing else
  kOther,   // Keras sets masks
};
Attributes AttributesOf(PyObject* tensor);
// Keras' logits of a tensor. Null if it has none.
PyRef LogitsOf(PyObject* tensor);
bool SetLogits(PyObject* tensor, PyObject* logits);
// TensorFlow's mark; false with an error set if it cannot be.
bool MarkAsZeros(PyObject* tensor);
// What a slice of a variable has, without the variable. Null if it holds
// results of the step.
PyRef AssignOfSlice(const Session& session, PyObject* tensor,
                    PyObject* variable);
bool MarkAsSlice(PyObject* tensor, PyObject* assign, PyObject* variable);

// Turns what was logged of a call into a record (session_pure_learning.cc).
class PureLearner {
 public:
  PureLearner(const Session& session, const PureLearning& learning,
              const Operands& operands, bool takes_objects)
      : session_(session),
        learning_(learning),
        operands_(operands),
        takes_objects_(takes_objects) {}
  // Empty, or why the call cannot be replayed.
  std::string Learn(const std::vector<LoggedStep>& steps, PyObject* result,
                    PureRecord* record);

 private:
  using Output = std::pair<int, int>;  // node, output
  std::string LearnEvent(const LoggedStep& logged);
  std::string LearnGradient(const LoggedStep& logged);
  // A tensor that a gradient function holds.
  bool LearnHeld(const LoggedInput& logged, TensorRef* ref) const;
  std::string LearnOp(const LoggedStep& logged);
  std::string LearnInput(const LoggedInput& logged, const InputRef& expected,
                         TensorRef* ref);
  std::string LearnJoin(const InputRef& expected, TensorRef* ref);
  std::string LearnResult(PyObject* value, ResultPattern* pattern);
  std::string LearnTensor(PyObject* tensor, ResultPattern* pattern);
  std::string LearnKept();

  const Session& session_;
  const PureLearning& learning_;
  const Operands& operands_;
  const bool takes_objects_;
  PureRecord* record_ = nullptr;
  std::map<Output, int> made_;  // in the call -> number
  std::set<int> results_;       // numbers of those that it returns
  std::map<int, int> joins_;    // decided in the call -> operand
  // What ops of the call have taken that is no argument.
  std::map<PyObject*, TensorRef> objects_;
};

// Makes the key of a call from all that its Python can depend on.
class PureKey {
 public:
  // Where the way forks, the ops that made the call's tensors are a part of it:
  // they are what decides which node follows.
  PureKey(const Session& session, bool takes_objects, bool is_at_fork)
      : session_(session),
        takes_objects_(takes_objects),
        is_at_fork_(is_at_fork) {}
  // Null, or why the call has no key.
  const char* Add(const PureCall& call);
  // What Keras' layers inherit from the layer that calls them.
  static uint64_t HashOfKerasContext();
  Hash& hash() { return hash_; }
  uint64_t value() const { return hash_.value(); }
  // What it knows by address or by id, besides the function.
  Anchors anchors() const;
  const Operands& operands() const { return operands_; }
  const std::vector<PyObject*>& objects() const { return objects_; }

 private:
  const char* Mix(PyObject* value, int depth);
  const char* MixItems(PyObject* items, int depth);
  const char* MixNumber(PyObject* value);
  const char* MixNumPy(PyObject* value);
  void MixReal(double number);
  const char* MixTensor(PyObject* tensor);
  const char* MixVariable(PyObject* variable);
  void MixTwin(const tensorflow::TensorHandle* handle);
  // Whether it is the same object as an operand before.
  bool MixKnown(PyObject* object);

  const Session& session_;
  const bool takes_objects_;
  const bool is_at_fork_;
  Hash hash_{0x9e11};
  Operands operands_;
  std::vector<PyObject*> objects_;
};

}  // namespace terra

#endif  // TERRA_KERNELS_INTERCEPTOR_PURE_CALL_H_
