#include "kernels/tapes/tape_log.h"

#include <algorithm>
#include <utility>

#include "kernels/python/tf_python.h"
#include "kernels/python/thread.h"

namespace terra {
namespace {

PyRef ListOf(absl::Span<const PyRef> items) {
  PyRef list = PyRef::Steal(PyList_New(static_cast<Py_ssize_t>(items.size())));
  for (size_t i = 0; i < items.size(); ++i) {
    PyList_SET_ITEM(list.get(), i, PyRef(items[i]).release());
  }
  return list;
}

PyRef TupleOf(absl::Span<const PyRef> items) {
  PyRef tuple =
      PyRef::Steal(PyTuple_New(static_cast<Py_ssize_t>(items.size())));
  for (size_t i = 0; i < items.size(); ++i) {
    PyTuple_SET_ITEM(tuple.get(), i, PyRef(items[i]).release());
  }
  return tuple;
}

// While alive, this thread's tapes record although somebody has stopped them.
class Restarted {
 public:
  Restarted()
      : was_stopped_(PyRef::Steal(TFE_Py_TapeSetIsStopped()).get() == Py_True) {
    if (was_stopped_) TFE_Py_TapeSetRestartOnThread();
  }
  ~Restarted() {
    if (was_stopped_) TFE_Py_TapeSetStopOnThread();
  }
  Restarted(const Restarted&) = delete;

 private:
  const bool was_stopped_;
};

// While alive, other tapes record on this thread than those that are active.
class Exchanged {
 public:
  explicit Exchanged(const std::vector<PyRef>& tapes) : tapes_(tapes) {
    for (PyObject* tape : ActiveTapes::OfThread().tapes()) {
      active_.push_back(PyRef::Borrow(tape));
    }
    differ_ = active_.size() != tapes_.size();
    for (size_t i = 0; !differ_ && i < tapes_.size(); ++i) {
      differ_ = tapes_[i].get() != active_[i].get();
    }
    if (!differ_) return;
    for (const PyRef& tape : active_) TFE_Py_TapeSetRemove(tape.get());
    for (const PyRef& tape : tapes_) TFE_Py_TapeSetAdd(tape.get());
  }
  ~Exchanged() {
    if (!differ_) return;
    for (const PyRef& tape : tapes_) TFE_Py_TapeSetRemove(tape.get());
    for (const PyRef& tape : active_) TFE_Py_TapeSetAdd(tape.get());
  }
  Exchanged(const Exchanged&) = delete;

