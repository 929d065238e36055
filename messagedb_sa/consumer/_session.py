"""A database session that lasts: connected, listening, lost, connected again, and closed. The consumer's own is one.

What fails here is not the failure of a message, and not the end of the consumer: it connects again, or repeats what it
asked for, until it succeeds or the consumer is asked to stop.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import Any, ClassVar, TypeAlias, TypeVar

from sqlalchemy import Connection, Executable, literal_column, select
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError

from messagedb_sa._clock import monotonic
from messagedb_sa._drivers.autocommit import mode_kept, needs_transactions
from messagedb_sa._drivers.errors import (
    close_at_once,
    is_lost_connection,
    is_read_only,
    is_serialization_failure,
    is_temporary,
)
from messagedb_sa._drivers.forks import disconnect_in_child
from messagedb_sa._drivers.notifications import AWAIT, AWAIT_NO_MORE, listen, listener_of, unlisten
from messagedb_sa._drivers.sockets import Socket, socket_of
from messagedb_sa.consumer._host import Host
from messagedb_sa.consumer._log import ConsumerLog, first_line
from messagedb_sa.consumer._meter import Meter
from messagedb_sa.consumer._options import Settings
from messagedb_sa.errors import ConsumerError, InvalidArgument, MessageDBError, WrongExpectedVersion
from messagedb_sa.store import _gaps as gaps
from messagedb_sa.store._execute import run_alone
from messagedb_sa.store._operation import Call, Operation
from messagedb_sa.store._operations import ALL, HAS_NOTIFICATIONS
from messagedb_sa.store._position_statements import TABLE_ACCESS
from messagedb_sa.store._positions import TableAccess

NOTIFIED_POLL_SECONDS = 5.0
"""The pause between two polls of a consumer or subscription that notifications wake."""

# If a session awaits more categories than this, it awaits all.
_MOST_AWAITED = 32

# Pauses between attempts: the first, and the longest.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 10.0
# Between two warnings of the same.
_WARN_SECONDS = 60.0
# How often a consumer that stops tries again, in some two seconds.
_LAST_ATTEMPTS = 4

_OF_SERVER: tuple[Any, ...] = (
    literal_column("pg_catalog.current_setting('transaction_read_only') = 'on'"),
    literal_column("extract(epoch from pg_catalog.pg_postmaster_start_time())::text"),
)
SERVER: Operation[tuple[bool, str]] = Operation(select(*_OF_SERVER), {}, lambda rows: (rows[0][0], rows[0][1]))
"""Whether it is read-only, and since when it runs: no two servers started in the same microsecond. As text, that would
depend on the session's time zone."""

# As SERVER, and what the role may do with the table of positions.
_SERVER_AND_TABLE: Operation[tuple[bool, str, TableAccess]] = Operation(
    select(*_OF_SERVER, *TABLE_ACCESS), {}, lambda rows: (rows[0][0], rows[0][1], TableAccess(*rows[0][2:]))
)
_WRITERS = Operation(gaps.WRITERS, {"pause": 0.0}, gaps.writers)
_NOT_LISTED = frozenset({"not listed yet"})
_READ_ONLY = "the server is read-only, as a standby is; a consumer records its position: connect it to the primary"
# In the info of a pool's connection: the session after whose beginning it was compared with it.
_COMPARED = "messagedb_sa.compared"

T = TypeVar("T")
Log: TypeAlias = "Callable[[int, str], None]"


class ConnectionLost(BaseException):
    """The session's connection is gone. Not an Exception, so that no code takes it for a handler's error."""

    what: ClassVar[str] = "lost the connection"

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class ServerReadOnly(ConnectionLost):
    """The connection is of no use now: its server is a standby, or was made read-only."""

    what = "cannot record its position"

    def __init__(self) -> None:
        super().__init__(ConsumerError(_READ_ONLY))


