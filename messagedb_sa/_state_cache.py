"""The states of entities that this process used last, for loads that read only what is new."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Hashable
from copy import deepcopy
from datetime import datetime
from threading import Lock
from typing import Any, Generic

from typing_extensions import NamedTuple, TypeVar

from messagedb_sa._forks import PerProcess

S = TypeVar("S")


class Known(NamedTuple, Generic[S]):
    """A state with the version that it has, and what tells whether the stream is still the one that it was made of.

    ``last_id`` and ``last_time`` are those of the message at that version; None if they are not known. The id alone is
    not enough: if a database is restored to an earlier state, a command may come again, and its messages get the same
    ids. ``snapshot_version`` is the version of the last snapshot, -1 if there is none.
    """

    state: S
    version: int
    last_id: str | None
    last_time: datetime | None
    snapshot_version: int


class _Kept(NamedTuple):
    """A state that nobody else has: pickled, if its copies are made by that."""

    known: Known[Any]
    is_pickled: bool


class StateCache:
    """Keeps the states that were used last. It has its own copies, so nobody else can change them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._of_process = PerProcess(_States)

    def get(self, key: Hashable) -> Known[Any] | None:
        states = self._of_process.own
        with states.lock:
            kept = states.by_key.get(key)
            if kept is None:
                return None
            states.by_key.move_to_end(key)
        known, is_pickled = kept
        own = pickle.loads(known.state) if is_pickled else deepcopy(known.state)
        return Known(own, *known[1:])

    def put(self, key: Hashable, known: Known[Any]) -> None:
        states, kept = self._of_process.own, _kept(known)
        with states.lock:
            states.by_key[key] = kept
            states.by_key.move_to_end(key)
            if len(states.by_key) > self._size:
                states.by_key.popitem(last=False)


def _kept(known: Known[Any]) -> _Kept:
    # Both ways of copying ask the objects in the same way how they are copied. Pickling is several times as fast. It
    # refuses some objects, such as those of local classes, and does not know __deepcopy__.
    if not hasattr(known.state, "__deepcopy__"):
        try:
            return _Kept(known._replace(state=pickle.dumps(known.state, pickle.HIGHEST_PROTOCOL)), is_pickled=True)
        except Exception:  # noqa: BLE001 - of the application's classes
            pass
    return _Kept(known._replace(state=deepcopy(known.state)), is_pickled=False)


class _States:
    def __init__(self) -> None:
        self.lock = Lock()
        self.by_key: OrderedDict[Hashable, _Kept] = OrderedDict()
