"""The host of code that runs on an event loop, in SQLAlchemy's greenlet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import isawaitable
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from sqlalchemy.util import await_only, greenlet_spawn

from messagedb_sa._message_types import RegisteredTypes
from messagedb_sa.consumer._cancelling import Cancellation, observed
from messagedb_sa.consumer._handlers import check_result, own_cancelled
from messagedb_sa.consumer._host import Call, Failed, Host
from messagedb_sa.consumer._routing import Handler
from messagedb_sa.consumer._waiting import TaskWaiter, call_soon, signals_interrupt
from messagedb_sa.consumer._watch import LOOK_SECONDS, STOP_SECONDS, Watch
from messagedb_sa.message import Message
from messagedb_sa.store._rows import decoded

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


class EventLoopHost(Host):
    def __init__(self, engine: AsyncEngine, session_factory: Any = None) -> None:
        self.engine = engine.sync_engine
        self._async_engine = engine
        self._session_factory = session_factory
        self._waiter = TaskWaiter()
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._cancellation: Cancellation

    @contextmanager
    def waiting(self) -> Iterator[None]:
        self.watch = Watch()
        self._event_loop = loop = asyncio.get_running_loop()
        try:
            # For the whole run, so that not each wait makes sockets.
            with observed() as self._cancellation, signals_interrupt(loop):
                if self.stopping:
                    self._end_waits()
                yield
        finally:
            self._event_loop = None
            self.watch.close()

    def _wait(self, seconds: float, connection: Connection | None) -> set[str]:
        return await_only(self._waiter.wait(seconds, connection))

    def wake(self) -> None:
        self._waiter.wake()

    def _watch_statements(self) -> None:
        if (loop := self._event_loop) is not None:
            call_soon(loop, partial(self._look, self.watch))

    def _look(self, watch: Watch) -> None:
        # Until the end of the run that it began in.
        if (loop := self._event_loop) is not None and watch is self.watch:
            watch.look()
            loop.call_later(LOOK_SECONDS, self._look, watch)

    def begin(self, connect: Callable[[], Connection]) -> asyncio.Future[Connection]:
        attempt = asyncio.ensure_future(greenlet_spawn(connect))
        attempt.add_done_callback(lambda _: self._waiter.wake())
        return attempt

    def drop(self, attempt: asyncio.Future[Connection]) -> None:
        attempt.cancel()
        try:
            await_only(asyncio.wait({attempt}, timeout=STOP_SECONDS))
        finally:
            if not attempt.done():
                # This task is cancelled too, or the driver continues although it was cancelled.
                attempt.add_done_callback(_end_connection)
            elif not (attempt.cancelled() or attempt.exception()):
                attempt.result().close()

    def call_each(self, types: RegisteredTypes | None, calls: Iterator[Call]) -> Failed | None:
        # To leave the greenlet takes longer than all else that is done for a message: it is left once for all of them.
        return await_only(self._await_each(types, calls))

    async def _await_each(self, types: RegisteredTypes | None, calls: Iterator[Call]) -> Failed | None:
        decoded_already = Message if types is None else None
        cancellation = self._cancellation
        count, before = cancellation.count, cancellation.before
        for handler, message, now in calls:
            try:
                given = message if message.__class__ is decoded_already else decoded(types, message)
                self.handling = given, now
                result = handler(given)
                if result is not None:
                    if type(result) is CoroutineType or isawaitable(result):
                        result = await result
                        if count() > before:
                            cancellation.renew()
                    if result is not None:
                        check_result(result)
            except asyncio.CancelledError as error:
                if count() > before:
                    raise
                return handler, message, own_cancelled(error)
            except Exception as error:  # noqa: BLE001 - returned
                cancellation.renew()
                return handler, message, error
            finally:
                self.handling = None
        return None

    def _call(self, handler: Handler, *arguments: Any) -> None:
        cancellation = self._cancellation
        try:
            result = handler(*arguments)
            # The common cases first: isawaitable() takes as long as all the rest.
            if result is not None and (type(result) is CoroutineType or isawaitable(result)):
                result = await_only(result)
                if cancellation.count() > cancellation.before:
                    cancellation.renew()
        except asyncio.CancelledError as error:
            if cancellation.count() > cancellation.before:
                raise
            raise own_cancelled(error) from error
        except Exception:
            cancellation.renew()
            raise
        if result is not None:
            check_result(result)

    @contextmanager
    def _bind(self, connection: Connection) -> Iterator[Any]:
        from sqlalchemy.ext.asyncio import AsyncConnection

        joined = AsyncConnection(self._async_engine, connection)
        if self._session_factory is None:
            yield joined
            return
        session = self._session_factory(bind=joined, join_transaction_mode="conditional_savepoint")
        try:
            yield session
            await_only(session.flush())
        finally:
            await_only(session.close())


def _end_connection(attempt: asyncio.Future[Connection]) -> None:
    """Give a connection that nobody wants back to the pool, which makes another in its place. Awaits nothing."""
    if not (attempt.cancelled() or attempt.exception()):
        attempt.result().invalidate()
        attempt.result().close()