class Unavailable(BaseException):
    """The consumer itself cannot have something of the database now, such as a connection or a lock. No handler did
    anything wrong."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Patience:
    """The growing pauses between attempts, and warnings: one for each kind of error, repeated once a minute."""

    def __init__(self, log: Log, trouble: str) -> None:
        self._log = log
        self._trouble = trouble
        self._began = monotonic()
        self._seconds = _FIRST_PAUSE_SECONDS
        self._last_attempts = _LAST_ATTEMPTS
        self._warned: type[BaseException] | None = None
        self._warn_at = 0.0

    def warned(self, error: Exception) -> None:
        """A warning of this error was given already."""
        self._warned, self._warn_at = type(error), monotonic() + _WARN_SECONDS

    def warn(self, error: Exception) -> None:
        now = monotonic()
        if now < self._warn_at and type(error) is self._warned:
            self._log(logging.DEBUG, f"{self._trouble}: {first_line(error)}")
            return
        self.warned(error)
        lasting = f" for {now - self._began:.0f} s" if now >= self._began + 1 else ""
        self._log(logging.WARNING, f"{self._trouble}{lasting}, tries again: {first_line(error)}")

    def outlasted(self, seconds: float) -> bool:
        """Whether something lasted so long that it needs no pause."""
        return seconds >= self._seconds

    def seconds(self) -> float:
        """How long to wait before the next attempt."""
        seconds = self._seconds * random.uniform(0.5, 1)
        self._seconds = min(2 * self._seconds, _LONGEST_PAUSE_SECONDS)
        return seconds

    def seconds_at_the_end(self) -> float | None:
        """As ``seconds``, of a consumer that stops; None if it must give up."""
        if self._last_attempts == _LAST_ATTEMPTS:
            self._seconds = _FIRST_PAUSE_SECONDS
        self._last_attempts -= 1
        return self.seconds() if self._last_attempts >= 0 else None


class LastingSession:
    """Connects, listens, and connects again. Its connection leaves the pool for good: the pool must serve others."""

    def __init__(self, host: Host, log: Log) -> None:
        self._host = host
        self._log = log
        self._connection: Connection | None = None
        self._driver: DBAPIConnection | None = None
        # Whether the database notifies, and this connection listens.
        self.listens = False
        self._is_abandoned = False
        # Whether notifications are seen to arrive: a connection pooler may swallow them.
        self.is_notified = False
        # Whether they were proven to, on this connection.
        self._may_await = False
        # The categories that writers notify of, because this session awaits them.
        self._awaited: frozenset[str] = frozenset()
        # Whether it does not await all that it should, since a writer was in the way.
        self._must_try_again = False
        # Those who were writing when it began to. They may have found that nobody awaits their messages.
        self._writers_before: Set[str] = frozenset()
        self._put_back_mode: Callable[[], None] = lambda: None
        self._socket: Socket | None = None
        self._opened_at = 0.0
        # Of connecting again. Kept while connections are lost soon after they are made.
        self._patience: Patience | None = None
        # Whether it is about to end: then it does not try for ever.
        self.is_ending = False
        # Since when it has no connection that it can use; None if it has one.
        self.unconnected_since: float | None = 0.0

    def start(self) -> None:
        """At the beginning of a run. Raises as ``open``."""
        self._patience = None
        self.unconnected_since = monotonic()
        self.open()
        self._set_connected(True)

    def open(self) -> None:
        self.refuse_child()
        self.is_ending = False
        try:
            connection = self._host.connect()
        except TimeoutError as error:
            self._host.watch.has_given_up = self._host.stopping
            raise ConnectionLost(error) from error
        self._opened_at = monotonic()
        driver: Any = connection.connection.dbapi_connection
        try:
            self._check_driver(driver)
        except InvalidArgument:
            connection.close()
            raise
        self._put_back_mode = mode_kept(driver)
        self._socket = self._host.watch.own = socket_of(connection)
        self._socket.limit()
        self._connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        self._driver = driver
        self.listens = self.is_notified = self._may_await = self._must_try_again = False
        self._awaited = self._writers_before = frozenset()
        before = self._host.watch.begin(self._socket)
        try:
            self._check_server()
            # A pooler that gives each transaction to another session delivers no notifications.
            self.listens = not needs_transactions(driver) and self.run(HAS_NOTIFICATIONS)
            if self.listens:
                # Before it is detached: after that SQLAlchemy no longer knows the driver's own connection.
                listen(self._connection)
                self.wait(0)
        except DBAPIError as error:
            if is_lost_connection(error):
                raise ConnectionLost(error) from error
            raise
        finally:
            self._host.watch.end(before)
            if not self._connection.invalidated:
                self._connection.detach()

    def _set_connected(self, connected: bool, *, again: bool = False) -> None:
        """``again``: after it was lost."""
        if connected != (self.unconnected_since is None):
            self.unconnected_since = None if connected else monotonic()

    def _check_driver(self, driver: Any) -> None:
        """Raise InvalidArgument if the driver's connection does not fit."""

    def _check_server(self) -> None:
        """Raise ConnectionLost if the server is of no use."""

    def close(self) -> None:
        connection, driver, self._connection, self._driver = self._connection, self._driver, None, None
        self._set_connected(False)
        watch = self._host.watch
        if driver is not None and connection is not None:
            before = watch.begin(self._socket)
            try:
                # Closing may give it back to a pool that is not SQLAlchemy's: put back what was changed.
                if not (connection.invalidated or watch.has_given_up):
                    if self._awaited:
                        connection.execute(AWAIT_NO_MORE, {"names": list(self._awaited)})
                    if self.listens:
                        unlisten(connection)
                    self._put_back_mode()
                    if self._socket is not None:
                        self._socket.unlimit()
                # SQLAlchemy does not close a detached connection of every asynchronous driver.
                driver.close()
            except Exception as error:  # noqa: BLE001 - it is gone in any case
                self._log(logging.DEBUG, f"could not close a connection: {error}")
                close_at_once(driver)
            except BaseException:
                close_at_once(driver)
                raise
            finally:
                watch.end(before)

    def abandon(self) -> None:
        """In a forked child process: leave the connection to the parent, without a word to the server."""
        driver, self._driver, self._connection = self._driver, None, None
        self._is_abandoned = True
        if driver is not None:
            disconnect_in_child(driver)

    def refuse_child(self) -> None:
        if self._is_abandoned:
            raise MessageDBError("a handler forked this process: it must end there, and not continue the consumer")

    def reopen(self, lost: ConnectionLost, prepare: Callable[[], None]) -> bool:
        """Connect again and ``prepare``, with growing pauses, until both succeed or the consumer is asked to stop.

        Tries at least once, so that a consumer that stops can record its position, but not if the connection was ended
        because it does not answer. Pauses first if the connection was lost at once. Returns whether it succeeded.
        """
        self._set_connected(False)
        self._log(logging.WARNING, f"{lost.what}, connecting again: {first_line(lost.error)}")
        patience = self._patience
        if patience is None or patience.outlasted(monotonic() - self._opened_at):
            patience = self._patience = Patience(self._log, "could not connect again")
        elif not self._host.stopping:
            self.close()
            self._host.pause(patience.seconds())
        patience.warned(lost.error)
        while True:
            self.close()
            if self._host.watch.has_given_up:
                return False
            try:
                self.open()
                prepare()
            except MessageDBError:
                raise
            except (ConnectionLost, Unavailable) as failed:
                patience.warn(failed.error)
            except Exception as error:  # noqa: BLE001 - drivers report failed connections differently
                patience.warn(error)
            else:
                self._set_connected(True, again=True)
                self._log(logging.INFO, "connected again")
                return True
            self._host.pause(patience.seconds())
            if self._host.stopping:
                return False

    def run(self, call: Call[T]) -> T:
        """Its result. Repeats the call, each time a transaction of its own, until no lock and no timeout is in the
        way. Raises Unavailable if the consumer is asked to stop meanwhile."""
        watch = self._host.watch
        patience: Patience | None = None
        while True:
            if self._connection is None or self._connection.invalidated or watch.has_given_up:
                raise ConnectionLost(MessageDBError("it is not connected"))
            before = watch.begin(self._socket)
            try:
                return run_alone(self._connection, call)
            except (DBAPIError, WrongExpectedVersion) as error:
                reported = error if isinstance(error, DBAPIError) else error.__cause__
                if not isinstance(reported, DBAPIError):
                    raise
                if is_lost_connection(reported):
                    raise ConnectionLost(reported) from reported
                if is_read_only(reported):
                    raise ServerReadOnly from reported
                if not (is_temporary(reported) or is_serialization_failure(reported)):
                    raise
                failed = reported
            finally:
                watch.end(before)
            patience = patience or Patience(self._log, "could not read or record")
            patience.warn(failed)
            is_last = self.is_ending or self._host.stopping
            seconds = patience.seconds_at_the_end() if is_last else patience.seconds()
            if seconds is None:
                raise Unavailable(failed)
            (self._host.wait if is_last else self._host.pause)(seconds)

    def wait(self, seconds: float) -> set[str]:
        """Wait ``seconds``, or until a notification arrives; returns the categories that were notified."""
        connection = self._connection if self.listens else None
        try:
            notified = self._host.wait(seconds, connection)
        except DBAPIError as error:
            raise ConnectionLost(error) from error
        if (listener := listener_of(connection)) is not None and listener.take_proof():
            self.is_notified = self._may_await = True
        return notified

    def expect(self, categories: Set[str]) -> bool:
        """Have writers notify this session of these categories, and of no others; ALL are all of them.

        Returns whether to read once more before relying on that: of a message that was written up to now, nobody may
        have been notified. Call it again whenever there is nothing to read.
        """
        if not self._may_await:
            return False
        categories = categories if len(categories) <= _MOST_AWAITED else {ALL}
        has_begun = False
        if (wanted := categories - self._awaited) and (begun := self.run(_awaiting(AWAIT, wanted))):
            # In this order, for other threads, and for ``close``, if the list does not come.
            self._writers_before = _NOT_LISTED
            self._awaited |= begun
            self._writers_before = self.run(_WRITERS).holding.keys()
            has_begun = True
        self._must_try_again = not categories <= self._awaited
        if not self._must_try_again and (unwanted := self._awaited - categories):
            self._awaited -= unwanted
            if not self._awaited:
                self._writers_before = frozenset()
            self.run(_awaiting(AWAIT_NO_MORE, unwanted))
        if has_begun or not self._writers_before:
            return has_begun
        self._writers_before &= self.run(_WRITERS).holding.keys()
        return not self._writers_before

    @property
    def is_settling(self) -> bool:
        """Whether somebody may still commit a message of which nobody is notified: ``expect`` again soon."""
        return self._must_try_again or bool(self._writers_before)

    def is_notified_of(self, category: str) -> bool:
        """Whether nothing in it, or in ALL, is missed by waiting for notifications."""
        return self.is_notified and not self._writers_before and not self._awaited.isdisjoint((category, ALL))


