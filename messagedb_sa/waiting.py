"""How a consumer waits: for some time, until it is woken, or until a connection hears of new messages."""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from time import monotonic
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.util import greenlet_spawn

CHANNEL = "message_store"
"""Where the trigger of revision messagedb_0003 notifies; a payload is the category that was written to."""

# In Connection.info, which lives as long as the driver's connection does.
_EAR = "messagedb_sa.waiting"


def listen(connection: Connection) -> None:
    """Have the connection hear of new messages until it is closed, or ``unlisten``. Twice is as good as once.

    The connection must be in autocommit mode: PostgreSQL notifies only between transactions. Under an AsyncConnection
    call it by run_sync. A standby refuses it with a DBAPIError; a pooler that hands out another server connection for
    each transaction takes it and then delivers nothing.
    """
    connection.exec_driver_sql(f"LISTEN {CHANNEL}")
    if _EAR not in connection.info:
        pooled = connection.connection
        driver = pooled.driver_connection
        if hasattr(driver, "add_listener"):
            connection.info[_EAR] = _AsyncpgEar(pooled.dbapi_connection)
        elif hasattr(driver, "add_notify_handler"):
            connection.info[_EAR] = _PsycopgEar(driver)
        else:
            connection.info[_EAR] = _Psycopg2Ear(driver)


def unlisten(connection: Connection) -> None:
    """Undo ``listen``, for a connection that goes back to a pool: there nobody would take what it hears."""
    # A lost connection listens no more.
    if not connection.invalidated:
        connection.exec_driver_sql(f"UNLISTEN {CHANNEL}")
        if _EAR in connection.info:
            connection.info.pop(_EAR).stop()


class Waiting:
    """For threads. One waits at a time."""

    def __init__(self) -> None:
        # A lock could be held by the very thread that a signal handler interrupts.
        self._awaited, self._waker = socket.socketpair()
        self._awaited.setblocking(False)
        self._waker.setblocking(False)

    def wait(self, seconds: float, connection: Connection | None = None) -> set[str]:
        """Wait so long, or until ``wake``, or until the connection, which is to ``listen``, has heard something: the
        categories that it heard of, all that are there.

        A wake and what was heard since the last wait count too. Raises DBAPIError, with the connection invalidated,
        once the connection is lost.
        """
        until = monotonic() + seconds
        ear = _ear_of(connection)
        with selectors.DefaultSelector() as selector:
            selector.register(self._awaited, selectors.EVENT_READ)
            try:
                heard: set[str] = ear.heard() if ear else set()
                if ear:
                    selector.register(ear.fileno(), selectors.EVENT_READ)
                while not (self._was_woken() or heard) and (left := until - monotonic()) > 0:
                    selector.select(left)
                    if ear:
                        heard = ear.heard()
            except Exception:
                if connection is not None:
                    _have_it_reported(connection)
                raise
        return heard

    def wake(self) -> None:
        """End the wait that is under way, or else the next one at once. From any thread, and from a signal handler."""
        # Where nothing fits in, it is awake already; and after close there is nobody to wake.
        with suppress(OSError):
            self._waker.send(b"\0")

    def close(self) -> None:
        """After the last wait."""
        self._awaited.close()
        self._waker.close()

    def _was_woken(self) -> bool:
        woken = False
        with suppress(BlockingIOError):
            while self._awaited.recv(4096):
                woken = True
        return woken


