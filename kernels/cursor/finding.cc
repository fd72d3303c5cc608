// Which node is this call?
#include <algorithm>

#include "absl/algorithm/container.h"
#include "kernels/call/call.h"
#include "kernels/cursor/matcher.h"
#include "kernels/cursor/stack.h"
#include "kernels/plan/hash.h"
#include "kernels/plan/plan.h"
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

int Matcher::TryNodes(const std::vector<int>& candidates, const Call& call,
                      const char** reason, std::string* detail) {
  for (int number : candidates) {
    if (!cursor_.IsLegal(number)) continue;
    const char* problem = Verify(call, &plan().nodes[number], detail);
    if (!context_.is_co_executing()) return -1;
    if (problem == nullptr) return number;
    *reason = problem;
    refused_node_ = number;
  }
  return -1;
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

int Matcher::FindNode(const Call& call, const char** reason,
                      std::string* detail) {
  *reason = "new_path";
  if (cursor_.is_bound())
    return TryNodes({cursor_.bound_for()}, call, reason, detail);
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
  if (is_sure) {
    const int number = TryNodes(*following, call, reason, detail);
    if (number >= 0 || !context_.is_co_executing()) return number;
  }
  const Place* known = PlaceHere();
  if (known == nullptr) return -2;
  if (!context_.is_co_executing()) return -1;
  Place place = *known;  // what is tried may run Python
  // As in merging, what has followed the op before comes first.
  std::stable_partition(place.here.begin(), place.here.end(),
                        [following](int candidate) {
                          return absl::c_linear_search(*following, candidate);
                        });
  PreferFitting(call, &place.here);
  if (!context_.is_co_executing()) return -1;
  int number = TryNodes(place.here, call, reason, detail);
  if (number < 0 && context_.is_co_executing()) {
    number = TryNodes(place.other_trips, call, reason, detail);
  }
  if (number < 0 && context_.is_co_executing() && has_one && !is_sure) {
    number = TryNodes(*following, call, reason, detail);
  }
  if (number < 0 && detail->empty()) {
    *detail = Describe(call) + " at a place where no traced step had come";
  }
  return number;
}

}  // namespace terra
