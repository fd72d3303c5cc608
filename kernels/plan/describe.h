// Parts of a plan in words, for the lamp.
#ifndef TERRA_KERNELS_PLAN_DESCRIBE_H_
#define TERRA_KERNELS_PLAN_DESCRIBE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/plan/plan.h"

namespace terra {

std::string DescribeNode(const Plan& plan, int number);
// What a message of the cursor's tells the graph.
std::string DescribeDecision(const Plan& plan, int channel, int64_t branch);
// "ops 3, 5", or "no op".
std::string DescribeOps(const std::vector<int>& numbers);

}  // namespace terra

#endif  // TERRA_KERNELS_PLAN_DESCRIBE_H_
