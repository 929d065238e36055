"""The host of code that runs in a thread."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from contextvars import copy_context
from threading import Thread
from typing import Any

from sqlalchemy import Connection, Engine

from messagedb_sa._message_types import RegisteredTypes
from messagedb_sa.consumer._handlers import check_result, own_cancelled
from messagedb_sa.consumer._host import Call, Failed, Host
from messagedb_sa.consumer._routing import Handler
from messagedb_sa.consumer._waiting import ThreadWaiter, signals_sent_to
from messagedb_sa.consumer._watch import Watch, WatchThread
from messagedb_sa.message import Message
from messagedb_sa.store._rows import decoded


class ThreadHost(Host):
    def __init__(self, engine: Engine, session_factory: Any = None) -> None:
        self.engine = engine
        self._session_factory = session_factory
        self._waiter: ThreadWaiter | None = None
        self._watcher: WatchThread | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        self.watch = Watch()
        self._waiter, self._watcher = waiter, watcher = ThreadWaiter(), WatchThread(self.watch)
        waiter.signals_sent_to = watcher.sender.fileno()
        try:
            if self.stopping:
                self._end_waits()
            with signals_sent_to(watcher.sender):
                yield
        finally:
            self._waiter = self._watcher = None
            watcher.close()
            waiter.close()
            self.watch.close()

    def _wait(self, seconds: float, connection: Connection | None) -> set[str]:
        assert self._waiter is not None
        return self._waiter.wait(seconds, connection)

    def wake(self) -> None:
        if (waiter := self._waiter) is not None:
            waiter.wake()

    def _watch_statements(self) -> None:
        if (watcher := self._watcher) is not None:
            watcher.wake()

    def begin(self, connect: Callable[[], Connection]) -> Future[Connection]:
        waiter, attempt = self._waiter, Future[Connection]()
        assert waiter is not None

        def run() -> None:
            try:
                connection = connect()
            except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
                with suppress(InvalidStateError):
                    attempt.set_exception(error)
            else:
                try:
                    attempt.set_result(connection)
                except InvalidStateError:
                    connection.close()
            waiter.wake()

        Thread(target=copy_context().run, args=(run,), name="messagedb_sa.connect", daemon=True).start()
        return attempt

    def drop(self, attempt: Future[Connection]) -> None:
        if not attempt.cancel() and attempt.exception() is None:
            attempt.result().close()

    def call_each(self, types: RegisteredTypes | None, calls: Iterator[Call]) -> Failed | None:
        decoded_already = Message if types is None else None
        for handler, message, now in calls:
            try:
                given = message if message.__class__ is decoded_already else decoded(types, message)
                self.handling = given, now
                result = handler(given)
                if result is not None:
                    check_result(result)
            except CancelledError as error:
                return handler, message, own_cancelled(error)
            except Exception as error:  # noqa: BLE001 - returned
                return handler, message, error
            finally:
                self.handling = None
        return None

    def _call(self, handler: Handler, *arguments: Any) -> None:
        try:
            result = handler(*arguments)
        except CancelledError as error:
            # Nobody can cancel a thread: it comes from an event loop that the handler ran.
            raise own_cancelled(error) from error
        if result is not None:
            check_result(result)

    @contextmanager
    def _bind(self, connection: Connection) -> Iterator[Any]:
        if self._session_factory is None:
            yield connection
            return
        with self._session_factory(bind=connection, join_transaction_mode="conditional_savepoint") as session:
            yield session
            session.flush()
