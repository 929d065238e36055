"""What differs between a consumer in a thread and one on an event loop: waiting, and calling handlers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from math import inf
from typing import Any, TypeAlias

from sqlalchemy import Connection, Engine, QueuePool

from messagedb_sa._clock import monotonic
from messagedb_sa._drivers.forks import disconnect_in_child
from messagedb_sa._message_types import RegisteredTypes
from messagedb_sa.consumer._routing import Handler
from messagedb_sa.consumer._watch import STOP_SECONDS, Watch
from messagedb_sa.message import Message

Call: TypeAlias = "tuple[Handler, Message, float]"
"""A handler, its message, and when it is called."""
Failed: TypeAlias = "tuple[Handler, Message, Exception]"
"""A call, and its error."""

# As psycopg's own limit, which leaves time for several hosts. psycopg2 has none.
_CONNECT_SECONDS = 130.0
# How long an idle connection of the pool is taken without precautions after the last one.
_AT_HAND_SECONDS = 1.0


class Host(ABC):
    """The rest of the consumer is blocking code that runs on a host: in a thread, or in SQLAlchemy's greenlet."""

    engine: Engine
    watch: Watch

    stopping = False
    """Whether the consumer is asked to stop."""

    # For the consumer's state, which any thread may ask for: each is set in one step.
    handling: tuple[Message, float] | None = None
    """The message that a handler has, and since when."""
    waits: tuple[float, float] | None = None
    """Since when it waits, and until when at most."""

    _borrowed_at = -inf

    _joined: Connection | None = None
    """The one that a handler writes with at the moment."""

    def stop(self) -> None:
        self.stopping = True
        self._end_waits()

    def abandon(self) -> None:
        """In a forked child process: the loop ends after the message in hand, whose transaction is the parent's."""
        self.stopping = True
        # It would change the sockets of the parent's connections.
        self.watch = Watch()
        connection, self._joined = self._joined, None
        if connection is not None:
            disconnect_in_child(connection.connection.dbapi_connection)
            if not connection.dialect.is_async:
                # So that SQLAlchemy does not roll back. To an event loop, nothing can be said here.
                connection.invalidate()

    def connect(self) -> Connection:
        """Connect, but not for ever: drivers may wait without a limit for a server that does not answer."""
        self._borrowed_at = -inf
        attempt = self.begin(self.engine.connect)
        give_up_at = monotonic() + _CONNECT_SECONDS
        stop_by = inf
        try:
            while not attempt.done():
                if self.stopping:
                    stop_by = min(stop_by, monotonic() + STOP_SECONDS)
                left = min(give_up_at, stop_by) - monotonic()
                if left <= 0:
                    raise TimeoutError("there was no connection in time")
                self.wait(left)
        except BaseException:
            # It may have succeeded just now.
            self.drop(attempt)
            raise
        connection: Connection = attempt.result()
        return connection

    def borrow(self) -> Connection:
        """A connection of the pool, to be given back. The pool may wait, connect, or ask if the server is there."""
        pool, now = self.engine.pool, monotonic()
        # Another thread or task takes time, which matters if messages come fast. Then the server has just answered.
        is_at_hand = isinstance(pool, QueuePool) and pool.checkedin() and now < self._borrowed_at + _AT_HAND_SECONDS
        connection = self.engine.connect() if is_at_hand else self.connect()
        self._borrowed_at = now
        return connection

    def pause(self, seconds: float) -> None:
        """Wait so many seconds, or until it is asked to stop. Whatever else wakes it, the pause goes on."""
        until = monotonic() + seconds
        while not self.stopping and (left := until - monotonic()) > 0:
            self.wait(left)

    def call(self, handler: Handler, message: Message, *arguments: Any) -> None:
        """Raises an Exception if the handler failed; ends with any other exception if the consumer must end."""
        self.handling = message, monotonic()
        try:
            self._call(handler, message, *arguments)
        finally:
            self.handling = None

    @abstractmethod
    def call_each(self, types: RegisteredTypes | None, calls: Iterator[Call]) -> Failed | None:
        """Make the calls until one fails, which it returns. A handler gets its message with an instance of ``types``.

        Much faster than ``call`` for each. Ends with any exception other than an Exception, as ``call``.
        """

    @abstractmethod
    def _call(self, handler: Handler, *arguments: Any) -> None: ...

    def asked_at(self) -> float | None:
        """As ``Watch.asked_at``."""
        watch: Watch | None = getattr(self, "watch", None)
        return None if watch is None else watch.asked_at()

    @contextmanager
    def joined(self, connection: Connection) -> Iterator[Any]:
        """What a handler gets to write with in the connection's transaction; flushed at the end of the block."""
        self._joined = connection
        try:
            with self._bind(connection) as bind:
                yield bind
        finally:
            self._joined = None

    @abstractmethod
    def _bind(self, connection: Connection) -> AbstractContextManager[Any]: ...

    @abstractmethod
    def waiting(self) -> AbstractContextManager[None]:
        """All waits, and all that ``watch`` watches, are within this block."""

    @abstractmethod
    def begin(self, connect: Callable[[], Connection]) -> Any:
        """Connect in another thread or task; returns its Future. When it is done, it wakes the wait."""

    @abstractmethod
    def drop(self, attempt: Any) -> None:
        """Nobody waits for it any more. If it has succeeded, or does so later, the connection is given back."""

    def wait(self, seconds: float, connection: Connection | None = None) -> set[str]:
        """As ``ThreadWaiter.wait``."""
        now = monotonic()
        self.waits = now, now + seconds
        try:
            return self._wait(seconds, connection)
        finally:
            self.waits = None

    @abstractmethod
    def _wait(self, seconds: float, connection: Connection | None) -> set[str]: ...

    def _end_waits(self) -> None:
        """When it is asked to stop."""
        self.wake()
        self._watch_statements()

    @abstractmethod
    def wake(self) -> None:
        """End the wait that is under way, or the next one at once. From any thread, and from a signal handler."""

    @abstractmethod
    def _watch_statements(self) -> None:
        """From now on, have ``watch`` look often. From any thread, and from a signal handler."""
