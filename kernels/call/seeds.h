// Which draws of random numbers may be delegated, and with what state.
//
// A seeded op draws in eager what the stateless op draws from
// (key = seed, counter = (used, seed2)). That holds only for pairs that no
// kernel of eager's has used: those TensorFlow made up itself.
#ifndef TERRA_KERNELS_CALL_SEEDS_H_
#define TERRA_KERNELS_CALL_SEEDS_H_

#include <array>
#include <cstdint>
#include <string>

#include "kernels/python/py_ref.h"

namespace terra {

// Notes the seed that TensorFlow has just made up for an op without one.
void NoteInternalSeed(int64_t seed);

// Forgets the draws, as eager does when its kernel caches are cleared.
void ClearSeedLedger();

// Reads the attributes seed and seed2 (None counts as 0). False if they are
// missing or no integers.
bool FindSeeds(PyObject* attrs, int64_t* seed, int64_t* seed2);

// Whether the pair is TensorFlow's own, or none was set at all.
bool IsInternalPair(int64_t seed, int64_t seed2);

// (key, counter low, counter high) for a draw of `num_elements`. Without
// seeds the key is drawn here, so that a replay can repeat it.
std::array<uint64_t, 3> DrawState(const std::string& op_type, int64_t seed,
                                  int64_t seed2, int64_t num_elements);

}  // namespace terra

#endif  // TERRA_KERNELS_CALL_SEEDS_H_
