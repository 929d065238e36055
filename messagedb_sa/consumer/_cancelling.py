"""Whether somebody cancels the task of a consumer, or a CancelledError is only its handler's own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Cancellation:
    """Of the current task, from now on: it is requested if ``count()`` is more than ``before``.

    On Python 3.10, a timeout of the package async_timeout in a handler counts as well: there, a task does not tell that
    a cancellation was taken back.
    """

    def __init__(self, task: asyncio.Task[Any], count: Callable[[], int]) -> None:
        self._task = task
        self.count = count
        # It may have been cancelled before, and run a consumer to clean up.
        self.before = count()

    def renew(self) -> None:
        """If it was requested, and the handler has swallowed it, the next await raises CancelledError."""
        if sys.version_info >= (3, 11) and self.count() > self.before:
            self._task.cancel()
            self._task.uncancel()


@contextmanager
def observed() -> Iterator[Cancellation]:
    task: Any = asyncio.current_task()
    if sys.version_info >= (3, 11):
        yield Cancellation(task, task.cancelling)
        return
    number = 0
    cancel = task.cancel

    def counted(*arguments: Any, **options: Any) -> bool:
        nonlocal number
        number += 1
        return bool(cancel(*arguments, **options))

    task.cancel = counted
    try:
        yield Cancellation(task, lambda: number)
    finally:
        task.cancel = cancel
