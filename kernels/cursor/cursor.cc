#include "kernels/cursor/cursor.h"

#include <algorithm>

#include "absl/algorithm/container.h"
#include "kernels/plan/describe.h"
#include "kernels/python/controller.h"

namespace terra {

Cursor::Cursor(const StepContext& context, History* history)
    : context_(context), history_(history) {
  if (context.plan() == nullptr) return;
  latest_.assign(plan().num_webs, {-1, -1});
  path_.reserve(plan().num_ops_before);
}

bool Cursor::IsLegal(int number) const {
  const PlanNode& node = plan().nodes[number];
  int level = -1;
  if (at_ >= 0) {
    const PlanNode& last = plan().nodes[at_];
    if (last.next >= 0) return last.next == number;
    level = last.level;
  }
  if (!node.is_head || node.level <= level) return false;
  return CanSkip(level, node.level);
}

bool Cursor::CanSkip(int from, int to) const {
  for (int between = from + 1; between < to; ++between) {
    const LevelSpec& level = plan().levels[between];
    if (level.skip_index >= 0) continue;
    const bool leaves_loop = from < level.trip_begin && to >= level.loop_end;
    if (level.loop_end < 0 || !leaves_loop) return false;
  }
  return true;
}

bool Cursor::IsAtFork() const {
  if (at_ < 0) return plan().starts_with_fork || plan().first_nodes.size() != 1;
  const PlanNode& last = plan().nodes[at_];
  return last.next < 0 && (last.is_fork || last.successors.size() != 1);
}

std::vector<Cursor::Decision> Cursor::Decisions(int from, int to) const {
  const PlanNode& node = plan().nodes[to];
  auto decisions =
      DecisionsBefore(from < 0 ? -1 : plan().nodes[from].level, node.level);
  const bool is_new_level = from < 0 || plan().nodes[from].level < node.level;
  const int channel = plan().levels[node.level].channel;
  if (is_new_level && channel >= 0)
    decisions.emplace_back(channel, node.branch);
  return decisions;
}

std::vector<Cursor::Decision> Cursor::DecisionsBefore(int from, int to) const {
  std::vector<Decision> decisions;
  const int num_levels = static_cast<int>(plan().levels.size());
  for (int between = from + 1; between <= to && between < num_levels;) {
    const LevelSpec& level = plan().levels[between];
    int next = between + 1;
    bool leaves_loop = false;
    for (const LoopTurn& turn : level.turns) {
      leaves_loop = to >= turn.end;
      if (turn.channel >= 0) {
        decisions.emplace_back(turn.channel, leaves_loop ? 0 : 1);
      }
      if (leaves_loop) {
        next = turn.end;
        break;
      }
    }
    if (!leaves_loop && between < to && level.channel >= 0) {
      decisions.emplace_back(level.channel, level.skip_index);
    }
    between = next;
  }
  return decisions;
}

void Cursor::Send(const std::vector<Decision>& decisions) const {
  for (const auto& [channel, branch] : decisions) {
    context_.SendDecision(channel, branch);
    if (context_.lamp().IsOn(Light::kCursor)) {
      context_.lamp().Say(Light::kCursor,
                          DescribeDecision(plan(), channel, branch));
    }
  }
}

void Cursor::Tell(int number) {
  if (at_ >= 0 && plan().nodes[at_].next == number) return;  // one block
  Send(Decisions(at_, number));
}

bool Cursor::SkipToEnd() {
  if (bound_for_ >= 0) return false;
  if (at_ >= 0 && plan().nodes[at_].next >= 0) return false;
  const int level = at_ < 0 ? -1 : plan().nodes[at_].level;
  const int end = static_cast<int>(plan().levels.size());
  if (!CanSkip(level, end)) return false;
  Send(DecisionsBefore(level, end));
  return true;
}

int Cursor::EpochsLeft() const {
  return plan().levels.empty() ? 0 : plan().levels.back().epoch - epoch_;
}

bool Cursor::BeginsEpoch(const PlanNode& node) const {
  const int before = node.level == 0 ? 0 : plan().levels[node.level - 1].epoch;
  return node.is_head && plan().levels[node.level].epoch > before;
}

bool Cursor::CloseEpochs(int epoch) {
  while (epoch_ < epoch && context_.is_co_executing()) {
    if (!ResumePending()) return false;
    if (!context_.is_co_executing()) return true;
    if (!CallController(context_.controller(), "on_epoch_close", "(i)",
                        epoch_)) {
      return false;
    }
    if (!context_.is_co_executing()) return true;
    ++epoch_;
    epoch_is_pending_ = true;
  }
  return true;
}

bool Cursor::ResumePending() {
  if (!epoch_is_pending_) return true;
  if (!CallController(context_.controller(), "on_epoch_resume", "(i)",
                      epoch_)) {
    return false;
  }
  epoch_is_pending_ = false;
  return true;
}

void Cursor::Jump(const CallRecord& record) {
  Send(record.decisions);
  for (const auto& [web, node, output] : record.latest) {
    latest_[web] = {node, output};
  }
  if (record.path.empty()) return;
  path_.insert(path_.end(), record.path.begin(), record.path.end());
  at_ = record.path.back();
}

}  // namespace terra
