"""What a forked child process does first: it lets go of what only its parent may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

_actions: WeakKeyDictionary[Any, Callable[[Any], object]] = WeakKeyDictionary()


def in_child(owner: T, action: Callable[[T], object]) -> None:
    """Call ``action(owner)`` in each forked child process, before anything else, as long as ``owner`` exists.

    Of the parent's threads, the child has only the one that forked. The other ones may have held locks, and nobody will
    release these.
    """
    _actions[owner] = action


class PerProcess(Generic[T]):
    """``own`` is an object that ``make`` makes for this process. A forked child calls ``abandon`` with its parent's."""

    def __init__(self, make: Callable[[], T], abandon: Callable[[T], object] = lambda parents: None) -> None:
        self.own = make()
        self._make = make
        self._abandon = abandon
        in_child(self, PerProcess._make_anew)

    def _make_anew(self) -> None:
        parents, self.own = self.own, self._make()
        self._abandon(parents)


def _after_fork() -> None:
    for owner, action in list(_actions.items()):
        action(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