def _awaiting(statement: Executable, names: Set[str]) -> Operation[frozenset[str]]:
    return Operation(statement, {"names": list(names)}, lambda rows: frozenset(name for (name,) in rows))


class ConsumerSession(LastingSession):
    """The consumer's own: reads, records, and holds the locks of slots."""

    def __init__(self, host: Host, settings: Settings, log: ConsumerLog, meter: Meter | None = None) -> None:
        super().__init__(host, log)
        self._meter = meter
        self._transactional = settings.transactional
        self._server_since = ""
        self.table_access: TableAccess

    def _set_connected(self, connected: bool, *, again: bool = False) -> None:
        was_connected = self.unconnected_since is None
        super()._set_connected(connected, again=again)
        if self._meter is not None and connected != was_connected:
            if connected:
                self._meter.connected(again=again)
            else:
                self._meter.disconnected()

    def _check_driver(self, driver: Any) -> None:
        if self._transactional and driver.autocommit:
            reason = "needs an engine without autocommit: in autocommit mode there are no transactions"
            raise InvalidArgument("transactional", True, reason)

    def _check_server(self) -> None:
        """Raises ServerReadOnly if it cannot be used to record."""
        is_read_only, self._server_since, self.table_access = self.run(_SERVER_AND_TABLE)
        if is_read_only:
            raise ServerReadOnly

    def check(self) -> None:
        """Raise ConnectionLost if the connection is lost or of no use: a handler may have failed for that reason."""
        is_read_only, _ = self.run(SERVER)
        if is_read_only:
            raise ServerReadOnly

    def of_pool(self) -> Connection:
        """A connection of the pool, to the server of this session. Raises Unavailable if there is none.

        The pool may have connected to another server, with fewer messages, that has taken the place of the one that the
        messages in hand were read from.
        """
        try:
            connection = self._host.borrow()
        except Exception as error:
            raise Unavailable(error) from error
        try:
            if connection.info.get(_COMPARED) is not self._driver:
                self._compare(connection)
        except ConnectionLost as lost:
            # Not raised itself: it would count as a loss at the message, whose handler was not called.
            connection.close()
            raise Unavailable(lost.error) from lost
        except Exception as error:
            connection.close()
            raise Unavailable(error) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _compare(self, connection: Connection) -> None:
        is_read_only, since = self._server_of(connection)
        # If the server has crashed since, this session's connection is lost.
        self.check()
        if is_read_only or since != self._server_since:
            connection.invalidate()
            raise ConsumerError("the pool has a connection to another server")
        connection.info[_COMPARED] = self._driver

    def is_usable(self, connection: Connection) -> bool:
        """Whether a connection of the pool can still write, after a transaction in which it could not."""
        try:
            is_read_only, _ = self._server_of(connection)
        except Exception:  # noqa: BLE001 - it is lost
            return False
        return not is_read_only

    def _server_of(self, connection: Connection) -> tuple[bool, str]:
        watch = self._host.watch
        before = watch.begin(socket_of(connection))
        try:
            server = run_alone(connection, SERVER)
            connection.rollback()
        finally:
            watch.end(before)
        return server

    @contextmanager
    def usable(self) -> Iterator[None]:
        """Within the block, use a connection of the pool if the session's own one is no longer usable.

        That happens to an asynchronous connection if its task is cancelled during a statement.
        """
        if self._connection is None or not self._connection.invalidated:
            yield
            return
        before = self._connection, self._socket
        try:
            with self._host.connect() as self._connection:
                self._socket = self._host.watch.own = socket_of(self._connection)
                yield
        finally:
            self._connection, self._socket = before