 private:
  const std::vector<PyRef>& tapes_;
  std::vector<PyRef> active_;
  bool differ_;
};

}  // namespace

bool TapeIsActive() {
  PyRef empty = PyRef::Steal(TFE_Py_TapeSetIsEmpty());
  return empty.get() != Py_True;
}

ActiveTapes& ActiveTapes::OfThread() {
  static thread_local ActiveTapes tapes;
  return tapes;
}

void ActiveTapes::Enter(PyObject* tape) {
  ++version_;
  if (std::find(tapes_.begin(), tapes_.end(), tape) == tapes_.end()) {
    tapes_.push_back(tape);
  }
}

void ActiveTapes::Leave(PyObject* tape) {
  ++version_;
  tapes_.erase(std::remove(tapes_.begin(), tapes_.end(), tape), tapes_.end());
}

void ActiveTapes::Clear() {
  ++version_;
  tapes_.clear();
}

void TapeLog::FollowActive(int64_t version) {
  if (version == version_) return;
  version_ = version;
  accessed_.clear();
}

TapeLog::Segment& TapeLog::OpenSegment() {
  const ActiveTapes& active = ActiveTapes::OfThread();
  FollowActive(active.version());
  if (segments_.empty() || segments_.back().version != active.version()) {
    Segment segment{active.version(), {}, {}, {}};
    for (PyObject* tape : active.tapes()) {
      segment.tapes.push_back(PyRef::Borrow(tape));
    }
    segments_.push_back(std::move(segment));
  }
  return segments_.back();
}

void TapeLog::AddInput(Segment& segment, const PyRef& tensor) {
  if (HandleOf(tensor.get())->DataType() == tensorflow::DT_RESOURCE &&
      accessed_.count(IdOf(tensor.get())) == 0) {
    unwatched_.insert(IdOf(tensor.get()));
  }
  segment.tensors.push_back(tensor);
}

void TapeLog::Add(PyObject* name, absl::Span<const PyRef> inputs,
                  PyObject* attrs, absl::Span<const PyRef> outputs) {
  Segment& segment = OpenSegment();
  for (const PyRef& input : inputs) AddInput(segment, input);
  segment.tensors.insert(segment.tensors.end(), outputs.begin(), outputs.end());
  segment.entries.push_back({nullptr, PyRef::Borrow(name), PyRef::Borrow(attrs),
                             inputs.size(), outputs.size()});
}

void TapeLog::Add(const std::shared_ptr<const LibraryGradient>& gradient,
                  absl::Span<const PyRef> tensors) {
  Segment& segment = OpenSegment();
  const size_t num_inputs = gradient->num_inputs();
  for (size_t i = 0; i < num_inputs; ++i) AddInput(segment, tensors[i]);
  segment.tensors.insert(segment.tensors.end(), tensors.begin() + num_inputs,
                         tensors.end());
  segment.entries.push_back(
      {gradient, PyRef(), PyRef(), num_inputs, tensors.size() - num_inputs});
}

bool TapeLog::NoteAccess(int64_t handle_id) {
  FollowActive(ActiveTapes::OfThread().version());
  accessed_.insert(handle_id);
  return unwatched_.count(handle_id) > 0;
}

bool TapeLog::HasFor(const PyObject* tape) const {
  for (const Segment& segment : segments_) {
    for (const PyRef& other : segment.tapes) {
      if (other.get() == tape) return true;
    }
  }
  return false;
}

std::unordered_map<PyObject*, int64_t> TapeLog::CountHeld() const {
  std::unordered_map<PyObject*, int64_t> held;
  for (const Segment& segment : segments_) {
    for (const PyRef& tape : segment.tapes) ++held[tape.get()];
  }
  return held;
}

void TapeLog::Prune() {
  if (segments_.empty()) return;
  std::unordered_map<PyObject*, int64_t> held = CountHeld();
  std::vector<Segment> kept, gone;
  for (Segment& segment : segments_) {
    bool is_held = false;
    for (const PyRef& tape : segment.tapes) {
      is_held = is_held || Py_REFCNT(tape.get()) > held[tape.get()];
    }
    if (!is_held) num_dropped_ += static_cast<int64_t>(segment.entries.size());
    (is_held ? kept : gone).push_back(std::move(segment));
  }
  // What goes may run Python, which may add: `gone` ends behind this.
  segments_ = std::move(kept);
  if (segments_.empty()) unwatched_.clear();
}

void TapeLog::Clear() {
  std::vector<Segment> gone = std::exchange(segments_, {});
  unwatched_.clear();
}

bool TapeLog::Record(PyObject* name, absl::Span<const PyRef> inputs,
                     PyObject* attrs, absl::Span<const PyRef> outputs) {
  ++num_recorded_;
  TellingScope telling;
  PyRef given = TupleOf(inputs);
  PyRef results = ListOf(outputs);
  return static_cast<bool>(PyRef::Steal(
      TFE_Py_RecordGradient(name, given.get(), attrs, results.get(), Py_None)));
}

bool TapeLog::RecordSegment(const Segment& segment) {
  auto tensors = absl::MakeConstSpan(segment.tensors);
  for (const Entry& entry : segment.entries) {
    if (entry.gradient != nullptr) {
      ++num_recorded_;
      if (!entry.gradient->Record(tensors.data())) return false;
    } else if (!Record(entry.name.get(), tensors.first(entry.num_inputs),
                       entry.attrs.get(),
                       tensors.subspan(entry.num_inputs, entry.num_outputs))) {
      return false;
    }
    tensors.remove_prefix(entry.num_inputs + entry.num_outputs);
  }
  return true;
}

bool TapeLog::RecordAll(const std::vector<Segment>& segments) {
  Restarted restarted;
  for (const Segment& segment : segments) {
    Exchanged exchanged(segment.tapes);
    if (!RecordSegment(segment)) return false;
  }
  return true;
}

bool TapeLog::Flush() {
  Prune();
  if (segments_.empty()) return true;
  const std::vector<Segment> segments = std::exchange(segments_, {});
  unwatched_.clear();
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  if (!RecordAll(segments)) {
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return false;
  }
  PyErr_Restore(type, value, traceback);
  return true;
}

}  // namespace terra
