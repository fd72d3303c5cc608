#include "kernels/outputs/lifetimes.h"

#include <algorithm>

#include "kernels/outputs/outputs.h"

namespace terra {
namespace {

constexpr size_t kLooksPerOp = 2048;  // some microseconds

}  // namespace

void Lifetimes::Look(const std::deque<Made>& made, int index) {
  for (; num_known_ < made.size(); ++num_known_) {
    living_.push_back({static_cast<int>(num_known_), false});
  }
  credit_ += kLooksPerOp;
  if (credit_ < living_.size()) return;
  credit_ = std::min(credit_ - living_.size(), kLooksPerOp);
  size_t num_kept = 0;
  for (Living& each : living_) {
    const Made& output = made[each.made];
    if (IsReferenced(output)) {
      each.was_seen = true;
      living_[num_kept++] = each;
    } else if (each.was_seen) {
      ended_.push_back({output.node, output.output, index - 1});
    }
  }
  living_.resize(num_kept);
}

std::vector<Lifetime> Lifetimes::AtEnd(const std::deque<Made>& made,
                                       int num_ops) const {
  std::vector<Lifetime> all = ended_;
  for (const Living& each : living_) {
    if (!each.was_seen) continue;
    all.push_back({made[each.made].node, made[each.made].output, num_ops - 1});
  }
  return all;
}

}  // namespace terra