class AsyncWaiting:
    """For tasks, with the methods of Waiting. One waits at a time."""

    def __init__(self) -> None:
        self._woken = False
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    async def wait(self, seconds: float, connection: Connection | None = None) -> set[str]:
        """As ``Waiting.wait``; ``connection`` is the one under an AsyncConnection, its sync_connection."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        until = loop.time() + seconds
        ear = _ear_of(connection)
        # Before the flag is looked at: who sets it afterwards finds whom to tell.
        self._waiter = loop, event
        try:
            with ear.calling(event.set) if ear else nullcontext():
                while True:
                    event.clear()
                    heard: set[str] = ear.heard() if ear else set()
                    left = until - loop.time()
                    if self._was_woken() or heard or left <= 0:
                        return heard
                    timer = loop.call_later(left, event.set)
                    try:
                        await event.wait()
                    finally:
                        timer.cancel()
        except Exception:
            # Only now that the loop no longer watches the socket, whose number another one may get.
            if connection is not None:
                await greenlet_spawn(_have_it_reported, connection)
            raise
        finally:
            self._waiter = None

    def wake(self) -> None:
        """As ``Waiting.wake``."""
        self._woken = True
        if self._waiter is not None:
            loop, event = self._waiter
            # The loop may have been closed in this very moment.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        """There is nothing to close; so that both have the same methods."""

    def _was_woken(self) -> bool:
        # Set back only where it was set: between the two steps another thread may set it.
        if self._woken:
            self._woken = False
            return True
        return False


def _ear_of(connection: Connection | None) -> Any:
    return None if connection is None else connection.info.get(_EAR)


def _have_it_reported(connection: Connection) -> None:
    """After the driver's complaint: SQLAlchemy finds the connection lost, invalidates it and raises its own error."""
    connection.exec_driver_sql("SELECT 1")


# What hears, by driver. ``heard`` takes what has come, and raises whatever the driver does once the connection is lost.


class _Psycopg2Ear:
    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def fileno(self) -> int:
        number: int = self._driver.fileno()
        return number

    def heard(self) -> set[str]:
        self._driver.poll()
        heard = {each.payload for each in self._driver.notifies if each.channel == CHANNEL}
        self._driver.notifies.clear()
        return heard

    def stop(self) -> None:
        self._driver.notifies.clear()


class _PsycopgEar:
    """Synchronous or not. Not by its ``notifies``, which in the asynchronous one waits for the loop to see the socket
    anew, and which misses, before psycopg 3.2.4, what comes while a statement is executed."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._heard: set[str] = set()
        driver.add_notify_handler(self._hear)

    def _hear(self, notification: Any) -> None:
        if notification.channel == CHANNEL:
            self._heard.add(notification.payload)

    def fileno(self) -> int:
        number: int = self._driver.fileno()
        return number

    def heard(self) -> set[str]:
        libpq = self._driver.pgconn
        libpq.consume_input()
        while notification := libpq.notifies():
            libpq.notify_handler(notification)
        heard, self._heard = self._heard, set()
        return heard

    @contextmanager
    def calling(self, call: Callable[[], object]) -> Iterator[None]:
        loop, number = asyncio.get_running_loop(), self.fileno()
        loop.add_reader(number, call)
        try:
            yield
        finally:
            loop.remove_reader(number)

    def stop(self) -> None:
        self._driver.remove_notify_handler(self._hear)


class _AsyncpgEar:
    """asyncpg itself reads the socket whenever something comes."""

    def __init__(self, adapted: Any) -> None:
        self._adapted = adapted
        self._heard: set[str] = set()
        self._call: Callable[[], object] | None = None
        adapted.run_async(lambda driver: driver.add_listener(CHANNEL, self._hear))
        adapted.driver_connection.add_termination_listener(self._tell)

    def _hear(self, driver: Any, process: int, channel: str, payload: str) -> None:
        self._heard.add(payload)
        self._tell(driver)

    def _tell(self, driver: Any) -> None:
        if self._call is not None:
            self._call()

    def heard(self) -> set[str]:
        if self._adapted.driver_connection.is_closed():
            raise ConnectionError("the connection was lost")
        heard, self._heard = self._heard, set()
        return heard

    @contextmanager
    def calling(self, call: Callable[[], object]) -> Iterator[None]:
        self._call = call
        try:
            yield
        finally:
            self._call = None

    def stop(self) -> None:
        self._adapted.driver_connection.remove_termination_listener(self._tell)
        self._adapted.run_async(lambda driver: driver.remove_listener(CHANNEL, self._hear))
