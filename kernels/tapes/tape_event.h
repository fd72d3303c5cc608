// What can happen to a tape.
#ifndef TERRA_KERNELS_TAPES_TAPE_EVENT_H_
#define TERRA_KERNELS_TAPES_TAPE_EVENT_H_

#include <cstdint>

namespace terra {

// Part of the history.
enum class TapeEvent : uint64_t {
  kNew = 1,
  kEnter,
  kLeave,
  kWatch,
  kWatchVariable,
  kVariableAccessed,
  kStop,
  kRestart,
  kCustomGradient,   // whose Python nobody knows
  kLibraryGradient,  // one that is known
};

}  // namespace terra

#endif  // TERRA_KERNELS_TAPES_TAPE_EVENT_H_
