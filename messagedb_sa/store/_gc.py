"""Pause Python's cyclic garbage collector while many objects without cycles are made."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from messagedb_sa._forks import in_child

# For fewer objects, the pause saves less time than it costs.
_FEWEST_OBJECTS = 100


@contextmanager
def uncollected(number_of_objects: int) -> Iterator[None]:
    """No garbage collection during the block, if it makes at least 100 objects.

    The collector runs after every few hundred new dicts and tuples, and sometimes examines all objects of the process.
    When a page of messages is read, none of them is garbage, but the collector took over a third of the read's time.
    The block must only compute, not wait, since the pause applies to the whole process.
    """
    if number_of_objects < _FEWEST_OBJECTS or not gc.isenabled():
        yield
        return
    _pause.is_on = True
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        _pause.is_on = False


class _Pause:
    is_on = False

    def end(self) -> None:
        if self.is_on:
            gc.enable()


_pause = _Pause()
# If another thread paused it at the moment of a fork, the child does not have the thread that ends the pause.
in_child(_pause, _Pause.end)
