#include "kernels/core/handle_table.h"

#include <cstdint>
#include <memory>
#include <random>
#include <unordered_map>
#include <vector>

#include "kernels/core/check.h"

namespace terra {
namespace {

const void* Key(uintptr_t address) {
  return reinterpret_cast<const void*>(address);
}

void UnknownKeyIsNotFound() {
  HandleTable table;
  CHECK(table.size() == 0);
  CHECK(table.Find(Key(8)) == -1);
  table.Insert(Key(16), 1);
  CHECK(table.Find(Key(8)) == -1);
}

void InsertedKeyIsFound() {
  HandleTable table;
  table.Insert(Key(8), 0);
  table.Insert(Key(16), 5);
  CHECK(table.Find(Key(8)) == 0);
  CHECK(table.Find(Key(16)) == 5);
  CHECK(table.size() == 2);
}

// A freed handle's address comes back as another output's.
void LaterInsertionOfAKeyReplacesTheEarlier() {
  HandleTable table;
  table.Insert(Key(8), 1);
  table.Insert(Key(8), 2);
  CHECK(table.Find(Key(8)) == 2);
  CHECK(table.size() == 1);
}

void ClearForgetsEverything() {
  HandleTable table;
  for (int i = 1; i <= 1000; ++i) table.Insert(Key(8 * i), i);
  table.Clear();
  CHECK(table.size() == 0);
  for (int i = 1; i <= 1000; ++i) CHECK(table.Find(Key(8 * i)) == -1);
  table.Insert(Key(8), 3);
  CHECK(table.Find(Key(8)) == 3);
}

void GrowthKeepsAllEntries() {
  HandleTable table;
  for (int i = 1; i <= 100000; ++i) {
    table.Insert(Key(64 * i), i);
    CHECK(table.size() == static_cast<size_t>(i));
    if ((i & (i - 1)) == 0) CHECK(table.Find(Key(64)) == 1);
  }
  for (int i = 1; i <= 100000; ++i) CHECK(table.Find(Key(64 * i)) == i);
  CHECK(table.Find(Key(32)) == -1);
}

// Keys that differ only in their highest bits must not form one long chain.
void KeysFarApartAreFound() {
  HandleTable table;
  for (uintptr_t i = 1; i <= 4096; ++i) {
    table.Insert(Key(i << 40), static_cast<int32_t>(i));
  }
  for (uintptr_t i = 1; i <= 4096; ++i) {
    CHECK(table.Find(Key(i << 40)) == static_cast<int32_t>(i));
  }
}

void AddressesOfRealObjectsAreFound() {
  std::vector<std::unique_ptr<int>> objects;
  HandleTable table;
  for (int i = 0; i < 10000; ++i) {
    objects.push_back(std::make_unique<int>(i));
    table.Insert(objects.back().get(), i);
  }
  for (const auto& object : objects) CHECK(table.Find(object.get()) == *object);
}

void ReservedRoomChangesNothing() {
  HandleTable table;
  table.Insert(Key(8), 1);
  table.Reserve(1000);
  CHECK(table.size() == 1);
  CHECK(table.Find(Key(8)) == 1);
  for (int32_t i = 2; i < 2000; ++i) table.Insert(Key(8 * i), i);
  for (int32_t i = 1; i < 2000; ++i) CHECK(table.Find(Key(8 * i)) == i);
  CHECK(table.Find(Key(8 * 2000)) == -1);
}

void RandomUseEqualsAMap() {
  for (uint32_t seed = 0; seed < 50; ++seed) {
    std::mt19937 random(seed);
    HandleTable table;
    std::unordered_map<const void*, int32_t> model;
    const uint32_t num_keys = 1 + random() % 500;
    for (int step = 0; step < 5000; ++step) {
      const void* key = Key(8 * (1 + random() % num_keys));
      if (random() % 2000 == 0) {
        table.Clear();
        model.clear();
      } else if (random() % 2 == 0) {
        table.Insert(key, step);
        model[key] = step;
      } else {
        const auto known = model.find(key);
        CHECK(table.Find(key) == (known == model.end() ? -1 : known->second));
      }
      CHECK(table.size() == model.size());
    }
  }
}

}  // namespace
}  // namespace terra

int main() {
  using namespace terra;
  RUN_TEST(UnknownKeyIsNotFound);
  RUN_TEST(InsertedKeyIsFound);
  RUN_TEST(LaterInsertionOfAKeyReplacesTheEarlier);
  RUN_TEST(ClearForgetsEverything);
  RUN_TEST(GrowthKeepsAllEntries);
  RUN_TEST(KeysFarApartAreFound);
  RUN_TEST(AddressesOfRealObjectsAreFound);
  RUN_TEST(ReservedRoomChangesNothing);
  RUN_TEST(RandomUseEqualsAMap);
}
