// An owning reference to a Python object. Needs the GIL for everything.
#ifndef TERRA_KERNELS_PYTHON_PY_REF_H_
#define TERRA_KERNELS_PYTHON_PY_REF_H_

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <utility>

namespace terra {

class PyRef {
 public:
  PyRef() = default;
  PyRef(PyRef&& other) noexcept : object_(other.release()) {}
  PyRef(const PyRef& other) : object_(other.object_) { Py_XINCREF(object_); }
  PyRef& operator=(PyRef other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~PyRef() { Py_XDECREF(object_); }

  // Takes over a reference that the caller owns.
  static PyRef Steal(PyObject* object) {
    PyRef ref;
    ref.object_ = object;
    return ref;
  }
  // Makes a reference of its own.
  static PyRef Borrow(PyObject* object) {
    Py_XINCREF(object);
    return Steal(object);
  }

  PyObject* get() const { return object_; }
  PyObject* release() { return std::exchange(object_, nullptr); }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  PyObject* object_ = nullptr;
};

// A reference that keeps nothing alive. Needs the GIL for everything.
class WeakRef {
 public:
  // Of what knows no weak references: none, without an exception.
  static WeakRef To(PyObject* object) {
    WeakRef made;
    made.reference_ = PyRef::Steal(PyWeakref_NewRef(object, nullptr));
    if (!made.reference_) PyErr_Clear();
    return made;
  }

  // Borrowed; null once it is dead, or if there never was an object.
  PyObject* get() const {
    if (!reference_ || is_dead()) return nullptr;
    return Py_REFCNT(referent()) > 0 ? referent() : nullptr;
  }
  // Whether there was an object, dead or alive.
  explicit operator bool() const { return static_cast<bool>(reference_); }
  // The object is not looked at, and may be about to die.
  bool is_dead() const { return reference_ && referent() == Py_None; }

 private:
  PyObject* referent() const {
    return reinterpret_cast<PyWeakReference*>(reference_.get())->wr_object;
  }

  PyRef reference_;
};

// Runs a scope without the GIL.
class ReleaseGil {
 public:
  ReleaseGil() : state_(PyEval_SaveThread()) {}
  ~ReleaseGil() { PyEval_RestoreThread(state_); }
  ReleaseGil(const ReleaseGil&) = delete;
  ReleaseGil& operator=(const ReleaseGil&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace terra

#endif  // TERRA_KERNELS_PYTHON_PY_REF_H_
