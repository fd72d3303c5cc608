#include "kernels/call/seeds.h"

#include <random>
#include <unordered_map>

#include "absl/strings/str_cat.h"

namespace terra {
namespace {

struct SeedLedger {
  int64_t last_internal = -1;
  // (op, seed, seed2) -> 128-bit counter steps already used by delegated ops
  std::unordered_map<std::string, uint64_t> used;
};

SeedLedger& Seeds() {
  static auto* ledger = new SeedLedger;
  return *ledger;
}

uint64_t RandomKey() {
  static auto* engine = new std::mt19937_64(std::random_device{}());
  return (*engine)();
}

}  // namespace

bool FindSeeds(PyObject* attrs, int64_t* seed, int64_t* seed2) {
  int found = 0;
  const Py_ssize_t n = PyTuple_GET_SIZE(attrs);
  for (Py_ssize_t i = 0; i + 1 < n; i += 2) {
    PyObject* name = PyTuple_GET_ITEM(attrs, i);
    int64_t* target = nullptr;
    if (PyUnicode_CompareWithASCIIString(name, "seed") == 0) target = seed;
    if (PyUnicode_CompareWithASCIIString(name, "seed2") == 0) target = seed2;
    if (target == nullptr) continue;
    PyObject* value = PyTuple_GET_ITEM(attrs, i + 1);
    *target = value == Py_None ? 0 : PyLong_AsLongLong(value);
    if (*target == -1 && PyErr_Occurred()) {
      PyErr_Clear();
      return false;
    }
    ++found;
  }
  return found == 2;
}

bool IsInternalPair(int64_t seed, int64_t seed2) {
  constexpr int64_t kMaxInt32 = 2147483647;  // as TensorFlow's random_seed.py
  if (seed == 0 && seed2 == 0) return true;
  const int64_t last = Seeds().last_internal;
  return last >= 0 && seed2 == last % kMaxInt32;
}

std::array<uint64_t, 3> DrawState(const std::string& op_type, int64_t seed,
                                  int64_t seed2, int64_t num_elements) {
  if (seed == 0 && seed2 == 0) return {RandomKey(), 0, RandomKey()};
  // Eager's kernel skips 256 samples an element, 4 a counter step.
  uint64_t& used = Seeds().used[absl::StrCat(op_type, ":", seed, ":", seed2)];
  const std::array<uint64_t, 3> state = {static_cast<uint64_t>(seed), used,
                                         static_cast<uint64_t>(seed2)};
  used += static_cast<uint64_t>(num_elements) * 64;
  return state;
}

void NoteInternalSeed(int64_t seed) { Seeds().last_internal = seed; }

void ClearSeedLedger() { Seeds().used.clear(); }

}  // namespace terra
