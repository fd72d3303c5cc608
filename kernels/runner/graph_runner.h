// The GraphRunner: one thread that runs the generated graphs, in order.
//
// A graph is launched by the name of its function through TensorFlow's C API,
// without the GIL. Steps run one after another, so a step sees every variable
// the step before it wrote. When a graph fails, the runner halts: what is
// queued behind it is aborted (ends as cancelled) until Resume, because it was
// launched on a state that never came to be.
#ifndef TERRA_KERNELS_RUNNER_GRAPH_RUNNER_H_
#define TERRA_KERNELS_RUNNER_GRAPH_RUNNER_H_

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "kernels/runner/step.h"
#include "tensorflow/c/eager/c_api.h"

namespace terra {

class GraphRunner {
 public:
  static GraphRunner& Get();

  // Queues one run of function `name` with the step's id as first input and
  // `inputs` after it. Returns an error message, or "".
  std::string Launch(TFE_Context* context, std::shared_ptr<Step> step,
                     const std::string& name, const std::string& config_proto,
                     const std::vector<TFE_TensorHandle*>& inputs);

  // Leaves the halted state.
  void Resume();

  // Cancels what is queued or running, waits for it, ends the thread.
  void Shutdown();

  // In a forked child: the thread is not there. Forgets everything.
  void AfterForkInChild();

 private:
  struct Job {
    std::shared_ptr<Step> step;
    TFE_Op* op;
  };

  void Loop();
  void Run(Job job);

  std::mutex mu_;
  std::condition_variable changed_;
  std::deque<Job> queue_;          // guarded by mu_
  std::shared_ptr<Step> running_;  // guarded by mu_
  bool halted_ = false;            // guarded by mu_
  bool stopping_ = false;          // guarded by mu_
  std::thread thread_;             // guarded by mu_
};

}  // namespace terra

#endif  // TERRA_KERNELS_RUNNER_GRAPH_RUNNER_H_
