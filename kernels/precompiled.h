// TensorFlow's headers that take the compiler longest, parsed once: setup.py
// compiles this file first, and every source of the library begins with it.
// No source may rely on that: each includes what it uses, and the Bazel build,
// which leaves this file out, holds it.
#ifndef TERRA_KERNELS_PRECOMPILED_H_
#define TERRA_KERNELS_PRECOMPILED_H_

#include "tensorflow/c/eager/c_api.h"
#include "tensorflow/c/eager/c_api_experimental.h"
#include "tensorflow/c/eager/tfe_context_internal.h"
#include "tensorflow/c/eager/tfe_tensorhandle_internal.h"
#include "tensorflow/core/common_runtime/dma_helper.h"
#include "tensorflow/core/common_runtime/eager/context.h"
#include "tensorflow/core/common_runtime/eager/tensor_handle.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/framework/tensor_util.h"

#endif  // TERRA_KERNELS_PRECOMPILED_H_
