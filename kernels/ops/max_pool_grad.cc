// The gradient of a max pooling, bit for bit what TensorFlow's `MaxPoolGrad`
// gives on the CPU without oneDNN, which is eager's, in a fraction of its time.
//
// TensorFlow goes over the input and, for each item, over the windows it is in,
// an item of a channel at a time. Here it is window by window, sixteen channels
// at a time: the first of the largest items of a window gets the window's
// gradient. Sums have TensorFlow's order, that of the windows. (An item gets
// + 0 for windows that it is not the largest of: no sum here is -0, so that
// changes nothing.)
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/kernel_shape_util.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

namespace terra {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

REGISTER_OP("Terra>MaxPoolGrad")
    .Input("orig_input: float")
    .Input("grad: float")
    .Output("output: float")
    .Attr("ksize: list(int) >= 4")
    .Attr("strides: list(int) >= 4")
    .Attr("padding: {'SAME', 'VALID'}")
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* c) {
      return tensorflow::shape_inference::UnchangedShapeWithRank(c, 4);
    })
    .Doc(R"doc(
Computes the gradient of `MaxPool`, as `MaxPoolGrad` does.

orig_input: What was pooled, NHWC.
grad: The gradient of what came out, NHWC.
output: The gradient of what was pooled.
ksize: The window, of which the first and the last size are 1.
strides: The window's strides, of which the first and the last are 1.
padding: The padding.
)doc");

constexpr int kLanes = 16;

// One side of the window.
struct Side {
  int64_t input, window, stride, output, before;
  // The part of the i-th window that is inside.
  int64_t begin(int64_t i) const {
    return std::max<int64_t>(i * stride - before, 0);
  }
  int64_t end(int64_t i) const {
    return std::min<int64_t>(i * stride - before + window, input);
  }
};

// What x86-64 and Arm have at the least, and every compiler makes instructions
// of.
typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Integers __attribute__((vector_size(16)));
constexpr int kVectors = kLanes * sizeof(float) / sizeof(Floats);

struct AllLanes {
  void Load(const float* from, Floats* to) const {
    std::memcpy(to, from, kVectors * sizeof(Floats));
  }
  void Store(const Floats* from, float* to) const {
    std::memcpy(to, from, kVectors * sizeof(Floats));
  }
};

struct SomeLanes {
  size_t size;  // in bytes
  void Load(const float* from, Floats* to) const {
    std::memset(to, 0, kVectors * sizeof(Floats));
    std::memcpy(to, from, size);
  }
  void Store(const Floats* from, float* to) const {
    std::memcpy(to, from, size);
  }
};

// Some channels of one window. Each position is `depth` behind the one before;
// `skip` is what lies between the end of a row and the next.
template <typename Lanes>
void AddWindow(const Lanes& lanes, const float* in, const float* grad,
               float* out, int64_t rows, int64_t columns, int64_t depth,
               int64_t skip) {
  Floats best[kVectors], item[kVectors];
  Integers best_at[kVectors] = {};
  lanes.Load(in, best);
  Integers at{};
  const float* next = in;
  for (int64_t r = 0; r < rows; ++r, next += skip) {
    for (int64_t c = 0; c < columns; ++c, next += depth, at += 1) {
      lanes.Load(next, item);
      for (int v = 0; v < kVectors; ++v) {
        const Integers is_better = best[v] < item[v];
        best[v] = is_better ? item[v] : best[v];
        best_at[v] = is_better ? at : best_at[v];
      }
    }
  }
  Floats given[kVectors], sum[kVectors];
  lanes.Load(grad, given);
  at = Integers{};
  float* place = out;
  for (int64_t r = 0; r < rows; ++r, place += skip) {
    for (int64_t c = 0; c < columns; ++c, place += depth, at += 1) {
      lanes.Load(place, sum);
      for (int v = 0; v < kVectors; ++v) {
        sum[v] += best_at[v] == at ? given[v] : Floats{};
      }
      lanes.Store(sum, place);
    }
  }
}

