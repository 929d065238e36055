"""Python's cyclic garbage collector, kept from running in the middle of what makes no cycles."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_WORTH_IT = 100


@contextmanager
def uncollected(number_of_objects: int) -> Iterator[None]:
    """No collection within the block, where it makes many objects.

    The collector runs after every few hundred new dicts and tuples, and goes through all of the process's from time to
    time. For a page of messages, none of which is garbage, that took over a third of the time of the read. Only for
    computation: the collector is the whole process's.
    """
    if number_of_objects < _WORTH_IT or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
