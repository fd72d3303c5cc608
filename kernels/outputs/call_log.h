// Calls of pure functions that are being followed so as to be replayed the next
// time.
#ifndef TERRA_KERNELS_OUTPUTS_CALL_LOG_H_
#define TERRA_KERNELS_OUTPUTS_CALL_LOG_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/call/call.h"
#include "kernels/call/op_info.h"
#include "kernels/plan/library_gradient.h"
#include "kernels/plan/pure_record.h"
#include "kernels/python/py_ref.h"

namespace terra {

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

}  // namespace terra

#endif  // TERRA_KERNELS_OUTPUTS_CALL_LOG_H_