void AddImage(const float* in, const float* grad, float* out, const Side& rows,
              const Side& columns, int64_t depth) {
  const int64_t row_size = columns.input * depth;
  for (int64_t r = 0; r < rows.output; ++r) {
    const int64_t row = rows.begin(r), num_rows = rows.end(r) - row;
    for (int64_t c = 0; c < columns.output; ++c, grad += depth) {
      const int64_t column = columns.begin(c);
      const int64_t num_columns = columns.end(c) - column;
      if (num_rows <= 0 || num_columns <= 0) continue;
      const int64_t first = row * row_size + column * depth;
      const int64_t skip = row_size - num_columns * depth;
      int64_t d = 0;
      for (; d + kLanes <= depth; d += kLanes) {
        AddWindow(AllLanes(), in + first + d, grad + d, out + first + d,
                  num_rows, num_columns, depth, skip);
      }
      if (d == depth) continue;
      const SomeLanes rest{static_cast<size_t>(depth - d) * sizeof(float)};
      AddWindow(rest, in + first + d, grad + d, out + first + d, num_rows,
                num_columns, depth, skip);
    }
  }
}

class MaxPoolGradOp : public tensorflow::OpKernel {
 public:
  explicit MaxPoolGradOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("ksize", &ksize_));
    OP_REQUIRES_OK(context, context->GetAttr("strides", &strides_));
    OP_REQUIRES_OK(context, context->GetAttr("padding", &padding_));
    OP_REQUIRES(
        context,
        ksize_.size() == 4 && strides_.size() == 4 && ksize_[0] == 1 &&
            ksize_[3] == 1 && strides_[0] == 1 && strides_[3] == 1,
        absl::InvalidArgumentError("Terra: only windows of rows and columns"));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& input = context->input(0);
    const Tensor& grad = context->input(1);
    OP_REQUIRES(context, input.dims() == 4 && grad.dims() == 4,
                absl::InvalidArgumentError("Terra: inputs of 4 dimensions"));
    Side rows, columns;
    OP_REQUIRES_OK(context, MakeSide(input, 1, &rows));
    OP_REQUIRES_OK(context, MakeSide(input, 2, &columns));
    const int64_t batch = input.dim_size(0), depth = input.dim_size(3);
    OP_REQUIRES(
        context,
        grad.dim_size(0) == batch && grad.dim_size(1) == rows.output &&
            grad.dim_size(2) == columns.output && grad.dim_size(3) == depth,
        absl::InvalidArgumentError(absl::StrCat(
            "Terra: the gradient has the shape ", grad.shape().DebugString(),
            " for an input of ", input.shape().DebugString())));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context,
                   context->allocate_output(0, input.shape(), &output));
    const float* in = input.flat<float>().data();
    const float* given = grad.flat<float>().data();
    float* out = output->flat<float>().data();
    const int64_t in_size = rows.input * columns.input * depth;
    const int64_t grad_size = rows.output * columns.output * depth;
    auto add_images = [&](int64_t begin, int64_t end) {
      std::fill(out + begin * in_size, out + end * in_size, 0.0f);
      for (int64_t i = begin; i < end; ++i) {
        AddImage(in + i * in_size, given + i * grad_size, out + i * in_size,
                 rows, columns, depth);
      }
    };
    const auto& workers = *context->device()->tensorflow_cpu_worker_threads();
    tensorflow::Shard(workers.num_threads, workers.workers, batch,
                      grad_size * rows.window * columns.window, add_images);
  }

 private:
  absl::Status MakeSide(const Tensor& input, int dimension, Side* side) const {
    int64_t after;
    side->input = input.dim_size(dimension);
    side->window = ksize_[dimension];
    side->stride = strides_[dimension];
    return tensorflow::GetWindowedOutputSizeVerbose(
        side->input, side->window, /*dilation_rate=*/1, side->stride, padding_,
        &side->output, &side->before, &after);
  }

  std::vector<int32_t> ksize_;
  std::vector<int32_t> strides_;
  tensorflow::Padding padding_;
};

REGISTER_KERNEL_BUILDER(
    Name("Terra>MaxPoolGrad").Device(tensorflow::DEVICE_CPU), MaxPoolGradOp);

}  // namespace
}  // namespace terra
