"""The loop of a subscription: read a page, hand out its messages, wait if there are none."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from threading import Lock, Timer
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection

from messagedb_sa import _arguments as arguments
from messagedb_sa._clock import monotonic
from messagedb_sa._drivers.errors import is_lost_connection, is_temporary
from messagedb_sa._drivers.sockets import Socket, socket_of
from messagedb_sa._forks import PerProcess
from messagedb_sa.consumer._options import POLL_SECONDS
from messagedb_sa.consumer._session import NOTIFIED_POLL_SECONDS, SERVER, Patience
from messagedb_sa.consumer._waiting import TaskWaiter, ThreadWaiter
from messagedb_sa.consumer._watch import STOP_SECONDS
from messagedb_sa.errors import MessageDBError
from messagedb_sa.message import Message
from messagedb_sa.store._execute import run_alone
from messagedb_sa.store._operation import Call, SettledPage
from messagedb_sa.subscription._listening import Listening, logger
from messagedb_sa.subscription._source import Source

# In the info of a pool's connection: since when its server runs.
_SINCE = "messagedb_sa.server_since"

W = TypeVar("W", bound=ThreadWaiter | TaskWaiter)


class _Own(Generic[W]):
    """What belongs to one process."""

    def __init__(self, waiter: W) -> None:
        self.waiter = waiter
        # Held while messages are fetched.
        self.fetching = Lock()

    def close(self) -> None:
        self.waiter.close()


class Follower(ABC, Generic[W]):
    """Blocking code that both kinds of subscriptions run; the asynchronous one runs it in SQLAlchemy's greenlet.

    It has a connection of the pool while it reads, and none while it waits. It does not refer to its subscription, so
    that one that is dropped can be closed.
    """

    def __init__(self, source: Source, make_waiter: Callable[[], W], poll_seconds: float, reconnect: bool) -> None:
        self._source = source
        self.awaits = source.awaits
        self._poll_seconds = arguments.seconds("poll_seconds", poll_seconds)
        self._reconnects = arguments.boolean("reconnect", reconnect)
        self._own: PerProcess[_Own[W]] = PerProcess(lambda: _Own(make_waiter()), _Own.close)
        self._listening: Listening | None = None
        self._page = source.page
        self._fetched: Iterator[Message] = iter(())
        # The last that was fetched. The next page is read when it has been handed out.
        self._last: Message | None = None
        self._has_begun = False
        # Whether there was a notification since the last read began, and whether one named the category.
        self._is_notified = self._is_named = False
        self._server_since: str | None = None
        # The connection of the read that is under way, if any.
        self._is_connected = False
        self._reading: Socket | None = None
        self.is_closed = False

    # What differs between threads and an event loop

    @abstractmethod
    def _wait(self, waiter: W, seconds: float) -> None:
        """Wait so many seconds, or until the waiter is woken."""

    @abstractmethod
    def _perform(self, call: Call[Any]) -> Any:
        """Its result, by ``execute`` with a connection of the pool."""

    @abstractmethod
    def _join(self) -> Listening: ...

    # Handing out

    def take(self) -> Message | None:
        """The next of the messages that were fetched; None if there are no more. Raises MessageNotDecodable, and then
        continues after that message."""
        # next() is one step of the interpreter: of threads that share a subscription, one gets the message.
        message = None if self.is_closed else next(self._fetched, None)
        return None if message is None else self._source.decoded(message)

    def begin(self) -> None:
        """With "end", find out where that is."""
        if not self._has_begun:
            if self._source.begins_at_end:
                end = self._read(self._source.end())
                if end is None:
                    return
                self._page = self._page.at(end + 1)
            self._has_begun = True

    def fetch(self) -> bool:
        """Wait until there are messages to take. False if it was closed."""
        own = self._own.own
        if not own.fetching.acquire(blocking=False):
            raise RuntimeError("this subscription is waiting for a message already, in another thread or task")
        try:
            self.begin()
            return self._fetch()
        finally:
            own.fetching.release()
            if self.is_closed:
                self._give_back()

    def _fetch(self) -> bool:
        is_notified = is_named = was_trusted = False
        while not self.is_closed:
            began, self._is_notified, self._is_named = monotonic(), False, False
            messages = self._read(self._page)
            if messages is None:
                break
            if messages:
                if was_trusted and not (is_notified or self._is_notified) and self._listening is not None:
                    self._listening.doubt()
                self._last = messages[-1]
                self._page = self._page.at(self._source.position_after(self._last))
                self._fetched = iter(messages)
                return True
            if is_named:
                # It was about another stream, or late. However busy the category is, this costs no more than polling.
                self._pause(began + min(self._poll_seconds, POLL_SECONDS))
            was_trusted = self._idle()
            is_notified, is_named = self._is_notified, self._is_named
        return False

    def _idle(self) -> bool:
        """Wait until there may be something to read. Returns whether it relied on notifications."""
        if self._listening is None or (self._listening.has_ended and not self._listening.is_in_vain):
            self._listening = self._join()
            if self._listening.is_notified_of(self):
                # It listens for others already, and did not wake this one for what came since the last read.
                return False
        # Nobody notifies of a transaction that is rolled back.
        is_cut = isinstance(self._page, SettledPage) and self._page.is_cut
        trusts = self._listening.is_notified_of(self) and not is_cut
        seconds = self._poll_seconds
        if trusts:
            seconds = max(seconds, NOTIFIED_POLL_SECONDS)
        elif self._listening.is_settling:
            seconds = min(seconds, POLL_SECONDS)
        self._pause(monotonic() + seconds, until_notified=True)
        return trusts

    def _pause(self, until: float, *, until_notified: bool = False) -> None:
        waiter = self._own.own.waiter
        while not self.is_closed and not (until_notified and self._is_notified) and (left := until - monotonic()) > 0:
            self._wait(waiter, left)

    def notify(self, categories: set[str] | None) -> None:
        if categories is None or self._source.is_in(categories):
            self._is_named = self._is_named or categories is not None
            self._is_notified = True
            self._own.own.waiter.wake()

    # Ending

    def close(self) -> Listening | None:
        """From any thread, in a signal handler, and while garbage is collected. Returns what it listened with."""
        self.is_closed = True
        own = self._own.own
        own.waiter.wake()
        if (reading := self._reading) is not None:
            timer = Timer(STOP_SECONDS, self._end_reading, (reading,))
            timer.daemon = True
            timer.start()
        if own.fetching.acquire(blocking=False):
            try:
                self._give_back()
            finally:
                own.fetching.release()
        return self._listening

    def _end_reading(self, reading: Socket) -> None:
        """The server does not answer."""
        if self._reading is reading:
            reading.shut_down()

    def _give_back(self) -> None:
        self._fetched = iter(())
        if self._listening is not None:
            self._listening.leave(self)
        self._own.own.close()

    # Reading

    def execute(self, connection: Connection, call: Call[Any]) -> Any:
        self._is_connected = True
        self._reading = socket = socket_of(connection)
        socket.limit()
        try:
            self._check_server(connection)
            return run_alone(connection, call)
        finally:
            self._reading = None
            socket.unlimit()

    def _check_server(self, connection: Connection) -> None:
        """After a failover, the new server may lack messages that were read, and give their positions to others."""
        since = connection.info.get(_SINCE)
        if since is None:
            _, since = run_alone(connection, SERVER)
            connection.info[_SINCE] = since
        if since != self._server_since and (last := self._last) is not None:
            found = run_alone(connection, self._source.again(last))
            # Its writer may have written it again, at another position.
            if found is None or (found.position, found.global_position) != (last.position, last.global_position):
                raise MessageDBError(
                    f"the server does not have the message that was read last ({last.id}, at global position "
                    f"{last.global_position}): it has taken the place of another server that had more messages. Begin "
                    "again at an earlier position"
                )
        self._server_since = since

    def _read(self, call: Call[Any]) -> Any:
        """The result; None if it was closed meanwhile."""
        patience: Patience | None = None
        while not self.is_closed:
            self._is_connected = False
            try:
                result = self._perform(call)
            except Exception as error:
                if self.is_closed:
                    break
                if not self._may_read_again(error):
                    raise
                patience = patience or Patience(self._log, "cannot read")
                patience.warn(error)
                self._pause(monotonic() + patience.seconds())
            else:
                if patience is not None:
                    self._log(logging.INFO, "reads again")
                return result
        return None

    def _may_read_again(self, error: Exception) -> bool:
        # If the first connection fails, another attempt hardly helps.
        if not self._reconnects or self._server_since is None or isinstance(error, MessageDBError):
            return False
        return not self._is_connected or is_lost_connection(error) or is_temporary(error)

    def _log(self, level: int, text: str) -> None:
        logger.log(level, "subscription of %s: %s", self._source.name, text)
