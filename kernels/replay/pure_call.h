// Pure calls: the keys by which their records are found, and how they are
// learned (docs/design/0009).
#ifndef TERRA_KERNELS_REPLAY_PURE_CALL_H_
#define TERRA_KERNELS_REPLAY_PURE_CALL_H_

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cursor/cursor.h"
#include "kernels/outputs/call_log.h"
#include "kernels/outputs/history.h"
#include "kernels/outputs/outputs.h"
#include "kernels/plan/call_record.h"
#include "kernels/plan/hash.h"
#include "kernels/plan/plan.h"
#include "kernels/plan/pure_record.h"
#include "kernels/python/py_ref.h"
#include "kernels/replay/keras_context.h"
#include "kernels/replay/tensor_attributes.h"

namespace terra {

struct InputRef;

// Of a call that depends on what has happened in the step.
struct StepTensors {
  const History& history;
  const int num_names;              // how many it had when the call began
  std::vector<TensorSource> taken;  // what it takes without being given it
};

struct PureCall {
  const char* name;    // for people
  PyObject* function;  // what runs when it is not replayed
  PyObject* args;      // a tuple
  PyObject* kwargs;    // or null
  bool takes_objects;  // of which Python can see a change
  bool is_declared;    // by the user: terra_tf.pure
  PyObject* marker;    // of a gradient function: names its forward op; or null
};

// Makes the key of a call from all that its Python can depend on.
class PureKey {
 public:
  // Where the way forks, the ops that made the call's tensors are a part of it:
  // they are what decides which node follows.
  PureKey(const Plan& plan, const Outputs& outputs, bool takes_objects,
          bool is_at_fork)
      : plan_(plan),
        outputs_(outputs),
        takes_objects_(takes_objects),
        is_at_fork_(is_at_fork) {}
  // Null, or why the call has no key.
  const char* Add(const PureCall& call);
  Hash& hash() { return hash_; }
  uint64_t value() const { return hash_.value(); }
  // What it knows by address or by id, besides the function.
  Anchors anchors() const;
  const Operands& operands() const { return operands_; }
  const std::vector<PyObject*>& objects() const { return objects_; }
  // Lists and dictionaries among the arguments.
  const std::vector<PyObject*>& containers() const { return containers_; }
  // Whether an argument has a mask of Keras'.
  bool has_mask() const { return has_mask_; }

 private:
  const char* Mix(PyObject* value, int depth);
  const char* MixItems(PyObject* items, int depth);
  const char* MixNumber(PyObject* value);
  const char* MixNumPy(PyObject* value);
  const char* MixShape(PyObject* shape);
  void MixReal(double number);
  const char* MixTensor(PyObject* tensor, PyRef held, int depth);
  const char* MixAttributes(PyObject* tensor, int depth);
  const char* MixPlace(PyObject* tensor, tensorflow::TensorHandle* handle);
  void MixValueOfShapes(int index);
  const char* MixVariable(PyObject* variable);
  const char* MixKerasVariable(PyObject* variable);
  const char* MixDict(PyObject* value, int depth);
  void MixTwin(const tensorflow::TensorHandle* handle);
  // Whether it is the same object as an operand before.
  bool MixKnown(PyObject* object);

  const Plan& plan_;
  const Outputs& outputs_;
  const bool takes_objects_;
  const bool is_at_fork_;
  Hash hash_{0x9e11};
  Operands operands_;
  std::vector<PyObject*> objects_;
  std::vector<PyObject*> containers_;
  bool has_mask_ = false;
};

// Turns what was logged of a call into a record (pure_learner.cc; what it
// leaves, pure_results.cc).
class PureLearner {
 public:
  // `step`: null if it depends on nothing but its arguments.
  PureLearner(const Plan& plan, const Outputs& outputs, const CallLog& call_log,
              const Cursor& cursor, const PureLearning& learning,
              const KerasContext& context, const PureKey& key,
              bool takes_objects, StepTensors* step = nullptr)
      : plan_(plan),
        outputs_(outputs),
        call_log_(call_log),
        cursor_(cursor),
        learning_(learning),
        context_(context),
        key_(key),
        operands_(key.operands()),
        takes_objects_(takes_objects),
        step_(step) {}
  // Empty, or why the call cannot be replayed.
  // `before`: attributes of the operands before the call.
  std::string Learn(const std::vector<LoggedStep>& steps, PyObject* result,
                    const std::vector<TensorAttributes>& before,
                    PureRecord* record);

 private:
  using Output = std::pair<int, int>;  // node, output
  // Its number, by the object or the handle; -1: it is none.
  int FindOperand(const PyObject* object) const;
  std::string LearnEvent(const LoggedStep& logged);
  std::string LearnGradient(const LoggedStep& logged);
  // A tensor that a gradient function holds.
  bool LearnHeld(const LoggedInput& logged, TensorRef* ref) const;
  std::string LearnOp(const LoggedStep& logged);
  // Whether those of a node's results follow from what the cursor knows.
  bool ShapesAreKnown(int number) const;
  std::string LearnInput(const LoggedInput& logged, const InputRef& expected,
                         TensorRef* ref);
  std::string LearnJoin(const InputRef& expected, TensorRef* ref);
  // Whether an op before the call has it as a folded result.
  bool IsFoldedBefore(PyObject* tensor) const;
  // What it takes of the step without being given it.
  std::string LearnTaken(TensorSource source, const InputRef& expected,
                         TensorRef* ref);
  std::string LearnInnerJoin(const InputRef& expected,
                             const TensorRef& ref) const;
  std::string LearnResult(PyObject* value, ResultPattern* pattern);
  std::string LearnTensor(PyObject* tensor, ResultPattern* pattern);
  std::string LearnItems(PyObject* items, ResultPattern* pattern);
  std::string LearnDict(PyObject* value, ResultPattern* pattern);
  std::string LearnAttributes(const TensorAttributes& attributes,
                              const TensorAttributes& before,
                              ResultPattern* pattern);
  // What it has set of the attributes of tensors that it was given.
  std::string LearnChanges(const std::vector<TensorAttributes>& before);
  std::string LearnContext();
  std::string LearnKept();

  const Plan& plan_;
  const Outputs& outputs_;
  const CallLog& call_log_;
  const Cursor& cursor_;
  const PureLearning& learning_;
  const KerasContext& context_;  // as it was before the call
  const PureKey& key_;
  const Operands& operands_;
  const bool takes_objects_;
  StepTensors* const step_;
  PureRecord* record_ = nullptr;
  std::map<Output, int> made_;     // in the call -> number
  std::map<int64_t, int> folded_;  // ids of folded ones -> number
  std::set<int> results_;          // numbers of those that it returns
  // Joins that were decided in the call -> of what: a tensor's kind and number.
  std::map<int, std::pair<TensorRef::Kind, int>> joins_;
  int depth_ = 0;  // of attributes of attributes
  // What ops of the call have taken that is no argument.
  std::map<PyObject*, TensorRef> objects_;
};

}  // namespace terra

#endif  // TERRA_KERNELS_REPLAY_PURE_CALL_H_
