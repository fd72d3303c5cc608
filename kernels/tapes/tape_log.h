// What a step has not told its gradient tapes yet (docs/design/0009).
//
// A gradient that is replayed does not look at the tape, and then the tape
// goes: nothing needs to have been recorded. So what TensorFlow's tapes would
// be told of ops is kept here, in order, with the tapes that were active, and
// put on them when somebody is about to look.
//
//   empty --Add--> deferred --Flush--> empty   tapes know everything
//                  deferred --Flush--> empty   all its tapes are gone: dropped
//
// While something is deferred, nothing else may be put on a tape of the thread.
// All of it happens with the GIL held.
#ifndef TERRA_KERNELS_TAPES_TAPE_LOG_H_
#define TERRA_KERNELS_TAPES_TAPE_LOG_H_

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "absl/types/span.h"
#include "kernels/plan/library_gradient.h"
#include "kernels/python/py_ref.h"

namespace terra {

// The tapes that record on the calling thread, as far as they were put there
// since hooks were installed. Borrowed: TensorFlow holds those that are active.
class ActiveTapes {
 public:
  static ActiveTapes& OfThread();
  void Enter(PyObject* tape);
  void Leave(PyObject* tape);
  // None is active.
  void Clear();
  const std::vector<PyObject*>& tapes() const { return tapes_; }
  // Another one after each change.
  int64_t version() const { return version_; }

 private:
  std::vector<PyObject*> tapes_;
  int64_t version_ = 0;
};

// Whether a gradient tape or forward accumulator listens on this thread.
bool TapeIsActive();

class TapeLog {
 public:
  bool is_empty() const { return segments_.empty(); }
  // Says that an op has run, to the tapes that are active now.
  void Add(PyObject* name, absl::Span<const PyRef> inputs, PyObject* attrs,
           absl::Span<const PyRef> outputs);
  // The same of one with a gradient function of the library's.
  void Add(const std::shared_ptr<const LibraryGradient>& gradient,
           absl::Span<const PyRef> tensors);
  // Puts everything on its tapes, but what only tapes would get that nobody
  // holds any more. False with an exception set.
  bool Flush();
  // Forgets what only tapes would get that nobody holds any more.
  void Prune();
  void Clear();
  // Calls `visit` with each tensor that is kept, the last one first, until it
  // returns false.
  template <typename Visit>
  void ForEachTensor(Visit visit) const {
    for (auto segment = segments_.rbegin(); segment != segments_.rend();
         ++segment) {
      const std::vector<PyRef>& tensors = segment->tensors;
      for (auto it = tensors.rbegin(); it != tensors.rend(); ++it) {
        if (!visit(it->get())) return;
      }
    }
  }
  // Whether something is put off that a tape is to be told.
  bool HasFor(const PyObject* tape) const;
  // Says it to the tapes at once. False with an exception set.
  bool Record(PyObject* name, absl::Span<const PyRef> inputs, PyObject* attrs,
              absl::Span<const PyRef> outputs);
  // A variable, known by its handle's id, is about to be watched. A tape does
  // not connect what happened before: whether that is deferred.
  bool NoteAccess(int64_t handle_id);
  // How many ops have been put on tapes, and how many never were.
  int64_t num_recorded() const { return num_recorded_; }
  int64_t num_dropped() const { return num_dropped_; }

 private:
  struct Entry {
    std::shared_ptr<const LibraryGradient> gradient;  // or null:
    PyRef name;
    PyRef attrs;
    size_t num_inputs;
    size_t num_outputs;
  };
  // What was added while the same tapes were active.
  struct Segment {
    int64_t version;  // of the active tapes
    std::vector<PyRef> tapes;
    std::vector<Entry> entries;
    std::vector<PyRef> tensors;  // inputs, then outputs, of each entry in turn
  };

  // Where what the active tapes are told is added.
  Segment& OpenSegment();
  void AddInput(Segment& segment, const PyRef& tensor);
  bool RecordSegment(const Segment& segment);
  bool RecordAll(const std::vector<Segment>& segments);
  std::unordered_map<PyObject*, int64_t> CountHeld() const;
  void FollowActive(int64_t version);

  std::vector<Segment> segments_;
  int64_t num_recorded_ = 0;
  int64_t num_dropped_ = 0;
  // Variables' handles that the tapes active as of this version watch.
  int64_t version_ = -1;
  std::unordered_set<int64_t> accessed_;
  // Those that ops in the segments have read without their being watched.
  std::unordered_set<int64_t> unwatched_;
};

}  // namespace terra

#endif  // TERRA_KERNELS_TAPES_TAPE_LOG_H_
