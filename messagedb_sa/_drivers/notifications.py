"""Notifications of new messages: awaiting them, LISTEN, and how each driver delivers what PostgreSQL sends."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from uuid import uuid4

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Select,
    String,
    Text,
    bindparam,
    cast,
    func,
    literal_column,
    select,
)

CHANNEL = "message_store"
"""The channel of the trigger of revision messagedb_0003. The payload is the category that was written to."""

# The trigger notifies only of categories that a session awaits: one that holds the shared advisory lock with these two
# numbers, this one and the hash of the category's name, or of "$all".
_OF_AWAITED: ColumnElement[int] = literal_column("1297302595")

# The trigger does not notify either if PostgreSQL's queue is half full; if it is full, the transaction would fail.
_NOTIFY = select(func.pg_backend_pid(), func.pg_notify(CHANNEL, bindparam("payload", type_=String()))).where(
    func.pg_notification_queue_usage() < literal_column("0.5")
)

# In Connection.info, which lives as long as the driver's connection does.
_LISTENER = "messagedb_sa.listener"


class Listener(ABC):
    """Receives a connection's notifications."""

    def __init__(self) -> None:
        # A category has no dash, so no consumer takes a probe for one.
        self._probe: str | None = f"-{uuid4()}"
        self.has_proof = False
        """Whether the probe has arrived, and nobody took that proof yet."""

    def probe(self, connection: Connection) -> None:
        """Notify this connection itself, to find out whether notifications arrive."""
        process = connection.execute(_NOTIFY, {"payload": self._probe}).scalar()
        # If a pooler is in between, which has process ids of its own, the probe proves nothing: it arrives along with
        # the answer to the statement, and other notifications may not arrive.
        if process != process_told(connection):
            self._probe = None

    def take_proof(self) -> bool:
        """Whether the probe has arrived, as far as ``received`` was called. True only once."""
        proven, self.has_proof = self.has_proof, False
        return proven

    def received(self) -> set[str]:
        """The categories since the last call. Raises what the driver raises if the connection is lost."""
        payloads = self._payloads()
        self.has_proof = self.has_proof or self._probe in payloads
        return {payload for payload in payloads if "-" not in payload}

    def fileno(self) -> int:
        """The connection's socket. asyncpg does not expose it: use ``notifying``."""
        raise NotImplementedError

    def notifying(self, callback: Callable[[], object]) -> AbstractContextManager[None]:
        """Within the block, the event loop calls ``callback`` if something arrives or the connection is lost.

        psycopg2, which has no asynchronous mode, does not have this.
        """
        raise NotImplementedError

    @abstractmethod
    def stop(self) -> None: ...

    @abstractmethod
    def _payloads(self) -> set[str]: ...


def listen(connection: Connection) -> None:
    """Receive notifications on this connection until it is closed, or until ``unlisten``. Calling it twice is harmless.

    The connection must be in autocommit mode: PostgreSQL delivers notifications only between transactions. For an
    AsyncConnection, call it through ``run_sync``. A standby server refuses LISTEN with a DBAPIError. A connection
    pooler in transaction mode accepts it and then delivers nothing: ``Listener.take_proof`` tells whether they arrive.
    """
    connection.exec_driver_sql(f"LISTEN {CHANNEL}")
    if _LISTENER not in connection.info:
        pooled = connection.connection
        driver = pooled.driver_connection
        listener: Listener
        if hasattr(driver, "add_listener"):
            listener = _AsyncpgListener(pooled.dbapi_connection)
        elif hasattr(driver, "add_notify_handler"):
            listener = _PsycopgListener(driver)
        else:
            listener = _Psycopg2Listener(driver)
        connection.info[_LISTENER] = listener
        listener.probe(connection)


def unlisten(connection: Connection) -> None:
    """Undo ``listen`` before a connection goes back to its pool, where nobody would read its notifications."""
    # A lost connection receives nothing more.
    if not connection.invalidated:
        connection.exec_driver_sql(f"UNLISTEN {CHANNEL}")
        if _LISTENER in connection.info:
            connection.info.pop(_LISTENER).stop()


