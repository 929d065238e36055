"""The asynchronous consumer: the same one, whose handlers are awaited."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import isawaitable
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker
from sqlalchemy.util import await_only, greenlet_spawn

from messagedb_sa.async_store import AsyncStore
from messagedb_sa.consumer_options import ConsumerOptions, Handler, Handlers, session_factory
from messagedb_sa.consuming import Consuming
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.message import Message
from messagedb_sa.waiting import AsyncWaiting

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AsyncConsumer"]

_Plain: TypeAlias = "Callable[[Message], object]"
_OnConnection: TypeAlias = "Callable[[Message, AsyncConnection], object]"
_OnSession: TypeAlias = "Callable[[Message, Any], object]"


class AsyncConsumer:
    """As Consumer, on an AsyncStore: handlers are coroutine functions (or plain ones), and with ``transactional`` they
    get an AsyncConnection or, of an async_sessionmaker or AsyncSession class, an AsyncSession.

    When the task that runs it is cancelled, the message in hand is not finished, and is the next to be handled.
    """

    @overload
    def __init__(
        self,
        store: AsyncStore,
        category: str,
        handlers: _Plain | Mapping[Any, _Plain],
        identifier: str | None = None,
        *,
        transactional: Literal[False] = False,
        **options: Unpack[ConsumerOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        store: AsyncStore,
        category: str,
        handlers: _OnConnection | Mapping[Any, _OnConnection],
        identifier: str | None = None,
        *,
        transactional: Literal[True],
        **options: Unpack[ConsumerOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        store: AsyncStore,
        category: str,
        handlers: _OnSession | Mapping[Any, _OnSession],
        identifier: str | None = None,
        *,
        transactional: async_sessionmaker[Any] | type[AsyncSession],
        **options: Unpack[ConsumerOptions],
    ) -> None: ...

    def __init__(
        self,
        store: AsyncStore,
        category: str,
        handlers: Handlers,
        identifier: str | None = None,
        *,
        transactional: bool | async_sessionmaker[Any] | type[AsyncSession] = False,
        **options: Unpack[ConsumerOptions],
    ) -> None:
        if not isinstance(store, AsyncStore) or store._operations.joined:
            raise InvalidArgument(
                "store", store, "is no AsyncStore on an AsyncEngine, as it has to be: a consumer commits by itself"
            )
        self._consuming = Consuming(_EventLoop(store, transactional), category, handlers, identifier, **options)

    async def run(self, *, handle_signals: bool = True) -> None:
        """As ``Consumer.run``."""
        await greenlet_spawn(self._consuming.run, handle_signals=handle_signals)

    async def run_until_caught_up(self, *, progress: bool | None = None, handle_signals: bool = True) -> int:
        """As ``Consumer.run_until_caught_up``."""
        return await greenlet_spawn(
            self._consuming.run, until_caught_up=True, progress=progress, handle_signals=handle_signals
        )

    def stop(self) -> None:
        """As ``Consumer.stop``."""
        self._consuming.stop()


class _EventLoop:
    """A Host in SQLAlchemy's greenlet."""

    def __init__(self, store: AsyncStore, transactional: object) -> None:
        self.engine = store.engine.sync_engine
        self.operations = store._operations
        self.transactional = transactional is not False
        self._async_engine = store.engine
        self._waiting = AsyncWaiting()
        self.wake = self._waiting.wake
        self._session = session_factory(transactional, async_sessionmaker, AsyncSession)

    def waiting(self) -> AbstractContextManager[None]:
        return nullcontext()

    def wait(self, seconds: float, connection: Connection | None) -> set[str]:
        return await_only(self._waiting.wait(seconds, connection))

    def call(self, handler: Handler, *arguments: Any) -> None:
        result = handler(*arguments)
        # What it commonly is, is looked for first: isawaitable() takes as long as the rest of this.
        if type(result) is CoroutineType or isawaitable(result):
            await_only(result)

    @contextmanager
    def joined(self, connection: Connection) -> Iterator[Any]:
        joined = AsyncConnection(self._async_engine, connection)
        if self._session is None:
            yield joined
            return
        session = self._session(bind=joined, join_transaction_mode="conditional_savepoint")
        try:
            yield session
            await_only(session.flush())
        finally:
            await_only(session.close())
