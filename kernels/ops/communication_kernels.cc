// Kernels of the communication ops. Data stays in host memory on every
// device; TensorFlow copies at the edges, so no CUDA code is needed.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/runner/held_handles.h"
#include "kernels/runner/step.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/framework/tensor_util.h"

namespace terra {
namespace {

using tensorflow::AsyncOpKernel;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

void InjectDelay() {
  const int64_t us = Delays().graph_us.load(std::memory_order_relaxed);
  if (us > 0) SleepAtRandom(us);
}

absl::Status Cancelled() {
  return absl::CancelledError("Terra: the step was cancelled");
}

StepPlace PlaceOf(OpKernelContext* context) {
  return StepPlace::Of(context->input(0).scalar<int64_t>()());
}

// An op that waits for a message. Holds no thread while it waits.
class ReceiveOp : public AsyncOpKernel {
 public:
  explicit ReceiveOp(OpKernelConstruction* context) : AsyncOpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("channel", &channel_));
  }

  void ComputeAsync(OpKernelContext* context, DoneCallback done) override {
    InjectDelay();
    const StepPlace place = PlaceOf(context);
    std::shared_ptr<Step> step = Step::Find(place.id);
    OP_REQUIRES_ASYNC(context, step != nullptr, Cancelled(), done);
    // The step's own cancellation closes the mailbox. TensorFlow's (another
    // op of the graph has failed) has to close it too, or this op would wait
    // for a Python that is itself waiting for the graph to end.
    auto* manager = context->cancellation_manager();
    const auto token =
        manager == nullptr ? 0 : manager->get_cancellation_token();
    if (manager != nullptr) {
      std::weak_ptr<Step> weak = step;
      const bool registered = manager->RegisterCallback(token, [weak] {
        if (auto s = weak.lock()) s->mailbox().Close();
      });
      OP_REQUIRES_ASYNC(context, registered, Cancelled(), done);
    }
    Step* raw = step.get();
    raw->graph_stall().Enter();
    raw->mailbox().Take(
        channel_ + place.offset,
        [this, context, done, manager, token,
         step = std::move(step)](std::optional<Message> message) {
          step->graph_stall().Leave();
          if (manager != nullptr) manager->TryDeregisterCallback(token);
          if (message.has_value()) {
            Receive(context, *std::move(message));
          } else {
            context->SetStatus(Cancelled());
          }
          done();
        });
  }

 protected:
  virtual void Receive(OpKernelContext* context, Message message) = 0;

 private:
  int channel_;
};

// Makes what a message carries the kernel's output.
absl::Status SetFromMessage(OpKernelContext* context, Message message) {
  if (message.link == nullptr) {
    context->set_output(0, std::move(message.tensor));
    return absl::OkStatus();
  }
  const Tensor* tensor = nullptr;
  TF_RETURN_IF_ERROR(message.link->Tensor(&tensor));
  context->set_output(0, *tensor);
  return absl::OkStatus();
}

class FeedOp : public ReceiveOp {
 public:
  using ReceiveOp::ReceiveOp;

 protected:
  void Receive(OpKernelContext* context, Message message) override {
    OP_REQUIRES_OK(context, SetFromMessage(context, std::move(message)));
  }
};

class HandleOp : public OpKernel {
 public:
  explicit HandleOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("number", &number_));
  }

  void Compute(OpKernelContext* context) override {
    Tensor handle;
    OP_REQUIRES(context, HeldHandle::Find(number_, &handle),
                absl::InternalError("Terra: a handle is held no more"));
    context->set_output(0, std::move(handle));
  }

 private:
  int64_t number_;
};

