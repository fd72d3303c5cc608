// What the lamp says of each op that is matched.
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cursor/inputs.h"
#include "kernels/plan/describe.h"
#include "kernels/session/execution.h"

namespace terra {
namespace {

const char* HowItRuns(const PlanNode& node) {
  if (node.kind == NodeKind::kFolded) return ", folded";
  if (node.kind == NodeKind::kImperative) return ", run by Python";
  return node.on_host ? ", run by Python, too" : "";
}

std::string DescribeBinding(const Binding& binding) {
  switch (binding.kind) {
    case Binding::Kind::kFeed:
      return absl::StrCat("; feeds feed ", binding.slot);
    case Binding::Kind::kVariable:
      return absl::StrCat("; binds variable ", binding.slot);
    case Binding::Kind::kVariableFeed:
      return absl::StrCat("; feeds variable ", binding.slot);
    case Binding::Kind::kWrite:
      return absl::StrCat("; writes variable ", binding.slot);
    case Binding::Kind::kJoinMade:
      return absl::StrCat("; join ", binding.slot, " is %", binding.a, ".",
                          binding.b);
    case Binding::Kind::kJoinOutside:
      return absl::StrCat("; join ", binding.slot, " is from outside");
    case Binding::Kind::kConstant:
      break;
  }
  return "";
}

}  // namespace

PyObject* Execution::CoExecuteAndTell(const Call& call) {
  const int position = cursor_.position();
  const size_t num_bound = inputs_.bindings().size();
  PyObject* result = CoExecute(call);
  // Where the step has left its graph, that is said elsewhere.
  if (cursor_.position() > position && context_.is_co_executing()) {
    const PlanNode& node = plan().nodes[cursor_.at()];
    std::string line =
        absl::StrCat(DescribeNode(plan(), cursor_.at()), HowItRuns(node));
    for (size_t i = num_bound; i < inputs_.bindings().size(); ++i) {
      line += DescribeBinding(inputs_.bindings()[i]);
    }
    const bool has_raised =
        !cursor_.raised().empty() && cursor_.raised().back() == position;
    context_.lamp().Say(Light::kCursor, "matched ", line,
                        has_raised ? "; it has raised" : "");
  }
  return context_.Logged(result);
}

}  // namespace terra
