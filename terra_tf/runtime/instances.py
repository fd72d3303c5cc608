"""Which entries serve a call: those of the objects that it is given.

A decorated method has an object, and `train_step(model, optimizer, x)` has two. What a step of one
model does is of no use to another's: other variables, other layers whose calls are replayed. So
each set of objects has entries of its own, as `tf.function` has a graph for each instance:

    step(one, x); step(other, x)      each is traced, and co-executed, for itself
    step(Batch(), x)                  objects that are new in each call count for nothing

Objects that count are models, layers, optimizers, modules (everything that TensorFlow tracks, but
for variables, datasets and the like) and the objects of a decorated method. They are held weakly:
once one is dead, what was learned for it goes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Iterable
from typing import Any

from terra_tf._tf_internals import CompositeTensor, EagerTensor, TensorLike, Trackable
from terra_tf.runtime.entries import Entries

_MAX_LIVE = 100  # sets of objects that are alive; calls with others share entries
_MAX_SINGLE_CALLS = 3  # so many sets died after one call each: objects are new in each call
_COUNTS_FOR_NOTHING = (EagerTensor, int, float, str, type(None))
_NO_OBJECT = (TensorLike, CompositeTensor)  # variables, of Keras too; datasets and iterators
_SEQUENCES = (tuple, list)


class _Instance:
    """One set of objects.

    Attributes:
      entries: Theirs.
      num_calls: How many there were.
      is_dead: One of them is.
    """

    __slots__ = ("__weakref__", "_references", "entries", "is_dead", "num_calls")

    def __init__(self, entries: Entries, objects: Iterable[Any]) -> None:
        self.entries, self.num_calls, self.is_dead = entries, 0, False
        this = weakref.ref(self)

        def on_death(_: Any) -> None:
            instance = this()
            if instance is not None:
                instance.is_dead = True

        self._references = [weakref.ref(item, on_death) for item in objects]


class Instances:
    """The entries of one function, for each set of objects. Guarded by the co-execution lock.

    Args:
      make_entries: Makes those of one set.
      method_types: Whose method the function is: their objects count.
    """

    def __init__(self, make_entries: Callable[[], Entries], method_types: Container[type]) -> None:
        self._make_entries = make_entries
        self._method_types = method_types
        self._shared = make_entries()  # of calls without objects, or whose objects do not count
        self._of: dict[tuple[int, ...], _Instance] = {}
        self._num_single_calls = 0

    def find(self, args: tuple, kwargs: dict[str, Any]) -> Entries:
        """Returns the entries for a call with these arguments."""
        if self._num_single_calls >= _MAX_SINGLE_CALLS:
            return self._shared
        objects: list[Any] = []
        if args and type(args[0]) in self._method_types:
            objects.append(args[0])
        for item in args:
            _collect(item, objects, True)
        for item in kwargs.values():
            _collect(item, objects, True)
        if not objects:
            return self._shared
        instance = self._of.get(tuple(map(id, objects)))
        if instance is None or instance.is_dead:
            instance = self._add(objects)
            if instance is None:
                return self._shared
        instance.num_calls += 1
        return instance.entries

    def _add(self, objects: list[Any]) -> _Instance | None:
        for key, instance in list(self._of.items()):
            if instance.is_dead:
                del self._of[key]
                self._num_single_calls += instance.num_calls == 1
        if self._num_single_calls >= _MAX_SINGLE_CALLS:
            self._of.clear()
            return None
        if len(self._of) >= _MAX_LIVE:
            return None
        try:
            instance = _Instance(self._make_entries(), objects)
        except TypeError:  # one of them knows no weak references
            return None
        self._of[tuple(map(id, objects))] = instance
        return instance


def _collect(item: Any, objects: list[Any], is_outermost: bool) -> None:
    if isinstance(item, _COUNTS_FOR_NOTHING):
        return
    if isinstance(item, _SEQUENCES):
        if is_outermost:
            for part in item:
                _collect(part, objects, False)
    elif isinstance(item, dict):
        if is_outermost:
            for part in item.values():
                _collect(part, objects, False)
    elif isinstance(item, Trackable) and not isinstance(item, _NO_OBJECT):
        objects.append(item)