class ReadVariableOp : public OpKernel {
 public:
  explicit ReadVariableOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("number", &number_));
    OP_REQUIRES_OK(context, context->GetAttr("dtype", &dtype_));
  }

  void Compute(OpKernelContext* context) override {
    auto variable = HeldHandle::FindVariable(number_);
    if (variable == nullptr) {
      Tensor handle;
      OP_REQUIRES(context, HeldHandle::Find(number_, &handle),
                  absl::InternalError("Terra: a handle is held no more"));
      OP_REQUIRES_OK(context,
                     tensorflow::LookupResource(
                         context, handle.scalar<tensorflow::ResourceHandle>()(),
                         &variable));
    }
    tensorflow::tf_shared_lock lock(*variable->mu());
    const Tensor& value = *variable->tensor();
    OP_REQUIRES(context, value.dtype() == dtype_,
                absl::InvalidArgumentError("Terra: another type of variable"));
    // After a sparse write in place the buffer is not the reader's to share.
    context->set_output(0, variable->copy_on_read_mode.load()
                               ? tensorflow::tensor::DeepCopy(value)
                               : value);
  }

 private:
  int64_t number_;
  tensorflow::DataType dtype_;
};

class CaseSelectOp : public ReceiveOp {
 public:
  explicit CaseSelectOp(OpKernelConstruction* context) : ReceiveOp(context) {
    OP_REQUIRES_OK(context, context->GetAttr("num_branches", &num_branches_));
  }

 protected:
  void Receive(OpKernelContext* context, Message message) override {
    OP_REQUIRES(context, message.index >= 0 && message.index < num_branches_,
                absl::InternalError(absl::StrCat(
                    "Terra: branch ", message.index, " of ", num_branches_)));
    Tensor index(static_cast<int32_t>(message.index));
    context->set_output(0, std::move(index));
  }

 private:
  int64_t num_branches_;
};

class LoopCondOp : public ReceiveOp {
 public:
  explicit LoopCondOp(OpKernelConstruction* context) : ReceiveOp(context) {
    OP_REQUIRES_OK(context, context->GetAttr("num_trips", &num_trips_));
  }

  void ComputeAsync(OpKernelContext* context, DoneCallback done) override {
    if (context->input(1).scalar<int32_t>()() >= num_trips_) {
      context->set_output(0, Tensor(false));
      done();
      return;
    }
    ReceiveOp::ComputeAsync(context, std::move(done));
  }

 protected:
  void Receive(OpKernelContext* context, Message message) override {
    context->set_output(0, Tensor(message.index != 0));
  }

 private:
  int64_t num_trips_;
};

class TripOp : public OpKernel {
 public:
  explicit TripOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("num_trips", &num_trips_));
  }

  void Compute(OpKernelContext* context) override {
    StepPlace place = PlaceOf(context);
    place.offset =
        place.offset * num_trips_ + context->input(1).scalar<int32_t>()();
    context->set_output(0, Tensor(place.Token()));
  }

 private:
  int64_t num_trips_;
};

class SelectOp : public ReceiveOp {
 public:
  using ReceiveOp::ReceiveOp;

 protected:
  void Receive(OpKernelContext* context, Message message) override {
    if (message.index >= 0) {
      OP_REQUIRES(
          context, message.index + 1 < context->num_inputs(),
          absl::InternalError(absl::StrCat("Terra: alternative ", message.index,
                                           " of ", context->num_inputs() - 1)));
      context->set_output(0, context->input(message.index + 1));
      return;
    }
    OP_REQUIRES_OK(context, SetFromMessage(context, std::move(message)));
  }
};

class AwaitCommitOp : public ReceiveOp {
 public:
  using ReceiveOp::ReceiveOp;

 protected:
  void Receive(OpKernelContext*, Message) override {}
};

class FetchOp : public OpKernel {
 public:
  explicit FetchOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("channel", &channel_));
  }

  void Compute(OpKernelContext* context) override {
    InjectDelay();
    const StepPlace place = PlaceOf(context);
    std::shared_ptr<Step> step = Step::Find(place.id);
    OP_REQUIRES(context, step != nullptr, Cancelled());
    Message message;
    message.tensor = context->input(1);
    step->mailbox().Put(channel_ + place.offset, std::move(message));
  }

 private:
  int channel_;
};

template <typename Index>
class CheckIndicesOp : public OpKernel {
 public:
  explicit CheckIndicesOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("limits", &limits_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& indices = context->input(0);
    const auto flat = indices.flat<Index>();
    const size_t n = limits_.size();
    for (int64_t i = 0; i < flat.size(); ++i) {
      const int64_t index = static_cast<int64_t>(flat(i));
      OP_REQUIRES(context, index >= 0 && index < limits_[i % n],
                  absl::InvalidArgumentError(
                      absl::StrCat("Terra: index ", index, " at position ", i,
                                   " is not in [0, ", limits_[i % n], ")")));
    }
    context->set_output(0, indices);
  }

