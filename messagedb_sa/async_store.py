"""The asynchronous store: the same operations, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar, overload
from uuid import UUID

from sqlalchemy import URL, Executable
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session, create_async_engine

from messagedb_sa import arguments, monitoring
from messagedb_sa.combining import Combiner
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.execution import run_alone, run_joined
from messagedb_sa.message import Message, MessageInput
from messagedb_sa.message_types import MessageTypes
from messagedb_sa.monitoring import ConsumerStatus
from messagedb_sa.operations import NOT_GIVEN, SETTLE_SECONDS, Operation, Operations, Page, StreamWriteInput
from messagedb_sa.urls import with_driver

if TYPE_CHECKING:
    from messagedb_sa.tracing import Tracing

__all__ = ["AsyncStore"]

T = TypeVar("T")


class AsyncStore:
    """As Store, on an AsyncEngine, an AsyncConnection or an AsyncSession: the same methods, statements and errors."""

    def __init__(
        self,
        bind: AsyncEngine | AsyncConnection | AsyncSession | async_scoped_session[Any],
        *,
        combine_writes: bool = False,
        types: MessageTypes | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._connection: Callable[[], AbstractAsyncContextManager[AsyncConnection]]
        if isinstance(bind, AsyncEngine):
            self._connection, sync_engine = bind.connect, bind.sync_engine
        elif isinstance(bind, AsyncConnection):
            self._connection, sync_engine = (lambda: nullcontext(bind)), bind.engine.sync_engine
        elif isinstance(bind, (AsyncSession, async_scoped_session)):
            self._connection, sync_engine = (lambda: _of_session(bind)), bind.get_bind().engine
        else:
            raise InvalidArgument("bind", bind, "is no AsyncEngine, AsyncConnection or AsyncSession of SQLAlchemy")
        if sync_engine.dialect.name != "postgresql":
            raise InvalidArgument("bind", bind, "is not on PostgreSQL")
        self.engine = bind if isinstance(bind, AsyncEngine) else AsyncEngine(sync_engine)
        joined = not isinstance(bind, AsyncEngine)
        self._execute = run_joined if joined else run_alone
        self._operations = Operations(sync_engine.dialect, joined=joined, types=types, tracing=tracing)
        if combine_writes and joined:
            raise InvalidArgument("combine_writes", combine_writes, "is for an AsyncStore on an AsyncEngine")
        self._combiner = Combiner(self._operations.write_each) if combine_writes else None
        self._turns: set[asyncio.Task[int]] = set()

    @classmethod
    def from_url(
        cls,
        url: str | URL,
        *,
        combine_writes: bool = False,
        types: MessageTypes | None = None,
        tracing: Tracing | None = None,
        **engine_options: Any,
    ) -> AsyncStore:
        """A store on an engine of its own, which ``await store.engine.dispose()`` closes.

        ``engine_options`` are create_async_engine's. A URL that names no driver means psycopg.
        """
        engine = create_async_engine(with_driver(url, "psycopg"), **engine_options)
        return cls(engine, combine_writes=combine_writes, types=types, tracing=tracing)

    @overload
    async def write(
        self,
        stream_name: str,
        message_type: str,
        data: Any,
        metadata: Any = None,
        expected_version: int | None = None,
        *,
        id: UUID | str | None = None,
    ) -> int: ...

    @overload
    async def write(
        self,
        stream_name: str,
        message_type: object,
        *,
        metadata: dict[str, Any] | None = None,
        expected_version: int | None = None,
        id: UUID | str | None = None,
    ) -> int: ...

    async def write(
        self,
        stream_name: str,
        message_type: object,
        data: Any = NOT_GIVEN,
        metadata: Any = None,
        expected_version: int | None = None,
        *,
        id: UUID | str | None = None,
    ) -> int:
        """As ``Store.write``."""
        with self._operations.writing(stream_name):
            operation = self._operations.write(stream_name, message_type, data, metadata, expected_version, id)
            if self._combiner is None:
                return await self._run(operation)
            # A task of its own, for others may depend on it when the caller's is cancelled.
            turn = asyncio.create_task(self._write_in_turn(self._combiner, operation))
            self._turns.add(turn)
            turn.add_done_callback(self._turns.discard)
            return await asyncio.shield(turn)

    async def write_batch(
        self, stream_name: str, messages: Iterable[MessageInput], expected_version: int | None = None
    ) -> int:
        """As ``Store.write_batch``."""
        with self._operations.writing(stream_name):
            return await self._run(self._operations.write_batch(stream_name, messages, expected_version))

    async def write_streams(self, writes: Iterable[StreamWriteInput]) -> dict[str, int]:
        """As ``Store.write_streams``."""
        with self._operations.writing():
            return await self._run(self._operations.write_streams(writes))

    async def read(
        self,
        stream_name: str,
        sql: str | Executable | None = None,
        position: int = 0,
        no_of_messages: int = 1000,
        consumer_group_member: int | None = None,
        consumer_group_size: int | None = None,
        *,
        allow_holes: bool = False,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> list[Message]:
        """As ``Store.read``."""
        return await self._run(
            self._operations.read(
                stream_name,
                sql,
                position,
                no_of_messages,
                consumer_group_member,
                consumer_group_size,
                allow_holes,
                settle_seconds,
            )
        )

    async def read_stream(
        self, stream_name: str, position: int = 0, no_of_messages: int = 1000, *, condition: str | None = None
    ) -> list[Message]:
        """As ``Store.read_stream``."""
        return await self._run(self._operations.read_stream(stream_name, position, no_of_messages, condition))

    async def read_category(
        self,
        category_name: str,
        position: int = 0,
        no_of_messages: int = 1000,
        consumer_group_member: int | None = None,
        consumer_group_size: int | None = None,
        *,
        correlation: str | None = None,
        condition: str | None = None,
    ) -> list[Message]:
        """As ``Store.read_category``."""
        return await self._run(
            self._operations.read_category(
                category_name,
                position,
                no_of_messages,
                consumer_group_member,
                consumer_group_size,
                correlation,
                condition,
            )
        )

    async def read_last_message(self, stream_name: str, message_type: str | None = None) -> Message | None:
        """As ``Store.read_last_message``."""
        return await self._run(self._operations.read_last_message(stream_name, message_type))

    async def stream_version(self, stream_name: str) -> int | None:
        """As ``Store.stream_version``."""
        return await self._run(self._operations.stream_version(stream_name))

    async def stream_identifiers(self, category_name: str) -> list[str]:
        """As ``Store.stream_identifiers``."""
        return await self._run(self._operations.stream_identifiers(category_name))

    def iter_stream(
        self, stream_name: str, position: int = 0, *, batch_size: int = 1000, condition: str | None = None
    ) -> AsyncIterator[Message]:
        """As ``Store.iter_stream``."""
        page_size = arguments.integer("batch_size", batch_size, minimum=1)
        return self._pages(self._operations.read_stream(stream_name, position, page_size, condition))

    def iter_category(
        self,
        category_name: str,
        position: int = 0,
        consumer_group_member: int | None = None,
        consumer_group_size: int | None = None,
        *,
        batch_size: int = 1000,
        correlation: str | None = None,
        condition: str | None = None,
    ) -> AsyncIterator[Message]:
        """As ``Store.iter_category``."""
        page_size = arguments.integer("batch_size", batch_size, minimum=1)
        return self._pages(
            self._operations.read_category(
                category_name,
                position,
                page_size,
                consumer_group_member,
                consumer_group_size,
                correlation,
                condition,
            )
        )

    def iter_all(
        self,
        position: int = 1,
        *,
        batch_size: int = 1000,
        allow_holes: bool = False,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> AsyncIterator[Message]:
        """As ``Store.iter_all``."""
        page_size = arguments.integer("batch_size", batch_size, minimum=1)
        return self._pages(self._operations.read_all(position, page_size, allow_holes, settle_seconds))

    async def consumers(self, category_name: str) -> list[ConsumerStatus]:
        """As ``Store.consumers``."""
        found = await self._run(monitoring.recorded(category_name))
        after = [recorded.position or 0 for recorded in found.values()]
        return monitoring.statuses(
            category_name, found, await self._run(monitoring.waiting(category_name, [*found], after))
        )

    async def version(self) -> str:
        """As ``Store.version``."""
        return await self._run(self._operations.version())

    async def _run(self, operation: Operation[T]) -> T:
        async with self._connection() as connection:
            return await connection.run_sync(self._execute, operation)

    async def _write_in_turn(self, combiner: Combiner, operation: Operation[int]) -> int:
        answer = await asyncio.wrap_future(combiner.arrive(operation).answer)
        if isinstance(answer, list):
            with combiner.written(answer) as batch:
                batch.outcomes = await self._run(batch.operation)
            answer = batch.outcomes[0]
        if isinstance(answer, BaseException):
            raise answer
        return await self._run(operation) if answer is None else answer

    async def _pages(self, page: Page | None) -> AsyncIterator[Message]:
        while page is not None:
            messages = await self._run(page)
            for message in messages:
                yield message
            page = page.after(messages)


@asynccontextmanager
async def _of_session(session: AsyncSession | async_scoped_session[Any]) -> AsyncIterator[AsyncConnection]:
    yield await session.connection()
