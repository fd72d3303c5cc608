// What a step takes from outside: feeds, variables, joined inputs, seeds.
#ifndef TERRA_KERNELS_CURSOR_INPUTS_H_
#define TERRA_KERNELS_CURSOR_INPUTS_H_

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/call/call.h"
#include "kernels/outputs/history.h"
#include "kernels/outputs/step_context.h"
#include "kernels/plan/call_record.h"
#include "kernels/plan/plan.h"
#include "kernels/python/py_ref.h"
#include "tensorflow/core/framework/tensor_shape.h"

namespace terra {

class Outputs;

// What a joined input turned out to be in this step.
struct Decided {
  bool is_set = false;
  int node = -1;  // it is an output of this step, or -1:
  int output = -1;
  PyRef external;       // as Python gave it
  PyRef external_copy;  // where NumPy could change the bytes
};

// Invariant: a slot is bound once, by the first op that uses it, and is the
// same tensor or resource from then on; the graph has been told all that is
// bound here, and the first uses are listed in their order. Whoever binds has
// verified it (Matcher) together with all that is bound at the same time.
class Inputs {
 public:
  Inputs(const StepContext& context, const Outputs& outputs, History* history);
  Inputs(const Inputs&) = delete;

  // Binds what the call is given, which fits the node.
  void BindInputs(const Call& call, const PlanNode& node);
  void BindJoin(int number, PyObject* tensor);
  // A constant that is not made on the spot is part of the history.
  void NoteConstant(int slot, PyObject* tensor);
  // Draws the state of a seeded node, and tells the graph.
  void PushSeeds(const Call& call, const PlanNode& node, int index,
                 const std::vector<tensorflow::PartialTensorShape>& inferred);
  // Binds once more what was bound in a call that is being replayed. `own`: the
  // tensor, where the call makes it itself; or null.
  void Rebind(const Binding& binding, PyObject* own);
  // Sends a tensor to the graph. Returns the copy it made because somebody else
  // could change the bytes.
  PyRef PutTensor(int channel, PyObject* tensor);

  // The very tensor that was fed, or null, and what the graph got: a copy of
  // one that NumPy could change.
  PyRef Feed(int slot) const;
  PyRef FeedValue(int slot) const;
  PyRef Variable(int slot) const;
  // The same, borrowed; of a variable that is not captured, by its number.
  PyObject* FindFeed(int slot) const { return feeds_[slot].get(); }
  PyObject* FindBound(int variable) const { return variables_[variable].get(); }
  const std::vector<Decided>& decided() const { return decided_; }
  // Resource key and variable of all that are not captured.
  const std::vector<std::pair<uint64_t, int>>& bound() const { return bound_; }
  // The first uses, in order.
  const std::vector<Binding>& bindings() const { return bindings_; }
  // (key, counter_low, counter_high) of a seeded node that was matched.
  const std::vector<std::pair<int, std::array<uint64_t, 3>>>& seeds() const {
    return seeds_;
  }

  // Whether a variable has been written in the open epoch, and how
  // (InputRef::b); whether any has.
  char how_written(int variable) const { return written_[variable]; }
  bool HasWritten() const;
  void ForgetWrites() { written_.assign(written_.size(), 0); }
  // Whether a variable with this resource is used: in the open epoch as far as
  // it has come, or in the whole plan.
  bool Uses(uint64_t key, bool written_only, bool in_whole_plan) const;
  // Drops every tensor.
  void Clear();

 private:
  Plan& plan() const { return *context_.plan(); }
  void BindFeed(int slot, PyObject* tensor);
  void BindVariable(const VariableSlot& slot, PyObject* tensor);
  void FeedVariable(int slot, PyObject* tensor);
  void TellJoin(int number);

  const StepContext& context_;
  const Outputs& outputs_;
  History* const history_;
  std::vector<PyRef> feeds_;        // as Python gave them: for identity
  std::vector<PyRef> feed_copies_;  // where NumPy could change the bytes
  std::vector<PyRef> variables_;    // by variable
  std::vector<char> is_fed_;        // by slot
  std::vector<std::pair<uint64_t, int>> bound_;
  std::vector<char> written_;  // by variable, in the open epoch
  std::vector<Decided> decided_;
  std::vector<Binding> bindings_;
  std::vector<std::pair<int, std::array<uint64_t, 3>>> seeds_;
};

}  // namespace terra

#endif  // TERRA_KERNELS_CURSOR_INPUTS_H_
