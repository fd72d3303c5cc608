#include "kernels/python/waiting.h"

namespace terra {

NativeKnobs& Knobs() {
  static auto* knobs = new NativeKnobs;
  return *knobs;
}

}  // namespace terra
