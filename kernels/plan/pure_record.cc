#include "kernels/plan/pure_record.h"

#include "kernels/python/tf_python.h"

namespace terra {
namespace {

bool IsSame(const TensorRef& a, const TensorRef& b) {
  if (a.kind != b.kind || a.number != b.number) return false;
  if (a.kind != TensorRef::Kind::kObject) return true;
  return a.get() != nullptr && b.get() != nullptr &&
         HandleOf(a.get()) == HandleOf(b.get());
}

bool IsSame(const PureStep& a, const PureStep& b) {
  if (a.kind != b.kind || a.operand != b.operand || a.node != b.node ||
      a.variable.get() != b.variable.get() ||
      a.inputs.size() != b.inputs.size() || !a.gradient != !b.gradient ||
      (a.gradient && a.gradient->hash() != b.gradient->hash())) {
    return false;
  }
  for (size_t i = 0; i < a.inputs.size(); ++i) {
    if (!IsSame(a.inputs[i], b.inputs[i])) return false;
  }
  return true;
}

bool AreSame(const std::vector<ResultPattern>& a,
             const std::vector<ResultPattern>& b);

bool IsSame(const ResultPattern& a, const ResultPattern& b) {
  using Kind = ResultPattern::Kind;
  if (a.kind != b.kind || a.number != b.number || a.is_zeros != b.is_zeros ||
      a.attribute != b.attribute ||
      ((a.kind == Kind::kObject || a.kind == Kind::kNamedTuple) &&
       a.object.get() != b.object.get()) ||
      (a.kind == Kind::kDict &&
       PyObject_RichCompareBool(a.object.get(), b.object.get(), Py_EQ) != 1)) {
    return false;
  }
  return AreSame(a.items, b.items) && AreSame(a.attributes, b.attributes);
}

bool AreSame(const std::vector<ResultPattern>& a,
             const std::vector<ResultPattern>& b) {
  bool are_same = a.size() == b.size();
  for (size_t i = 0; are_same && i < a.size(); ++i) {
    are_same = IsSame(a[i], b[i]);
  }
  return are_same;
}

}  // namespace

const char* DifferenceOf(const PureRecord& a, const PureRecord& b) {
  if (!b.refusal.empty()) return b.refusal.c_str();
  bool is_same = a.steps.size() == b.steps.size();
  for (size_t i = 0; is_same && i < a.steps.size(); ++i) {
    is_same = IsSame(a.steps[i], b.steps[i]);
  }
  if (!is_same) return "it ran other ops, or on other tensors";
  if (!AreSame(a.changes, b.changes)) return "it set other attributes";
  return IsSame(a.result, b.result) ? nullptr : "it returned something else";
}

}  // namespace terra
