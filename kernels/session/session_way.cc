// Session: which way through the TraceGraph Python takes.
#include <algorithm>

#include "absl/algorithm/container.h"
#include "kernels/call/call.h"
#include "kernels/cursor/stack.h"
#include "kernels/plan/hash.h"
#include "kernels/plan/plan.h"
#include "kernels/plan/shapes.h"
#include "kernels/python/controller.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/tf_python.h"
#include "kernels/session/session.h"

namespace terra {
namespace {

constexpr size_t kMaxForkEntries = 4096;  // code made anew each time (exec)

bool Numbers(PyObject* sequence, std::vector<int>* numbers) {
  PyRef list = PyRef::Steal(PySequence_List(sequence));
  if (!list) return false;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list.get()); ++i) {
    numbers->push_back(
        static_cast<int>(PyLong_AsLong(PyList_GET_ITEM(list.get(), i))));
  }
  return true;
}

}  // namespace

const Place* Session::PlaceHere() {
  PyRef marker =
      PyRef::Steal(PyObject_CallMethod(controller_, "current_marker", nullptr));
  if (!marker) return nullptr;
  const Py_hash_t marker_hash = PyObject_Hash(marker.get());
  if (marker_hash == -1 && PyErr_Occurred()) return nullptr;
  const uint64_t hash =
      MixHash(HashOfStack(stop_frame_), static_cast<uint64_t>(marker_hash));
  auto& known = plan_->forks[at_ + 1];
  auto it = known.find(hash);
  if (it != known.end()) return &it->second;
  PyRef found =
      PyRef::Steal(PyObject_CallMethod(controller_, "on_fork", nullptr));
  if (!found) return nullptr;
  Place place;
  if (!Numbers(PyTuple_GET_ITEM(found.get(), 0), &place.here) ||
      !Numbers(PyTuple_GET_ITEM(found.get(), 1), &place.other_trips)) {
    return nullptr;
  }
  if (known.size() >= kMaxForkEntries) known.clear();
  return &(known[hash] = std::move(place));
}

bool Session::IsLegal(int number) const {
  const PlanNode& node = plan_->nodes[number];
  int level = -1;
  if (at_ >= 0) {
    const PlanNode& last = plan_->nodes[at_];
    if (last.next >= 0) return last.next == number;
    level = last.level;
  }
  if (!node.is_head || node.level <= level) return false;
  return CanSkip(level, node.level);
}

bool Session::CanSkip(int from, int to) const {
  for (int between = from + 1; between < to; ++between) {
    const LevelSpec& level = plan_->levels[between];
    if (level.skip_index >= 0) continue;
    const bool leaves_loop = from < level.trip_begin && to >= level.loop_end;
    if (level.loop_end < 0 || !leaves_loop) return false;
  }
  return true;
}

int Session::TryNodes(const std::vector<int>& candidates, const Call& call,
                      const char** reason, std::string* detail) {
  for (int number : candidates) {
    if (!IsLegal(number)) continue;
    const char* problem = Verify(call, &plan_->nodes[number], detail);
    if (mode_ != Mode::kCoExecution) return -1;
    if (problem == nullptr) return number;
    *reason = problem;
    uncertain_write_ = number;
  }
  return -1;
}

void Session::PreferFitting(const Call& call, std::vector<int>* candidates) {
  const auto is_unsure = [this](int number) {
    return plan_->nodes[number].has_siblings;
  };
  if (candidates->size() < 2 || absl::c_none_of(*candidates, is_unsure)) return;
  const std::vector<KnownInput> inputs = KnownInputs(call);
  if (mode_ != Mode::kCoExecution) return;
  const auto inputs_fit = [&](int number) {
    if (!is_unsure(number)) return true;
    const std::vector<InputSpec>& specs = plan_->nodes[number].input_specs;
    bool fit = specs.size() == inputs.size();
    for (size_t i = 0; fit && i < specs.size(); ++i) {
      fit = specs[i].dtype == HandleOf(call.inputs[i].get())->DataType() &&
            specs[i].shape.IsCompatibleWith(inputs[i].shape);
    }
    return fit;
  };
  const auto results_fit = [&](int number) {
    return !is_unsure(number) || ResultsFit(&plan_->nodes[number], call);
  };
  std::stable_partition(candidates->begin(), candidates->end(), inputs_fit);
  std::stable_partition(candidates->begin(), candidates->end(), results_fit);
}

