#include "kernels/plan/hash.h"

namespace terra {

void Hash::MixShape(const tensorflow::PartialTensorShape& shape) {
  Mix(Event::kShape);
  Mix(static_cast<uint64_t>(shape.dims()));
  for (int i = 0; i < shape.dims(); ++i) {
    Mix(static_cast<uint64_t>(shape.dim_size(i)));
  }
}

uint64_t HashOfShape(const tensorflow::PartialTensorShape& shape) {
  Hash hash(0);
  hash.MixShape(shape);
  return hash.value();
}

}  // namespace terra
