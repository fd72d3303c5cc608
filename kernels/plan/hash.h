// The hashes by which histories and calls are known.
#ifndef TERRA_KERNELS_PLAN_HASH_H_
#define TERRA_KERNELS_PLAN_HASH_H_

#include <cstdint>
#include <functional>
#include <string_view>

#include "tensorflow/core/framework/tensor_shape.h"

namespace terra {

inline uint64_t MixHash(uint64_t hash, uint64_t value) {
  hash ^= value + 0x9e3779b97f4a7c15ull + (hash << 6) + (hash >> 2);
  return hash * 0xff51afd7ed558ccdull;
}

// What a value in a history is. Mixed in before the value itself.
enum class Event : uint64_t {
  kNode = 1,
  kOutside,   // a name
  kFixed,     // a tensor that is the plan's own: its number
  kMadeHere,  // an output of this step: node, output
  kType,      // data type, and kShape
  kShape,
  kTape,  // a TapeEvent
  kObject,
  kNumber,
  kText,
  kReal,
  kList,
  kTuple,
  kZeros,  // TensorFlow's mark of a tensor
  kSlices,
  kDict,
  kBytes,
  kAttributes,  // of a tensor: which, as `TensorAttributes::kind` has it
};

// A hash that is being made.
class Hash {
 public:
  explicit Hash(uint64_t start) : value_(start) {}
  uint64_t value() const { return value_; }
  void Mix(uint64_t value) { value_ = MixHash(value_, value); }
  void Mix(Event event) { Mix(static_cast<uint64_t>(event)); }
  void Mix(Event event, uint64_t value) {
    Mix(event);
    Mix(value);
  }
  void MixShape(const tensorflow::PartialTensorShape& shape);
  void MixBytes(std::string_view bytes) {
    Mix(Event::kBytes, std::hash<std::string_view>()(bytes));
  }

 private:
  uint64_t value_;
};

uint64_t HashOfShape(const tensorflow::PartialTensorShape& shape);

}  // namespace terra

#endif  // TERRA_KERNELS_PLAN_HASH_H_
