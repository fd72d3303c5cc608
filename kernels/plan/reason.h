// Why a step cannot follow its graph any further.
#ifndef TERRA_KERNELS_PLAN_REASON_H_
#define TERRA_KERNELS_PLAN_REASON_H_

#include <array>
#include <cstddef>

namespace terra {

// What the native half finds out; Python's `errors.Reason` has the same names,
// and others for what only Python finds out.
enum class Reason {
  kNone,
  kNewPath,
  kConstantChanged,
  kFeedChanged,
  kCaptureChanged,
  kAttributesChanged,
  kDataflowChanged,
  kVariableChanged,
  kWriteChanged,
  kIndexOutOfRange,
  kDeviceChanged,
  kOpError,
};

// By number, from kNone on; a test compares them with Python's.
inline constexpr std::array<const char*, 12> kReasonNames = {
    "",
    "new_path",
    "constant_changed",
    "feed_changed",
    "capture_changed",
    "attributes_changed",
    "dataflow_changed",
    "variable_changed",
    "write_changed",
    "index_out_of_range",
    "device_changed",
    "op_error",
};

inline const char* NameOf(Reason reason) {
  return kReasonNames[static_cast<size_t>(reason)];
}

}  // namespace terra

#endif  // TERRA_KERNELS_PLAN_REASON_H_
