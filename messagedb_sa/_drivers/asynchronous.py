"""Blocking code on an engine whose driver is asynchronous."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any

from sqlalchemy import Connection, Engine

_POLL_SECONDS = 0.01


def can_block(bind: Engine | Connection) -> bool:
    """Whether blocking code can use it here: its driver is synchronous, or the code was called with run_sync."""
    if not bind.dialect.is_async:
        return True
    from sqlalchemy.util.concurrency import in_greenlet

    return in_greenlet()


@contextmanager
def holding(lock: Lock, bind: Connection) -> Iterator[None]:
    """Hold the lock during the block. With an asynchronous driver, the event loop runs while this waits for it.

    The block's own statements let other tasks run. One that stopped the loop to wait for the lock would wait for ever.
    """
    if bind.dialect.is_async:
        from sqlalchemy.util import await_only

        while not lock.acquire(blocking=False):
            await_only(asyncio.sleep(_POLL_SECONDS))
    else:
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def run_blocking(engine: Engine, function: Callable[[Engine], Any]) -> None:
    """Call the function with the engine, and wait until it returns, whatever the engine's driver is.

    With an asynchronous driver, it runs in an event loop of its own. The engine must not keep connections: they would
    belong to that loop.
    """
    if not engine.dialect.is_async:
        function(engine)
        return
    from sqlalchemy.util import greenlet_spawn

    async def run() -> None:
        await greenlet_spawn(function, engine)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(run())
    else:
        # A thread cannot run a second event loop.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: asyncio.run(run())).result()
