"""Blocking code in a greenlet, as SQLAlchemy's greenlet_spawn runs it, without a new greenlet for each call."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from threading import local
from typing import Any, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet  # type: ignore[import-untyped]
from sqlalchemy.util import greenlet_spawn

from messagedb_sa._drivers.native import SQLALCHEMY_IS_TESTED

T = TypeVar("T")

# In a thread. Each has some 20 kB of memory.
_MOST_IDLE = 64


class _Idle(local):
    def __init__(self) -> None:
        self.greenlets: list[_Reused] = []


_idle = _Idle()
_DONE = object()


async def in_greenlet(function: Callable[..., T], *arguments: Any) -> T:
    """Call the function, which may wait with SQLAlchemy's await_only, as in its greenlet_spawn.

    Python maps new memory for the stack of each greenlet. That, and touching this memory for the first time, takes
    about as long as the rest of what SQLAlchemy does around a short statement. So idle greenlets are kept.
    """
    idle = _idle.greenlets
    if not idle:
        if SQLALCHEMY_IS_TESTED:
            asyncio.get_running_loop().call_soon(_make_one)
        return await greenlet_spawn(function, *arguments)
    reused, current = idle.pop(), getcurrent()
    reused.parent, reused.gr_context = current, current.gr_context
    step = reused.switch(function, arguments)
    while step is not _DONE:
        if reused.dead:
            # A greenlet returns a GreenletExit, instead of raising it.
            raise step
        try:
            value = await step
        except BaseException:  # noqa: BLE001 - the function gets it, where it waits
            step = reused.throw(*sys.exc_info())
        else:
            step = reused.switch(value)
    result, error = reused.outcome
    # They, and the task's variables, may be large, and the next call may be much later.
    reused.outcome = reused.gr_context = None
    if len(idle) < _MOST_IDLE:
        idle.append(reused)
    if error is None:
        return result  # type: ignore[no-any-return]
    try:
        raise error
    finally:
        del error


def _make_one() -> None:
    # It begins to count Python's limit of recursion here: on the event loop, not in a task that is deep in it. The loop
    # itself may have been started deep in it.
    try:
        sys._getframe(sys.getrecursionlimit() // 4)
    except ValueError:
        if len(_idle.greenlets) < _MOST_IDLE:
            made = _Reused()
            made.switch()
            _idle.greenlets.append(made)


class _Reused(greenlet):  # type: ignore[misc]
    """Calls one function after the other. In between it waits where it is, in ``switch``."""

    # SQLAlchemy waits only in a greenlet that has this.
    __sqlalchemy_greenlet_provider__ = True

    outcome: Any = None

    def run(self) -> None:
        while True:
            assert self.parent is not None
            function, arguments = self.parent.switch(_DONE)
            try:
                self.outcome = function(*arguments), None
            except GreenletExit:
                # Also what ends a greenlet that nobody refers to any more.
                raise
            except BaseException as error:  # noqa: BLE001 - it is raised in the task
                self.outcome = None, error
            del function, arguments
