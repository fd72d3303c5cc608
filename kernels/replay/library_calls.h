// Library calls: known ones are replayed, others are followed and learned
// (docs/design/0009).
#ifndef TERRA_KERNELS_REPLAY_LIBRARY_CALLS_H_
#define TERRA_KERNELS_REPLAY_LIBRARY_CALLS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "kernels/plan/call_record.h"
#include "kernels/plan/plan.h"
#include "kernels/python/py_ref.h"
#include "kernels/replay/library_call.h"
#include "kernels/replay/library_key.h"
#include "kernels/replay/parts.h"
#include "kernels/session/session.h"

namespace terra {

// Invariant: a call is replayed only if its key is known and everything that
// its record binds has been verified in this step; then all of it happens
// without any Python in between.
class LibraryCalls : private ReplayParts {
 public:
  explicit LibraryCalls(Session* session) : ReplayParts(session) {}

  // Runs a call of a library function, or does without its Python. New
  // reference, or null with an exception set.
  PyObject* OnCall(const LibraryCall& call);

 private:
  // A call that is being followed so as to be replayed the next time.
  struct Learning {
    int begin;
    int at;
    int epoch;
    size_t num_made;
    size_t num_bindings;
    int num_names;
    int64_t num_obstacles;
    bool differentiates;
    CallLearning call;
  };
  std::string WhyNotNow(const LibraryCall& call) const;
  const char* KeyOf(const LibraryCall& call, LibraryKey* key) const;
  // Whether it may be replayed this time. May set an exception.
  bool Fits(const CallRecord& record);
  PyObject* Replay(const CallRecord& record);

  // library_learning.cc; strings are empty, or say why it cannot be replayed.
  PyObject* RunAndLearn(const LibraryCall& call, const LibraryKey& key);
  std::shared_ptr<CallRecord> Learn(const Learning& learning, PyObject* result);
  std::string LearnPath(const Learning& learning, CallRecord* record);
  std::string LearnBindings(const Learning& learning, CallRecord* record);
  std::string LearnResult(PyObject* value, const Learning& learning,
                          CallRecord* record, ResultPattern* pattern);
  std::string LearnTensor(PyObject* tensor, const Learning& learning,
                          CallRecord* record, ResultPattern* pattern);
  std::string LearnKept(const Learning& learning,
                        const CallRecord& record) const;
};

}  // namespace terra

#endif  // TERRA_KERNELS_REPLAY_LIBRARY_CALLS_H_
