#include "kernels/plan/describe.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace terra {

std::string DescribeNode(const Plan& plan, int number) {
  return absl::StrCat("op ", number, " ", plan.nodes[number].name);
}

std::string DescribeDecision(const Plan& plan, int channel, int64_t branch) {
  for (size_t i = 0; i < plan.levels.size(); ++i) {
    const LevelSpec& level = plan.levels[i];
    for (const LoopTurn& turn : level.turns) {
      if (turn.channel != channel) continue;
      return branch != 0 ? absl::StrCat("makes the trip at level ", i)
                         : absl::StrCat("leaves the loop at level ", i,
                                        ", which ends before level ", turn.end);
    }
    if (level.channel != channel) continue;
    return branch == level.skip_index
               ? absl::StrCat("skips level ", i)
               : absl::StrCat("takes branch ", branch, " of level ", i);
  }
  return absl::StrCat("says ", branch, " on channel ", channel);
}

std::string DescribeOps(const std::vector<int>& numbers) {
  if (numbers.empty()) return "no op";
  return absl::StrCat(numbers.size() == 1 ? "op " : "ops ",
                      absl::StrJoin(numbers, ", "));
}

}  // namespace terra
