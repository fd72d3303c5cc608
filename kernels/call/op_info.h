// What the interceptor needs of an OpDef, prepared once per op type.
#ifndef TERRA_KERNELS_CALL_OP_INFO_H_
#define TERRA_KERNELS_CALL_OP_INFO_H_

#include <string>
#include <vector>

#include "kernels/python/py_ref.h"
#include "tensorflow/core/framework/op_def.pb.h"
#include "tensorflow/core/framework/types.pb.h"

namespace terra {

struct OpInfo {
  enum class ArgKind { kSingle, kRepeated, kHeterogeneous };

  struct Arg {
    ArgKind kind;
    tensorflow::DataType fixed_type;  // DT_INVALID when given by an attribute
    int type_attr;                    // index into type_attrs, or -1
    std::string number_attr;          // kRepeated
    std::string list_attr;            // kHeterogeneous
  };
  struct TypeAttr {
    std::string name;
    tensorflow::DataType default_type;  // DT_INVALID when there is none
  };

  std::string name;
  PyRef py_name;
  const tensorflow::OpDef* def;
  std::vector<Arg> args;
  std::vector<TypeAttr> type_attrs;
  bool returns_none;         // no output arguments
  bool returns_one;          // exactly one output argument, not a list
  bool nests_outputs;        // several output arguments, some of them lists
  bool takes_resource;       // an input argument of type resource
  bool only_reads_resource;  // ... which it never writes
  bool is_seeded;            // has attributes seed and seed2

  // The op type named by a Python string (usually interned, so found by
  // address), or null when no such op is registered (a function's name, say).
  static const OpInfo* Of(PyObject* py_name);
  static const OpInfo* Of(const std::string& name);
};

}  // namespace terra

#endif  // TERRA_KERNELS_CALL_OP_INFO_H_
