// Which output of which node a tensor handle is, within one step.
//
// An open-addressing hash table keyed by pointer; one insertion per output of
// every matched op, one lookup per input, so it is on the hot path. Entries
// are never removed one by one; Clear keeps the memory.
#ifndef TERRA_KERNELS_CORE_HANDLE_TABLE_H_
#define TERRA_KERNELS_CORE_HANDLE_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace terra {

class HandleTable {
 public:
  HandleTable() : slots_(64) {}

  // Maps `key` (not null) to `value`, replacing what was there.
  void Insert(const void* key, int32_t value) {
    if ((size_ + 1) * 4 > slots_.size() * 3) Grow();
    Slot& s = Probe(key);
    if (s.key == nullptr) ++size_;
    s.key = key;
    s.value = value;
  }

  // The value of `key`, or -1.
  int32_t Find(const void* key) const {
    const Slot& s = const_cast<HandleTable*>(this)->Probe(key);
    return s.key == nullptr ? -1 : s.value;
  }

  // Makes room for so many at once.
  void Reserve(size_t size) {
    while (size * 4 > slots_.size() * 3) Grow();
  }

  size_t size() const { return size_; }

  void Clear() {
    for (Slot& s : slots_) s = Slot();
    size_ = 0;
  }

 private:
  struct Slot {
    const void* key = nullptr;
    int32_t value = -1;
  };

  static size_t Hash(const void* key) {
    uint64_t x = reinterpret_cast<uintptr_t>(key);
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdULL;
    x ^= x >> 33;
    return static_cast<size_t>(x);
  }

  Slot& Probe(const void* key) {
    const size_t mask = slots_.size() - 1;
    size_t i = Hash(key) & mask;
    while (slots_[i].key != nullptr && slots_[i].key != key) {
      i = (i + 1) & mask;
    }
    return slots_[i];
  }

  void Grow() {
    std::vector<Slot> old(slots_.size() * 2);
    old.swap(slots_);
    for (const Slot& s : old) {
      if (s.key != nullptr) Probe(s.key) = s;
    }
  }

  std::vector<Slot> slots_;  // size is a power of two
  size_t size_ = 0;
};

}  // namespace terra

#endif  // TERRA_KERNELS_CORE_HANDLE_TABLE_H_
