#include "kernels/interceptor/tf_python.h"

#include <vector>

#include "kernels/interceptor/py_ref.h"

namespace terra {

bool FindTensorIds(PyObject* tensors) {
  PyRef items = PyRef::Steal(PySequence_Tuple(tensors));
  if (!items) return false;
  std::vector<ptrdiff_t> found;
  const ptrdiff_t size = EagerTensorType->tp_basicsize;
  for (ptrdiff_t offset = sizeof(PyObject);
       offset + static_cast<ptrdiff_t>(sizeof(int64_t)) <= size;
       offset += alignof(int64_t)) {
    bool fits = true;
    Runtime().tensor_id_offset = offset;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(items.get()); ++i) {
      PyObject* tensor = PyTuple_GET_ITEM(items.get(), i);
      PyRef id = PyRef::Steal(PyObject_GetAttrString(tensor, "_id"));
      if (!id) return false;
      fits = fits && IdOf(tensor) == PyLong_AsLongLong(id.get());
    }
    if (fits) found.push_back(offset);
  }
  if (found.size() != 1) return false;
  Runtime().tensor_id_offset = found[0];
  return true;
}

}  // namespace terra
