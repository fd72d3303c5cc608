#include "kernels/runner/graph_runner.h"

#include <new>
#include <utility>

#include "tensorflow/c/eager/c_api_experimental.h"
#include "tensorflow/c/eager/tfe_cancellation_manager_internal.h"
#include "tensorflow/c/eager/tfe_tensorhandle_internal.h"
#include "tensorflow/c/tf_status.h"
#include "tsl/profiler/lib/traceme.h"
#include "tsl/profiler/lib/traceme_encode.h"

namespace terra {
namespace {

using StatusPtr = std::unique_ptr<TF_Status, decltype(&TF_DeleteStatus)>;

StatusPtr NewStatus() { return StatusPtr(TF_NewStatus(), TF_DeleteStatus); }

void AddInputs(TFE_Op* op, int64_t step_id,
               const std::vector<TFE_TensorHandle*>& inputs,
               TF_Status* status) {
  auto* id =
      tensorflow::TensorHandle::CreateLocalHandle(tensorflow::Tensor(step_id));
  TFE_OpAddInput(op, tensorflow::wrap(id), status);
  id->Unref();
  for (TFE_TensorHandle* input : inputs) {
    if (TF_GetCode(status) != TF_OK) return;
    TFE_OpAddInput(op, input, status);
  }
}

}  // namespace

GraphRunner& GraphRunner::Get() {
  // Never destroyed: a thread may still be inside at exit.
  static GraphRunner* runner = new GraphRunner;
  return *runner;
}

std::string GraphRunner::Launch(TFE_Context* context,
                                std::shared_ptr<Step> step,
                                const std::string& name,
                                const std::string& config_proto,
                                const std::vector<TFE_TensorHandle*>& inputs) {
  StatusPtr status = NewStatus();
  TFE_Op* op = TFE_NewOp(context, name.c_str(), status.get());
  if (TF_GetCode(status.get()) != TF_OK) return TF_Message(status.get());
  TFE_OpSetAttrString(op, "config_proto", config_proto.data(),
                      config_proto.size());
  TFE_OpSetCancellationManager(op, tensorflow::wrap(&step->cancellation()),
                               status.get());
  if (TF_GetCode(status.get()) == TF_OK) {
    AddInputs(op, step->id(), inputs, status.get());
  }
  if (TF_GetCode(status.get()) != TF_OK) {
    TFE_DeleteOp(op);
    return TF_Message(status.get());
  }
  std::lock_guard<std::mutex> lock(mu_);
  if (stopping_) {
    TFE_DeleteOp(op);
    return "the GraphRunner has been shut down";
  }
  if (!thread_.joinable()) thread_ = std::thread([this] { Loop(); });
  queue_.push_back({std::move(step), op});
  changed_.notify_all();
  return "";
}

void GraphRunner::Loop() {
  for (;;) {
    Job job;
    bool aborted;
    {
      std::unique_lock<std::mutex> lock(mu_);
      changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      job = std::move(queue_.front());
      queue_.pop_front();
      aborted = halted_ || stopping_;
      running_ = job.step;
    }
    if (aborted) job.step->Cancel();
    Run(std::move(job));
    std::lock_guard<std::mutex> lock(mu_);
    running_ = nullptr;
    changed_.notify_all();
  }
}

void GraphRunner::Run(Job job) {
  if (job.step->state().BeginRunning()) {
    StatusPtr status = NewStatus();
    tsl::profiler::TraceMe trace([&] {
      return tsl::profiler::TraceMeEncode("TerraGraph",
                                          {{"step", job.step->id()}});
    });
    TFE_TensorHandle* outputs[1];
    int num_outputs = 1;
    TFE_Execute(job.op, outputs, &num_outputs, status.get());
    const bool ok = TF_GetCode(status.get()) == TF_OK;
    for (int i = 0; ok && i < num_outputs; ++i) {
      TFE_DeleteTensorHandle(outputs[i]);
    }
    if (!ok && !job.step->state().cancel_requested()) {
      std::lock_guard<std::mutex> lock(mu_);
      halted_ = true;
    }
    trace.Stop();  // whoever waits for the end may stop the profiler
    job.step->state().EndRunning(ok, ok ? "" : TF_Message(status.get()));
  }
  job.step->mailbox().Close();
  TFE_DeleteOp(job.op);
}

void GraphRunner::Resume() {
  std::lock_guard<std::mutex> lock(mu_);
  halted_ = false;
}

void GraphRunner::Shutdown() {
  std::thread thread;
  std::shared_ptr<Step> running;
  {
    std::lock_guard<std::mutex> lock(mu_);
    stopping_ = true;
    for (Job& job : queue_) job.step->Cancel();
    running = running_;
    thread = std::move(thread_);
    changed_.notify_all();
  }
  if (running != nullptr) running->Cancel();
  if (thread.joinable()) thread.join();
}

void GraphRunner::AfterForkInChild() {
  // The mutex may be held by a thread that does not exist here. Nothing may
  // be destroyed (joinable std::thread, condition variable with waiters), so
  // a fresh object is built over the old one.
  new (this) GraphRunner;
  stopping_ = true;
}

}  // namespace terra
