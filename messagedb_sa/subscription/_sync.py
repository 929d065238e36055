"""The synchronous subscription, which waits in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Thread, current_thread
from types import TracebackType
from typing import Any
from weakref import finalize

from sqlalchemy import Engine
from typing_extensions import Self

from messagedb_sa.consumer._options import BATCH_SIZE, POLL_SECONDS, unfit_store
from messagedb_sa.consumer._thread_host import ThreadHost
from messagedb_sa.consumer._waiting import ThreadWaiter
from messagedb_sa.message import Message
from messagedb_sa.store import Store
from messagedb_sa.store._operation import Call
from messagedb_sa.subscription._follower import Follower
from messagedb_sa.subscription._listening import Listening, join
from messagedb_sa.subscription._source import COMMITTED, Begin, Source


class Subscription(Iterator[Message]):
    """Iterates over a stream, a category or ``$all`` as it grows:
    ``for message in Subscription(store, "account")``.

    ``stream_name`` is read as by ``Store.read``: a stream if it has a ``-``, the whole store if it is ``$all``,
    otherwise a category. ``position`` is the first to read, inclusive; in a category and in ``$all`` it is a global
    position. "end" means only new messages: those whose write begins after the subscription has begun. It begins when
    you enter it, ``with Subscription(...) as messages``, or else with the first message that you ask for.

    Nothing is recorded: keep the position of the last message yourself, and pass the number after it next time. So
    reading is the only privilege that it needs, and it works on a standby server. ``$all`` has no gaps, as in
    ``Store.read``, and includes what consumers record; on a standby, it raises CannotSettle at the first gap.

    The loop ends when you ``close`` it, from wherever you like; leaving the ``with`` block does that too. After an
    error, and after ``break``, you can iterate again, and it continues with the next message: after a lost connection
    none is missing and none comes twice, and after MessageNotDecodable it continues behind the message that cannot be
    decoded.

    If notifications are on (see install.upgrade), new messages arrive within milliseconds. One connection, outside the
    pool, listens for all subscriptions of the engine. A subscription takes a connection from the pool only while it
    reads.

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
        store: Store,
        stream_name: str,
        position: Begin = 0,
        *,
        correlation: str | None = None,
        batch_size: int = BATCH_SIZE,
        poll_seconds: float = POLL_SECONDS,
        reconnect: bool = False,
    ) -> None:
        if not isinstance(store, Store) or not isinstance(store.bind, Engine):
            raise unfit_store(store, "Subscription", COMMITTED)
        source = Source(store.engine.dialect, store.types, stream_name, position, correlation, batch_size)
        self._follower = _ThreadFollower(store.engine, source, poll_seconds, reconnect)
        self._repr = f"<{type(self).__name__} {source.name!r} on {store!r}>"
        # If it is dropped.
        self._finalizer = finalize(self, self._follower.close)

    def __repr__(self) -> str:
        return self._repr

    def __enter__(self) -> Self:
        self._follower.begin()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Message:
        while (message := self._follower.take()) is None:
            if not self._follower.fetch():
                raise StopIteration
        return message

    def close(self) -> None:
        """End the iteration: at once if it waits for a message, otherwise when the next one is asked for. Messages that
        were read, and not handed out yet, are dropped.

        Call it from any thread, or in the loop. If the server does not answer the read that is under way for 5 seconds,
        its connection is closed.
        """
        self._finalizer.detach()
        listening = self._follower.close()
        if listening is not None and listening.is_ending and listening.runner is not current_thread():
            listening.runner.join()


class _ThreadFollower(Follower[ThreadWaiter]):
    def __init__(self, engine: Engine, source: Source, poll_seconds: float, reconnect: bool) -> None:
        super().__init__(source, ThreadWaiter, poll_seconds, reconnect)
        self._engine = engine

    def _wait(self, waiter: ThreadWaiter, seconds: float) -> None:
        waiter.wait(seconds)

    def _perform(self, call: Call[Any]) -> Any:
        with self._engine.connect() as connection:
            return self.execute(connection, call)

    def _join(self) -> Listening:
        return join(self._engine, self, lambda: ThreadHost(self._engine), _start)


def _start(run: Callable[[], None]) -> Thread:
    thread = Thread(target=run, name="messagedb_sa.subscription", daemon=True)
    thread.start()
    return thread