 private:
  std::vector<int64_t> limits_;
};

using tensorflow::DEVICE_CPU;
using tensorflow::DEVICE_GPU;

REGISTER_KERNEL_BUILDER(Name("Terra>Feed").Device(DEVICE_CPU), FeedOp);
REGISTER_KERNEL_BUILDER(Name("Terra>Feed")
                            .Device(DEVICE_GPU)
                            .HostMemory("step")
                            .HostMemory("output"),
                        FeedOp);
REGISTER_KERNEL_BUILDER(Name("Terra>Handle").Device(DEVICE_CPU), HandleOp);
REGISTER_KERNEL_BUILDER(
    Name("Terra>Handle").Device(DEVICE_GPU).HostMemory("handle"), HandleOp);
REGISTER_KERNEL_BUILDER(Name("Terra>ReadVariable").Device(DEVICE_CPU),
                        ReadVariableOp);
REGISTER_KERNEL_BUILDER(Name("Terra>Fetch").Device(DEVICE_CPU), FetchOp);
REGISTER_KERNEL_BUILDER(Name("Terra>Fetch")
                            .Device(DEVICE_GPU)
                            .HostMemory("step")
                            .HostMemory("input"),
                        FetchOp);
REGISTER_KERNEL_BUILDER(Name("Terra>CaseSelect").Device(DEVICE_CPU),
                        CaseSelectOp);
REGISTER_KERNEL_BUILDER(Name("Terra>CaseSelect")
                            .Device(DEVICE_GPU)
                            .HostMemory("step")
                            .HostMemory("index"),
                        CaseSelectOp);
REGISTER_KERNEL_BUILDER(Name("Terra>LoopCond").Device(DEVICE_CPU), LoopCondOp);
REGISTER_KERNEL_BUILDER(Name("Terra>LoopCond")
                            .Device(DEVICE_GPU)
                            .HostMemory("step")
                            .HostMemory("trip")
                            .HostMemory("goes_on"),
                        LoopCondOp);
REGISTER_KERNEL_BUILDER(Name("Terra>Trip").Device(DEVICE_CPU), TripOp);
REGISTER_KERNEL_BUILDER(Name("Terra>Trip")
                            .Device(DEVICE_GPU)
                            .HostMemory("step")
                            .HostMemory("trip")
                            .HostMemory("place"),
                        TripOp);
REGISTER_KERNEL_BUILDER(Name("Terra>Select").Device(DEVICE_CPU), SelectOp);
REGISTER_KERNEL_BUILDER(Name("Terra>Select")
                            .Device(DEVICE_GPU)
                            .HostMemory("step")
                            .HostMemory("inputs")
                            .HostMemory("output"),
                        SelectOp);
REGISTER_KERNEL_BUILDER(Name("Terra>AwaitCommit").Device(DEVICE_CPU),
                        AwaitCommitOp);
REGISTER_KERNEL_BUILDER(
    Name("Terra>AwaitCommit").Device(DEVICE_GPU).HostMemory("step"),
    AwaitCommitOp);
#define TERRA_REGISTER_CHECK_INDICES(T)                       \
  REGISTER_KERNEL_BUILDER(Name("Terra>CheckIndices")          \
                              .Device(DEVICE_CPU)             \
                              .TypeConstraint<T>("Tindices"), \
                          CheckIndicesOp<T>);                 \
  REGISTER_KERNEL_BUILDER(Name("Terra>CheckIndices")          \
                              .Device(DEVICE_GPU)             \
                              .HostMemory("indices")          \
                              .HostMemory("output")           \
                              .TypeConstraint<T>("Tindices"), \
                          CheckIndicesOp<T>)
TERRA_REGISTER_CHECK_INDICES(int32_t);
TERRA_REGISTER_CHECK_INDICES(int64_t);
#undef TERRA_REGISTER_CHECK_INDICES

}  // namespace
}  // namespace terra
