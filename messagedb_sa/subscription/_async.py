"""The asynchronous subscription, which waits on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import finalize

from sqlalchemy.util import await_only, greenlet_spawn
from typing_extensions import Self

from messagedb_sa.consumer._event_loop_host import EventLoopHost
from messagedb_sa.consumer._options import BATCH_SIZE, POLL_SECONDS, unfit_store
from messagedb_sa.consumer._waiting import TaskWaiter
from messagedb_sa.message import Message
from messagedb_sa.store import AsyncStore
from messagedb_sa.store._operation import Call
from messagedb_sa.subscription._follower import Follower
from messagedb_sa.subscription._listening import Listening, join
from messagedb_sa.subscription._source import COMMITTED, Begin, Source

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


class AsyncSubscription(AsyncIterator[Message]):
    """Iterates over a stream, a category or ``$all`` as it grows:
    ``async for message in AsyncSubscription(store, "account")``.

    ``stream_name`` is read as by ``AsyncStore.read``: a stream if it has a ``-``, the whole store if it is ``$all``,
    otherwise a category. ``position`` is the first to read, inclusive; in a category and in ``$all`` it is a global
    position. "end" means only new messages: those whose write begins after the subscription has begun. It begins when
    you enter it, ``async with AsyncSubscription(...) as messages``, or else with the first message that you ask for.

    Nothing is recorded: keep the position of the last message yourself, and pass the number after it next time. So
    reading is the only privilege that it needs, and it works on a standby server. ``$all`` has no gaps, as in
    ``AsyncStore.read``, and includes what consumers record; on a standby, it raises CannotSettle at the first gap.

    The loop ends when you ``close`` it, from wherever you like; leaving the ``async with`` block does that too. After
    an error, and after ``break``, you can iterate again, and it continues with the next message: after a lost
    connection none is missing and none comes twice, and after MessageNotDecodable it continues behind the message that
    cannot be decoded.

    If notifications are on (see install.upgrade), new messages arrive within milliseconds. One connection, outside the
    pool, listens for all subscriptions of the engine. A subscription takes a connection from the pool only while it
    reads.

    If you cancel the task that waits for a message, such as with ``asyncio.wait_for(anext(messages), 15)``, no message
    is lost, and you can ask again.

    Options:

    - ``correlation``: a category; read only messages whose metadata's correlationStreamName is in it. Only for a
      category. None: all.
    - ``batch_size``, from 1: the number of messages per read. By default 1000.
    - ``poll_seconds``: the pause after an empty read, by default 0.1. With notifications, it polls only every 5
      seconds, and is at most this late if the category has many messages that it does not read.
    - ``reconnect``: if the connection is lost, or there is none, read again after growing pauses of up to 10 seconds,
      with warnings. False, the default, raises the error. The first read always raises it. If the server that it then
      connects to lacks the message that was handed out last, as a standby may that has lagged behind, MessageDBError is
      raised in any case.
    """

    def __init__(
        self,
        store: AsyncStore,
        stream_name: str,
        position: Begin = 0,
        *,
        correlation: str | None = None,
        batch_size: int = BATCH_SIZE,
        poll_seconds: float = POLL_SECONDS,
        reconnect: bool = False,
    ) -> None:
        if not isinstance(store, AsyncStore):
            raise unfit_store(store, "AsyncSubscription", COMMITTED)
        # There is an AsyncStore, so this can be imported.
        from sqlalchemy.ext.asyncio import AsyncEngine

        if not isinstance(store.bind, AsyncEngine):
            raise unfit_store(store, "AsyncSubscription", COMMITTED)
        source = Source(store.engine.dialect, store.types, stream_name, position, correlation, batch_size)
        self._follower = _TaskFollower(store.engine, source, poll_seconds, reconnect)
        self._repr = f"<{type(self).__name__} {source.name!r} on {store!r}>"
        # If it is dropped.
        self._finalizer = finalize(self, self._follower.close)

    def __repr__(self) -> str:
        return self._repr

    async def __aenter__(self) -> Self:
        await greenlet_spawn(self._follower.begin)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        while (message := self._follower.take()) is None:
            if not await greenlet_spawn(self._follower.fetch):
                raise StopAsyncIteration
        return message

    async def close(self) -> None:
        """End the iteration: at once if it waits for a message, otherwise when the next one is asked for. Messages that
        were read, and not handed out yet, are dropped.

        Call it from any task, or in the loop. If the server does not answer the read that is under way for 5 seconds,
        its connection is closed.
        """
        self._finalizer.detach()
        listening = self._follower.close()
        if listening is not None and listening.is_ending and listening.runner.get_loop() is asyncio.get_running_loop():
            await asyncio.wait({listening.runner})


class _TaskFollower(Follower[TaskWaiter]):
    def __init__(self, engine: AsyncEngine, source: Source, poll_seconds: float, reconnect: bool) -> None:
        super().__init__(source, TaskWaiter, poll_seconds, reconnect)
        self._engine = engine

    def _wait(self, waiter: TaskWaiter, seconds: float) -> None:
        await_only(waiter.wait(seconds))

    def _perform(self, call: Call[Any]) -> Any:
        return await_only(self._execute(call))

    async def _execute(self, call: Call[Any]) -> Any:
        # Its end is shielded: a cancelled task gives the connection back too.
        async with self._engine.connect() as connection:
            return await connection.run_sync(self.execute, call)

    def _join(self) -> Listening:
        key = self._engine.sync_engine, asyncio.get_running_loop()
        return join(key, self, lambda: EventLoopHost(self._engine), _start)


def _start(run: Callable[[], None]) -> asyncio.Task[None]:
    return asyncio.ensure_future(greenlet_spawn(run))