int Session::FindNode(const Call& call, const char** reason,
                      std::string* detail) {
  *reason = "new_path";
  if (bound_for_ >= 0) return TryNodes({bound_for_}, call, reason, detail);
  static const std::vector<int> none;
  const std::vector<int>* following = &none;
  bool is_fork = plan_->starts_with_fork;
  std::vector<int> next;
  if (at_ < 0) {
    following = &plan_->first_nodes;
  } else {
    const PlanNode& last = plan_->nodes[at_];
    is_fork = last.is_fork;
    following = &last.successors;
    if (last.next >= 0) {
      next = {last.next};
      following = &next;
    }
  }
  const bool has_one = !is_fork && following->size() == 1;
  // Of a block nothing but its next node is legal.
  const bool is_sure =
      has_one &&
      (!next.empty() || !plan_->nodes[following->front()].has_siblings);
  if (is_sure) {
    const int number = TryNodes(*following, call, reason, detail);
    if (number >= 0 || mode_ != Mode::kCoExecution) return number;
  }
  const Place* known = PlaceHere();
  if (known == nullptr) return -2;
  if (mode_ != Mode::kCoExecution) return -1;
  Place place = *known;  // what is tried may run Python
  // As in merging, what has followed the op before comes first.
  std::stable_partition(place.here.begin(), place.here.end(),
                        [following](int candidate) {
                          return absl::c_linear_search(*following, candidate);
                        });
  PreferFitting(call, &place.here);
  if (mode_ != Mode::kCoExecution) return -1;
  int number = TryNodes(place.here, call, reason, detail);
  if (number < 0 && mode_ == Mode::kCoExecution) {
    number = TryNodes(place.other_trips, call, reason, detail);
  }
  if (number < 0 && mode_ == Mode::kCoExecution && has_one && !is_sure) {
    number = TryNodes(*following, call, reason, detail);
  }
  if (number < 0 && detail->empty()) {
    *detail = Describe(call) + " at a place where no traced step had come";
  }
  return number;
}

std::vector<std::pair<int, int64_t>> Session::Decisions(int from,
                                                        int to) const {
  const PlanNode& node = plan_->nodes[to];
  auto decisions =
      DecisionsBefore(from < 0 ? -1 : plan_->nodes[from].level, node.level);
  const bool is_new_level = from < 0 || plan_->nodes[from].level < node.level;
  const int channel = plan_->levels[node.level].channel;
  if (is_new_level && channel >= 0)
    decisions.emplace_back(channel, node.branch);
  return decisions;
}

std::vector<std::pair<int, int64_t>> Session::DecisionsBefore(int from,
                                                              int to) const {
  std::vector<std::pair<int, int64_t>> decisions;
  const int num_levels = static_cast<int>(plan_->levels.size());
  for (int between = from + 1; between <= to && between < num_levels;) {
    const LevelSpec& level = plan_->levels[between];
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

void Session::Decide(int number) {
  if (at_ >= 0 && plan_->nodes[at_].next == number) return;  // one block
  for (const auto& [channel, branch] : Decisions(at_, number)) {
    SendDecision(channel, branch);
  }
}

bool Session::SkipToEnd() {
  if (bound_for_ >= 0) return false;
  if (at_ >= 0 && plan_->nodes[at_].next >= 0) return false;
  const int level = at_ < 0 ? -1 : plan_->nodes[at_].level;
  const int end = static_cast<int>(plan_->levels.size());
  if (!CanSkip(level, end)) return false;
  for (const auto& [channel, branch] : DecisionsBefore(level, end)) {
    SendDecision(channel, branch);
  }
  return true;
}

int Session::EpochsLeft() const {
  return plan_->levels.empty() ? 0 : plan_->levels.back().epoch - epoch_;
}

bool Session::BeginsEpoch(const PlanNode& node) const {
  const int before = node.level == 0 ? 0 : plan_->levels[node.level - 1].epoch;
  return node.is_head && plan_->levels[node.level].epoch > before;
}

bool Session::CloseEpochs(int epoch) {
  while (epoch_ < epoch && mode_ == Mode::kCoExecution) {
    if (!ResumePending()) return false;
    if (mode_ != Mode::kCoExecution) return true;
    if (!CallController(controller_, "on_epoch_close", "(i)", epoch_)) {
      return false;
    }
    if (mode_ != Mode::kCoExecution) return true;
    ++epoch_;
    epoch_is_pending_ = true;
  }
  return true;
}

bool Session::ResumePending() {
  if (!epoch_is_pending_) return true;
  if (!CallController(controller_, "on_epoch_resume", "(i)", epoch_)) {
    return false;
  }
  epoch_is_pending_ = false;
  return true;
}

}  // namespace terra
