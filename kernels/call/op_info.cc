#include "kernels/call/op_info.h"

#include <algorithm>
#include <memory>
#include <set>
#include <unordered_map>

#include "absl/container/flat_hash_map.h"
#include "tensorflow/core/framework/op.h"

namespace terra {
namespace {

using tensorflow::DT_INVALID;
using tensorflow::DT_RESOURCE;
using tensorflow::OpDef;

bool OnlyReads(const std::string& name) {
  static const auto* names = new std::set<std::string>{
      "ReadVariableOp",   "ResourceGather",     "ResourceGatherNd",
      "VariableShape",    "VarIsInitializedOp", "_ReadVariablesOp",
      "IteratorGetNext",  "OptionalGetValue",   "LookupTableFindV2",
      "LookupTableSizeV2"};
  return names->count(name) > 0;
}

const OpDef::AttrDef* FindAttr(const OpDef& def, const std::string& name) {
  for (const auto& attr : def.attr()) {
    if (attr.name() == name) return &attr;
  }
  return nullptr;
}

int TypeAttrIndex(OpInfo* info, const std::string& name) {
  for (size_t i = 0; i < info->type_attrs.size(); ++i) {
    if (info->type_attrs[i].name == name) return static_cast<int>(i);
  }
  const OpDef::AttrDef* attr = FindAttr(*info->def, name);
  const bool has_default = attr != nullptr && attr->has_default_value();
  info->type_attrs.push_back(
      {name, has_default ? attr->default_value().type() : DT_INVALID});
  return static_cast<int>(info->type_attrs.size()) - 1;
}

OpInfo::Arg MakeArg(OpInfo* info, const OpDef::ArgDef& arg) {
  OpInfo::Arg result;
  result.kind = !arg.number_attr().empty() ? OpInfo::ArgKind::kRepeated
                : !arg.type_list_attr().empty()
                    ? OpInfo::ArgKind::kHeterogeneous
                    : OpInfo::ArgKind::kSingle;
  result.fixed_type = arg.type();
  result.type_attr =
      arg.type_attr().empty() ? -1 : TypeAttrIndex(info, arg.type_attr());
  result.number_attr = arg.number_attr();
  result.list_attr = arg.type_list_attr();
  return result;
}

const OpInfo* Make(const std::string& name) {
  const OpDef* def = nullptr;
  if (!tensorflow::OpRegistry::Global()->LookUpOpDef(name, &def).ok()) {
    return nullptr;
  }
  auto* info = new OpInfo;  // op types live as long as the process
  info->name = name;
  info->py_name = PyRef::Steal(PyUnicode_InternFromString(name.c_str()));
  info->def = def;
  info->takes_resource = false;
  for (const auto& arg : def->input_arg()) {
    info->args.push_back(MakeArg(info, arg));
    if (arg.type() == DT_RESOURCE) info->takes_resource = true;
  }
  info->only_reads_resource = OnlyReads(name);
  info->returns_none = def->output_arg_size() == 0;
  info->returns_one = def->output_arg_size() == 1 &&
                      def->output_arg(0).number_attr().empty() &&
                      def->output_arg(0).type_list_attr().empty();
  info->nests_outputs = false;
  for (const auto& arg : def->output_arg()) {
    const bool is_list =
        !arg.number_attr().empty() || !arg.type_list_attr().empty();
    if (is_list && def->output_arg_size() > 1) info->nests_outputs = true;
  }
  info->is_seeded =
      FindAttr(*def, "seed") != nullptr && FindAttr(*def, "seed2") != nullptr;
  return info;
}

}  // namespace

const OpInfo* OpInfo::Of(const std::string& name) {
  static auto* by_name = new std::unordered_map<std::string, const OpInfo*>;
  auto it = by_name->find(name);
  if (it != by_name->end()) return it->second;
  const OpInfo* info = Make(name);
  // A name without an op may get one later (tf.load_op_library).
  if (info != nullptr) (*by_name)[name] = info;
  return info;
}

const OpInfo* OpInfo::Of(PyObject* py_name) {
  static auto* by_address = new absl::flat_hash_map<PyObject*, const OpInfo*>;
  auto it = by_address->find(py_name);
  if (it != by_address->end()) return it->second;
  std::string name;
  if (PyUnicode_Check(py_name)) {
    const char* text = PyUnicode_AsUTF8(py_name);
    if (text == nullptr) {
      PyErr_Clear();
      return nullptr;
    }
    name = text;
  } else if (PyBytes_Check(py_name)) {
    name = PyBytes_AS_STRING(py_name);
  } else {
    return nullptr;
  }
  const OpInfo* info = Of(name);
  if (info != nullptr && PyUnicode_CHECK_INTERNED(py_name)) {
    Py_INCREF(py_name);  // keeps the address its own
    (*by_address)[py_name] = info;
  }
  return info;
}

}  // namespace terra
