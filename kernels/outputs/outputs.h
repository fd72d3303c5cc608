// What a step has made.
#ifndef TERRA_KERNELS_OUTPUTS_OUTPUTS_H_
#define TERRA_KERNELS_OUTPUTS_OUTPUTS_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/core/handle_table.h"
#include "kernels/outputs/lifetimes.h"
#include "kernels/outputs/readable.h"
#include "kernels/outputs/step_context.h"
#include "kernels/outputs/waits.h"
#include "kernels/plan/plan.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/waiting.h"
#include "tensorflow/core/common_runtime/eager/tensor_handle.h"
#include "tensorflow/core/framework/tensor_shape.h"

namespace terra {

// One output that this step has made.
struct Made {
  Made(tensorflow::TensorHandle* handle, int node, int output, int channel,
       PyObject* marker, std::atomic<bool>* ready)
      : handle(handle),
        node(node),
        output(output),
        fetch_channel(channel),
        marker(marker),
        ready(ready) {}
  bool Is(int other_node, int other_output) const {
    return node == other_node && output == other_output;
  }

  tensorflow::TensorHandle* handle;  // owned; null once released
  int node;
  int output;
  int fetch_channel;
  PyObject* marker;  // names the op on a tape; borrowed from plan or session
  tensorflow::PartialTensorShape shape;  // where the cursor has inferred it
  std::atomic<bool>* ready;  // the session's: has a value (or is poisoned)
  bool seen = false;         // Python has looked at the value: pinned
  // The shape is the plan's, or the history tells it. Else it may be another
  // one in a step of the same history, though it is known once the value is.
  bool is_told = false;
};

// Whether somebody besides its session holds the output's handle.
inline bool IsReferenced(const Made& made) {
  return made.handle != nullptr && !made.handle->RefCountIsOne();
}

// The outputs of a step, in the order in which they were made.
//
// Invariant: the table has each output's handle, with the output's index,
// until that handle is released; an index never changes until all outputs are
// released. Handles are owned, markers are not: they are the plan's, or kept
// here. Every output has a flag that says whether it has a value; whoever waits
// for one keeps all flags. Touched with the GIL held, but for the flags.
class Outputs {
 public:
  Outputs(StepContext* context, Waits* waits);
  Outputs(const Outputs&) = delete;

  // Those of all live sessions.
  static std::vector<Outputs*>& Live();

  // The index of the output that has a handle, or -1.
  int32_t Find(const tensorflow::TensorHandle* handle) const {
    return table_.Find(handle);
  }
  Made& at(int index) { return made_.at(index); }
  Made& operator[](int index) { return made_[index]; }
  const Made& operator[](int index) const { return made_[index]; }
  const std::deque<Made>& all() const { return made_; }
  size_t size() const { return made_.size(); }

  // The hash of an output's shape where the plan knows it, or null.
  const uint64_t* PlannedShape(int index) const {
    const OutputSpec& spec = SpecOf(made_[index]);
    return spec.shape_known ? &spec.shape_hash : nullptr;
  }
  bool ShapeIsKnown(int index) const { return ShapeIsKnown(made_[index]); }
  bool ShapeIsKnown(const Made& made) const {
    return made.ready->load() || made.shape.IsFullyDefined() ||
           SpecOf(made).shape_known;
  }
  const OutputSpec& SpecOf(const Made& made) const {
    return context_->plan()->nodes[made.node].outputs[made.output];
  }

  // Makes one without a value yet, which is fetched if the plan says so.
  PyRef AddPending(const OutputSpec& spec, int node, int output,
                   PyObject* marker,
                   const tensorflow::PartialTensorShape& inferred);
  // Adds one of an op that ran for real under node `node`.
  void AddReal(PyObject* tensor, int node, int output, PyObject* marker);
  // The same for a list of all its outputs.
  void AddAllReal(int node, PyObject* marker, PyObject* outputs);
  // Gives a pending output its value, or an error.
  void Set(int index, PyObject* tensor);
  void Poison(int index, const std::string& message, int code);
  PyRef Tensor(int index) const;

  // Waits (GIL released, signals served) until `made` has a value.
  Waited WaitReady(const Made& made);
  // Makes sure that it can be read, its value or only its shape. False with an
  // exception set.
  bool EnsureReadable(int index, bool shape_only);
  // Whether a tensor has its value if it is not of this step: no live session
  // is still making it.
  static bool IsReadyOutside(const tensorflow::TensorHandle* handle);
  // Whether some live session is still making it.
  static bool IsPending(const tensorflow::TensorHandle* handle);

  // Keeps the name of an op that is being traced.
  PyObject* KeepMarker(PyRef marker) {
    markers_.push_back(std::move(marker));
    return markers_.back().get();
  }
  // Op `index` of a trace is about to run.
  void LookAtLifetimes(int index) { lifetimes_.Look(made_, index); }
  // How long outputs were held while the step was traced, which has ended.
  std::vector<Lifetime> LifetimesAtEnd(int num_ops) const {
    return lifetimes_.AtEnd(made_, num_ops);
  }
  // From now on nodes are known by their places on the path.
  void Renumber(const std::vector<int>& path);
  // Drops every handle.
  void Clear();

 private:
  void Add(tensorflow::TensorHandle* handle, int node, int output, int channel,
           PyObject* marker, bool is_ready);
  void Finish(Made* made);
  // Frees outputs that nobody else holds, so that tracing needs no more memory
  // than eager.
  void SweepDead();

  StepContext* const context_;
  Waits* const waits_;
  HandleTable table_;
  std::deque<Made> made_;
  std::shared_ptr<std::deque<std::atomic<bool>>> ready_ =
      std::make_shared<std::deque<std::atomic<bool>>>();
  std::vector<PyRef> markers_;
  int64_t real_bytes_ = 0;  // of real outputs, since the last sweep
  Lifetimes lifetimes_;
};

}  // namespace terra

#endif  // TERRA_KERNELS_OUTPUTS_OUTPUTS_H_
