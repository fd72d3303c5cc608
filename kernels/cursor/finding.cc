// Which node is this call?
#include <algorithm>

#include "absl/algorithm/container.h"
#include "kernels/call/call.h"
#include "kernels/cursor/matcher.h"
#include "kernels/cursor/stack.h"
#include "kernels/plan/describe.h"
#include "kernels/plan/hash.h"
#include "kernels/plan/plan.h"
#include "kernels/plan/reason.h"
#include "kernels/plan/shapes.h"
#include "kernels/python/py_ref.h"
#include "kernels/python/tf_python.h"

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

const Place* Matcher::PlaceHere() {
  PyRef marker = PyRef::Steal(
      PyObject_CallMethod(context_.controller(), "current_marker", nullptr));
  if (!marker) return nullptr;
  const Py_hash_t marker_hash = PyObject_Hash(marker.get());
  if (marker_hash == -1 && PyErr_Occurred()) return nullptr;
  const uint64_t hash = MixHash(HashOfStack(cursor_.stop_frame()),
                                static_cast<uint64_t>(marker_hash));
  auto& known = plan().forks[cursor_.at() + 1];
  auto it = known.find(hash);
  if (it != known.end()) return &it->second;
  PyRef found = PyRef::Steal(
      PyObject_CallMethod(context_.controller(), "on_fork", nullptr));
  if (!found) return nullptr;
  Place place;
  if (!Numbers(PyTuple_GET_ITEM(found.get(), 0), &place.here) ||
      !Numbers(PyTuple_GET_ITEM(found.get(), 1), &place.other_trips)) {
    return nullptr;
  }
  if (known.size() >= kMaxForkEntries) known.clear();
  return &(known[hash] = std::move(place));
}

bool Matcher::TryNodes(const std::vector<int>& candidates, const Call& call,
                       Match* match) {
  for (int number : candidates) {
    if (!cursor_.IsLegal(number)) continue;
    const Reason problem = Verify(call, &plan().nodes[number], &match->detail);
    if (!context_.is_co_executing()) return true;
    if (problem == Reason::kNone) {
      match->node = number;
      return true;
    }
    match->reason = problem;
    refused_node_ = number;
    if (context_.lamp().IsOn(Light::kCursor)) {
      context_.lamp().Say(Light::kCursor, Describe(call), " is not ",
                          DescribeNode(plan(), number), ": ", NameOf(problem),
                          "; ", match->detail);
    }
  }
  return false;
}

void Matcher::PreferFitting(const Call& call, std::vector<int>* candidates) {
  const auto is_unsure = [this](int number) {
    return plan().nodes[number].has_siblings;
  };
  if (candidates->size() < 2 || absl::c_none_of(*candidates, is_unsure)) return;
  const std::vector<KnownInput> inputs = KnownInputs(call);
  if (!context_.is_co_executing()) return;
  const auto inputs_fit = [&](int number) {
    if (!is_unsure(number)) return true;
    const std::vector<InputSpec>& specs = plan().nodes[number].input_specs;
    bool fit = specs.size() == inputs.size();
    for (size_t i = 0; fit && i < specs.size(); ++i) {
      fit = specs[i].dtype == HandleOf(call.inputs[i].get())->DataType() &&
            specs[i].shape.IsCompatibleWith(inputs[i].shape);
    }
    return fit;
  };
  const auto results_fit = [&](int number) {
    return !is_unsure(number) || ResultsFit(&plan().nodes[number], call);
  };
  std::stable_partition(candidates->begin(), candidates->end(), inputs_fit);
  std::stable_partition(candidates->begin(), candidates->end(), results_fit);
}

bool Matcher::FindNode(const Call& call, Match* match) {
  match->reason = Reason::kNewPath;
  if (cursor_.is_bound()) {
    TryNodes({cursor_.bound_for()}, call, match);
    return true;
  }
  static const std::vector<int> none;
  const std::vector<int>* following = &none;
  bool is_fork = plan().starts_with_fork;
  std::vector<int> next;
  const int at = cursor_.at();
  if (at < 0) {
    following = &plan().first_nodes;
  } else {
    const PlanNode& last = plan().nodes[at];
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
      (!next.empty() || !plan().nodes[following->front()].has_siblings);
  if (is_sure && TryNodes(*following, call, match)) return true;
  const Place* known = PlaceHere();
  if (known == nullptr) return false;
  if (!context_.is_co_executing()) return true;
  Place place = *known;  // what is tried may run Python
  if (context_.lamp().IsOn(Light::kCursor)) {
    context_.lamp().Say(Light::kCursor, Describe(call), " is at the place of ",
                        DescribeOps(place.here),
                        "; in other trips: ", DescribeOps(place.other_trips));
  }
  // As in merging, what has followed the op before comes first.
  std::stable_partition(place.here.begin(), place.here.end(),
                        [following](int candidate) {
                          return absl::c_linear_search(*following, candidate);
                        });
  PreferFitting(call, &place.here);
  if (!context_.is_co_executing()) return true;
  if (TryNodes(place.here, call, match) ||
      TryNodes(place.other_trips, call, match) ||
      (has_one && !is_sure && TryNodes(*following, call, match))) {
    return true;
  }
  if (match->detail.empty()) {
    match->detail =
        Describe(call) + " at a place where no traced step had come";
  }
  return true;
}

}  // namespace terra
