// A call of a library function, as its hook hands it over.
#ifndef TERRA_KERNELS_REPLAY_LIBRARY_CALL_H_
#define TERRA_KERNELS_REPLAY_LIBRARY_CALL_H_

#include <vector>

#include "kernels/python/py_ref.h"

namespace terra {

struct LibraryCall {
  const char* name;              // for people
  PyObject* function;            // what runs when it is not replayed
  PyObject* args;                // a tuple
  PyObject* kwargs;              // or null
  std::vector<PyObject*> given;  // all that its ops and its result depend on
  bool differentiates;           // runs gradient functions
  bool takes_objects;            // of which Python can see a change
};

}  // namespace terra

#endif  // TERRA_KERNELS_REPLAY_LIBRARY_CALL_H_