def _awaited(lock: Callable[[Any, Any], Any]) -> Select[Any]:
    """The names for which the lock's function returned true."""
    name = func.unnest(cast(bindparam("names", type_=ARRAY(Text())), ARRAY(Text()))).column_valued("name")
    return select(name).where(lock(_OF_AWAITED, func.hashtext(name)))


AWAIT = _awaited(func.pg_try_advisory_lock_shared)
"""Have writers notify of ``names``, categories or "$all", from now on. A row for each name that could be locked: a
writer that tries the same lock at this moment may be in the way."""

AWAIT_NO_MORE = _awaited(func.pg_advisory_unlock_shared)
"""Undo AWAIT, which a connection would take back to its pool."""


def listener_of(connection: Connection | None) -> Listener | None:
    return None if connection is None else connection.info.get(_LISTENER)


def process_told(connection: Connection) -> int:
    """The process id of the server's backend, as the server, or a pooler, told the driver when it connected."""
    driver: Any = connection.connection.driver_connection
    number: int
    if hasattr(driver, "get_backend_pid"):
        number = driver.get_backend_pid()
    elif hasattr(driver, "get_server_pid"):
        number = driver.get_server_pid()
    else:
        number = driver.info.backend_pid
    return number


def raise_as_sqlalchemy(connection: Connection) -> None:
    """After a driver's own error: SQLAlchemy finds the connection lost, invalidates it and raises its DBAPIError."""
    connection.exec_driver_sql("SELECT 1")


class _Psycopg2Listener(Listener):
    def __init__(self, driver: Any) -> None:
        super().__init__()
        self._driver = driver

    def fileno(self) -> int:
        number: int = self._driver.fileno()
        return number

    def _payloads(self) -> set[str]:
        self._driver.poll()
        received = {each.payload for each in self._driver.notifies if each.channel == CHANNEL}
        self._driver.notifies.clear()
        return received

    def stop(self) -> None:
        self._driver.notifies.clear()


class _PsycopgListener(Listener):
    """Synchronous or asynchronous. Does not use the connection's ``notifies()``: the asynchronous one waits until the
    event loop sees new data on the socket, and before psycopg 3.2.4 it misses what arrives during a statement."""

    def __init__(self, driver: Any) -> None:
        super().__init__()
        self._driver = driver
        self._received: set[str] = set()
        driver.add_notify_handler(self._receive)

    def _receive(self, notification: Any) -> None:
        if notification.channel == CHANNEL:
            self._received.add(notification.payload)

    def fileno(self) -> int:
        number: int = self._driver.fileno()
        return number

    def _payloads(self) -> set[str]:
        libpq = self._driver.pgconn
        libpq.consume_input()
        while notification := libpq.notifies():
            libpq.notify_handler(notification)
        received, self._received = self._received, set()
        return received

    @contextmanager
    def notifying(self, callback: Callable[[], object]) -> Iterator[None]:
        loop, number = asyncio.get_running_loop(), self.fileno()
        loop.add_reader(number, callback)
        try:
            yield
        finally:
            loop.remove_reader(number)

    def stop(self) -> None:
        self._driver.remove_notify_handler(self._receive)


class _AsyncpgListener(Listener):
    """asyncpg reads its socket by itself whenever something arrives."""

    def __init__(self, adapted: Any) -> None:
        super().__init__()
        self._adapted = adapted
        self._received: set[str] = set()
        self._callback: Callable[[], object] | None = None
        adapted.run_async(lambda driver: driver.add_listener(CHANNEL, self._receive))
        adapted.driver_connection.add_termination_listener(self._call_back)

    def _receive(self, driver: Any, process: int, channel: str, payload: str) -> None:
        self._received.add(payload)
        self._call_back(driver)

    def _call_back(self, driver: Any) -> None:
        if self._callback is not None:
            self._callback()

    def _payloads(self) -> set[str]:
        if self._adapted.driver_connection.is_closed():
            raise ConnectionError("the connection was lost")
        received, self._received = self._received, set()
        return received

    @contextmanager
    def notifying(self, callback: Callable[[], object]) -> Iterator[None]:
        self._callback = callback
        try:
            yield
        finally:
            self._callback = None

    def stop(self) -> None:
        self._adapted.driver_connection.remove_termination_listener(self._call_back)
        self._adapted.run_async(lambda driver: driver.remove_listener(CHANNEL, self._receive))
