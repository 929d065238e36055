"""The asynchronous store: the operations of the synchronous one, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy import URL, Engine, Executable

from messagedb_sa import _arguments as arguments
from messagedb_sa._drivers.urls import shown
from messagedb_sa.entity import AsyncDecision, Entity, Loaded
from messagedb_sa.errors import InvalidArgument, MessageDBError, MessageNotDecodable
from messagedb_sa.message import Message, MessageInput, StreamWriteInput
from messagedb_sa.message_types import MessageTypes
from messagedb_sa.query import AppendCondition, Query, QueryResult
from messagedb_sa.store import _looking as looking
from messagedb_sa.store._administration import ForgetConsumer, SetPosition
from messagedb_sa.store._binds import check_dialect, engine_from_url, engine_of, unfit_bind
from messagedb_sa.store._consumer_status import ConsumerStatus, ConsumerStatuses
from messagedb_sa.store._consumer_waits import WAIT_SECONDS, wait_for_consumer
from messagedb_sa.store._dead_letters import DeadLetter, DeadLetterOperations
from messagedb_sa.store._entities import Entities
from messagedb_sa.store._entity_operations import EntityOperations
from messagedb_sa.store._execute import run_alone, run_joined
from messagedb_sa.store._looking import Activity, CategorySummary, OpenWriter, StreamSummary
from messagedb_sa.store._operation import NO_OF_MESSAGES, SETTLE_SECONDS, Call, Operation, Pause, Steps
from messagedb_sa.store._operations import NOT_GIVEN
from messagedb_sa.store._write_combiner import Turn, WriteCombiner

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session

    from messagedb_sa.metrics import Metrics
    from messagedb_sa.tracing import Tracing

S = TypeVar("S")
T = TypeVar("T")


class AsyncStore:
    """A Message DB store in the database of ``bind``.

    On an AsyncEngine, each call is its own transaction, which is committed; such an AsyncStore is safe to share between
    tasks. On an AsyncConnection or an AsyncSession, each call joins the caller's transaction: it never commits, never
    rolls back, and opens no connection of its own. After WrongExpectedVersion and AppendConditionFailed you can
    continue that transaction, and you need no savepoint for that. After any other error of the database, roll it back,
    or back to a savepoint if you made one.

    Each call is one statement, except reads of ``$all`` that find a gap, reads that find a value which cannot be
    decoded, reads backwards for a member of a consumer group, ``consumers``, ``categories``, ``load`` and ``decide``,
    and the first batch or query on an engine, which asks what the database can do. Positions are inclusive: "read from
    here". The first message of a stream has position 0, the first of the store has global position 1.

    An argument that no store could accept raises InvalidArgument, which is a ValueError, before anything is sent. A
    database without a store raises StoreNotInstalled. Other errors of the driver stay SQLAlchemy's.

    ``combine_writes``, on an AsyncEngine: ``write`` calls of several tasks to one category are written in one
    transaction, each with its own position or error. Otherwise each would wait until the one before it is flushed to
    disk. It is faster from about eight concurrent writers on. With fewer, it may be slower.

    ``types``: instances of the classes registered there can be written, and are the ``data`` of messages that are read.
    A message that does not fit the class of its type then raises MessageNotDecodable, in every read. Data that a read
    would not return unchanged is refused. This includes plain data under the name of a registered class.

    ``tracing``: each write is an OpenTelemetry span, and its messages carry the span's context in their metadata.

    ``metrics``: writes, and waits of reads of ``$all``, are measured by OpenTelemetry, as well as the consumers of this
    store.
    """

    # So that the class has the attributes too, for mocks that are made of it.
    __slots__ = ("__dict__", "__weakref__", "bind", "engine", "metrics", "tracing", "types")

    bind: AsyncEngine | AsyncConnection | AsyncSession | async_scoped_session[Any]
    """What the store was made with."""

    engine: AsyncEngine
    """The engine of ``bind``."""

    types: MessageTypes | None
    """The option ``types``."""

    tracing: Tracing | None
    """The option ``tracing``."""

    metrics: Metrics | None
    """The option ``metrics``."""

    def __init__(
        self,
        bind: AsyncEngine | AsyncConnection | AsyncSession | async_scoped_session[Any],
        *,
        combine_writes: bool = False,
        types: MessageTypes | None = None,
        tracing: Tracing | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        _check_installed()
        from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session

        from messagedb_sa._drivers.greenlets import in_greenlet

        self._connection: Callable[[], AbstractAsyncContextManager[AsyncConnection]]
        if isinstance(bind, AsyncEngine):
            self._connection, sync_engine = bind.connect, bind.sync_engine
        elif isinstance(bind, AsyncConnection):
            self._connection, sync_engine = (lambda: nullcontext(bind)), bind.engine.sync_engine
        elif isinstance(bind, (AsyncSession, async_scoped_session)):
            self._connection, sync_engine = (lambda: _connection_of(bind)), engine_of(bind)
        else:
            raise unfit_bind(bind, asynchronous=True)
        check_dialect(bind, sync_engine.dialect)
        self.bind = bind
        self.engine: AsyncEngine = bind if isinstance(bind, AsyncEngine) else AsyncEngine(sync_engine)
        joined = not isinstance(bind, AsyncEngine)
        if arguments.boolean("combine_writes", combine_writes) and joined:
            raise InvalidArgument("combine_writes", combine_writes, "is only for an AsyncStore on an AsyncEngine")
        self.types = types
        self.tracing = tracing
        self.metrics = metrics
        self._execute = run_joined if joined else run_alone
        self._alone = None if joined else partial(in_greenlet, _run_on, sync_engine)
        operations = partial(EntityOperations, sync_engine.dialect, joined=joined, tracing=tracing, metrics=metrics)
        self._operations = operations(types=types)
        self._entities = Entities(operations, self._operations, types, sync_engine.dialect, joined=joined, awaits=True)
        self._combines_writes = combine_writes
        self._combiners: WeakKeyDictionary[asyncio.AbstractEventLoop, WriteCombiner] = WeakKeyDictionary()
        self._writing: set[asyncio.Task[int]] = set()

    @classmethod
    def from_url(
        cls,
        url: str | URL,
        *,
        combine_writes: bool = False,
        types: MessageTypes | None = None,
        tracing: Tracing | None = None,
        metrics: Metrics | None = None,
        **engine_options: Any,
    ) -> AsyncStore:
        """A store on a new engine, which ``await store.engine.dispose()`` closes.

        ``engine_options`` are those of create_async_engine. A URL without a driver means psycopg.
        """
        _check_installed()
        from sqlalchemy.ext.asyncio import create_async_engine

        engine = engine_from_url(create_async_engine, url, engine_options, default="psycopg", asynchronous=True)
        return cls(engine, combine_writes=combine_writes, types=types, tracing=tracing, metrics=metrics)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {type(self.bind).__name__} {shown(self.engine.url)}>"

    @overload
    async def write(
        self,
        stream_name: str,
        message_type: str,
        data: Any,
        metadata: Mapping[str, Any] | None = None,
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
        metadata: Mapping[str, Any] | None = None,
        expected_version: int | None = None,
        id: UUID | str | None = None,
    ) -> int: ...

    async def write(
        self,
        stream_name: str,
        message_type: object,
        data: Any = NOT_GIVEN,
        metadata: Mapping[str, Any] | None = None,
        expected_version: int | None = None,
        *,
        id: UUID | str | None = None,
    ) -> int:
        """Write a message, and return its position in the stream.

        ``expected_version`` is the position that the stream's last message must have; NO_STREAM (-1) if the stream must
        not exist yet; None for no check. ``id`` is a UUID, None for a new one of version 7. ``data`` is any value that
        JSON can represent, ``metadata`` is a JSON object; None is stored as NULL. Instead of ``message_type`` and
        ``data`` you can pass an instance of a class of the store's ``types``.

        A stream name has at most 2,600 bytes in UTF-8. Its category and the category of the metadata's
        correlationStreamName together have at most 2,600 bytes too. PostgreSQL cannot index longer ones.

        Raises WrongExpectedVersion, and DuplicateMessageId if the id exists already.
        """
        with self._operations.writing(stream_name):
            operation = self._operations.write(stream_name, message_type, data, metadata, expected_version, id)
            if not self._combines_writes:
                return await self._run(operation)
            # A task of its own: if the caller's is cancelled, other writes may still depend on it.
            writing = asyncio.create_task(self._write_combined(self._combiner(), operation))
            self._writing.add(writing)
            writing.add_done_callback(self._writing.discard)
            return await asyncio.shield(writing)

    async def write_batch(
        self,
        stream_name: str,
        messages: Iterable[MessageInput],
        expected_version: int | None = None,
        *,
        condition: AppendCondition | None = None,
    ) -> int:
        """Write messages in order, all or none, in one round trip, and return the position of the last one.

        A message is ``(type, data)``, ``(type, data, metadata)``, a NewMessage, or an instance of a class of the
        store's ``types``. ``expected_version`` is the position that the stream's last message must have before this
        batch. Raises InvalidArgument if there are no messages, and the same errors as ``write``.

        ``condition``: write only if no message that matches its queries came after the decision was made; otherwise
        raise AppendConditionFailed. It holds against every client of the store, since the locks of all its categories
        are held until the transaction ends. It can be checked in a READ COMMITTED transaction only.
        """
        with self._operations.writing(stream_name):
            return await self._run(self._operations.write_batch(stream_name, messages, expected_version, condition))

    async def write_streams(
        self, writes: Iterable[StreamWriteInput], *, condition: AppendCondition | None = None
    ) -> dict[str, int]:
        """Write to several streams, all or none, in one round trip, and return the last position of each stream.

        A write is ``(stream_name, messages)``, ``(stream_name, messages, expected_version)`` or a StreamWrite, with
        messages as in ``write_batch``. With an expected version and no messages, such as ``("account-1", [], 7)``, the
        stream is only checked, and is not in the result; this works in a READ COMMITTED transaction only.
        ``condition`` as in ``write_batch``.

        Two such calls never deadlock, since all take the locks of their categories in
        the same order. Two transactions that write to several categories one by one can deadlock. Each category takes
        one of the server's locks until the transaction ends. By default the server has about 6,400 for all transactions
        together (max_locks_per_transaction times max_connections).

        Raises the same errors as ``write``, for the stream that caused it, and InvalidArgument if the server has too
        few locks. If the caller's SERIALIZABLE transaction fails to serialize, it raises the driver's error instead,
        since PostgreSQL does not say which of several streams caused it.
        """
        with self._operations.writing():
            return await self._run(self._operations.write_streams(writes, condition))

    async def read(
        self,
        stream_name: str,
        sql: str | Executable | None = None,
        position: int | None = None,
        no_of_messages: int = NO_OF_MESSAGES,
        consumer_group_member: int | None = None,
        consumer_group_size: int | None = None,
        *,
        backwards: bool = False,
        allow_holes: bool = False,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> list[Message]:
        """Read at most ``no_of_messages``, by default 1,000: of a stream if the name has a ``-``, of the whole store if
        it is ``$all``, otherwise of a category. ``iter_stream``, ``iter_category`` and ``iter_all`` read them all.

        ``position`` is the first to read, inclusive; None for the beginning. ``no_of_messages`` -1 means no limit. With
        ``backwards=True``, the newest message comes first, and ``position`` None is the end.

        ``sql`` replaces the query: a select, or text with the parameters ``%(stream_name)s``, ``%(position)s``,
        ``%(batch_size)s``, ``%(consumer_group_member)s`` and ``%(consumer_group_size)s``; it must return the columns of
        a message. Do not pass an argument that it does not use.

        ``$all`` is ordered by global position. No message is returned before one with a lower position that may still
        be committed. Continue after the last message that you got, and you miss nothing. If a number is missing, the
        read waits until the transactions that are writing at that moment have ended, for at most ``settle_seconds`` (0:
        it does not wait). If that is not enough, it returns what comes before the missing number, perhaps nothing, and
        logs a warning. It raises CannotSettle if waiting would not help: on a standby server, and in a REPEATABLE READ
        or SERIALIZABLE transaction. With ``allow_holes=True`` it does not look for gaps and never waits; continue after
        its last message, and you may miss messages that were still being written. Backwards it never waits either: it
        returns what is committed.
        """
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
                backwards,
            )
        )

    async def read_stream(
        self,
        stream_name: str,
        position: int | None = None,
        no_of_messages: int = NO_OF_MESSAGES,
        *,
        backwards: bool = False,
        condition: str | None = None,
    ) -> list[Message]:
        """At most ``no_of_messages`` of a stream, by default 1,000, in order. ``iter_stream`` reads them all.

        ``position`` is the first to read, inclusive; None for the beginning. ``no_of_messages`` -1 means no limit. With
        ``backwards=True``, the newest message comes first, and ``position`` None is the end. If the stream does not
        exist, there are none. A stream without an id has its category's name: read that with ``read_category``.

        ``condition`` is SQL about the columns of messages, executed as it is: never build it from user input. It is not
        for reads backwards. Raises ConditionNotActivated if the session does not allow conditions.
        """
        return await self._run(
            self._operations.read_stream(stream_name, position, no_of_messages, condition, backwards)
        )

    async def read_category(
        self,
        category_name: str,
        position: int | None = None,
        no_of_messages: int = NO_OF_MESSAGES,
        consumer_group_member: int | None = None,
        consumer_group_size: int | None = None,
        *,
        backwards: bool = False,
        correlation: str | None = None,
        condition: str | None = None,
    ) -> list[Message]:
        """At most ``no_of_messages`` of a category's streams, by default 1,000, in order. ``iter_category`` reads all.

        ``position`` is a global position. It, ``no_of_messages``, ``backwards`` and ``condition`` are as in
        ``read_stream``.

        A consumer group of ``consumer_group_size`` members (1 to 32767) divides the streams by cardinal id, so that
        each stream has one member; ``consumer_group_member`` counts from 0. Streams without an id belong to no member.
        ``correlation`` selects the messages whose metadata's correlationStreamName is in that category.
        """
        return await self._run(
            self._operations.read_category(
                category_name,
                position,
                no_of_messages,
                consumer_group_member,
                consumer_group_size,
                correlation,
                condition,
                backwards,
            )
        )

    async def read_query(
        self, queries: Query | Iterable[Query], position: int | None = None, no_of_messages: int = -1
    ) -> QueryResult:
        """The messages that match one of the queries, from global position ``position`` on, sorted by it.

        The result is a list with a ``condition``: pass it to ``write_batch`` or ``write_streams``, which write only if
        no other message that matches has come. A decision needs all that matches, so by default there is no limit. With
        a limit, the condition is about what comes after the last message that you got.

        A store without the server function of revision messagedb_0005 reads each category from ``position`` to its end.
        With it, PostgreSQL can use the index ``schema.tags_index``.
        """
        return cast("QueryResult", await self._run(self._operations.read_query(queries, position, no_of_messages)))

    def iter_query(
        self, queries: Query | Iterable[Query], position: int | None = None, *, batch_size: int = 1000
    ) -> AsyncIterator[Message]:
        """As ``read_query`` in constant memory, without a condition: ``batch_size`` messages (from 1) per round trip.

        Also returns messages that are written meanwhile; ends when it reaches the last one. If the queries are of
        several categories, such messages come in their category's order, perhaps after one of another category that
        has a higher global position.
        """
        return self._pages(self._operations.iter_query(queries, position, batch_size))

    async def read_last_message(self, stream_name: str, message_type: str | None = None) -> Message | None:
        """The stream's last message, or its last one of ``message_type``; None if there is none."""
        return await self._run(self._operations.read_last_message(stream_name, message_type))

    async def read_message(self, id: UUID | str) -> Message | None:
        """The message with this id; None if there is none."""
        return await self._run(self._operations.read_message(id))

    async def stream_version(self, stream_name: str) -> int:
        """The position of the stream's last message, NO_STREAM (-1) if the stream does not exist.

        If you pass it as ``expected_version``, a write succeeds only if nobody else wrote in between.
        """
        return await self._run(self._operations.stream_version(stream_name))

    async def last_global_position(self, category_name: str) -> int:
        """The global position of a category's last message, 0 if it has none; of the whole store's, if it is ``$all``.

        In the whole store, messages with lower global positions may still be uncommitted: see ``read``.
        """
        return await self._run(self._operations.category_end(category_name))

    async def stream_identifiers(self, category_name: str) -> list[str]:
        """The ids of a category's streams: what follows the first ``-`` of their names, distinct, sorted by code point.

        Reads every message of the category. Streams of other categories do not count, such as its snapshot streams
        (``category:snapshot-id``).
        """
        return await self._run(self._operations.stream_identifiers(category_name))

    def iter_stream(
        self,
        stream_name: str,
        position: int | None = None,
        *,
        batch_size: int = 1000,
        backwards: bool = False,
        condition: str | None = None,
    ) -> AsyncIterator[Message]:
        """As ``read_stream`` without a limit, in constant memory: ``batch_size`` messages (from 1) per round trip.

        Also returns messages that are written meanwhile; ends when it reaches the last one. With ``backwards=True`` it
        goes from the newest message at its start to the first one, and returns none that are written meanwhile.
        """
        return self._pages(self._operations.iter_stream(stream_name, position, batch_size, condition, backwards))

    def iter_category(
        self,
        category_name: str,
        position: int | None = None,
        consumer_group_member: int | None = None,
        consumer_group_size: int | None = None,
        *,
        batch_size: int = 1000,
        backwards: bool = False,
        correlation: str | None = None,
        condition: str | None = None,
    ) -> AsyncIterator[Message]:
        """As ``read_category`` without a limit, in constant memory: ``batch_size`` messages (from 1) per round trip.

        Also returns messages that are written meanwhile; ends when it reaches the last one. With ``backwards=True`` it
        goes from the newest message at its start to the first one, and returns none that are written meanwhile.
        """
        return self._pages(
            self._operations.iter_category(
                category_name,
                position,
                consumer_group_member,
                consumer_group_size,
                batch_size,
                correlation,
                condition,
                backwards,
            )
        )

    def iter_all(
        self,
        position: int | None = None,
        *,
        batch_size: int = 1000,
        backwards: bool = False,
        allow_holes: bool = False,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> AsyncIterator[Message]:
        """As ``read("$all")`` without a limit, in constant memory: ``batch_size`` messages (from 1) per round trip.

        It returns everything that had been committed when it began, unless a writing transaction stays open for longer
        than ``settle_seconds``; then it ends before the first gap. Each page may wait that long. Later pages use what
        earlier ones learned about gaps. With ``backwards=True`` it goes from the newest message at its start to the
        first one, never waits, and misses messages that are committed behind it meanwhile.
        """
        return self._pages(self._operations.iter_all(position, batch_size, allow_holes, settle_seconds, backwards))

    async def load(self, entity: Entity[S], id: str | UUID) -> Loaded[S]:
        """The state of the entity with this id as it is now, and its version, which is NO_STREAM (-1) without events.

        Reads the whole stream, in pages; with a snapshot, only what comes after it, in one round trip; with a state in
        the entity's cache, only what is new. If an event cannot be decoded, MessageNotDecodable is raised. No
        connection is in use while events are applied, unless it is the caller's. The state is yours: you may change it.
        """
        return await self._follow(self._entities.load(entity, id))

    async def decide(
        self,
        entity: Entity[S],
        id: str | UUID,
        function: AsyncDecision[S],
        *,
        metadata: Mapping[str, Any] | None = None,
        command_id: UUID | str | None = None,
        retries: int = 0,
    ) -> Loaded[S]:
        """Load the entity, call ``function`` with its state, write what it returns, and return the state with that.

        The function may change the state that it gets. It returns a message as in ``write_batch``, a list of them, or
        None or an empty list to write nothing. All are written, or none, in one round trip, if the stream is
        still at the version that was loaded; otherwise WrongExpectedVersion is raised. With ``retries``, on an
        AsyncEngine, such a lost race is tried again so many times: what is new is read, and the function is
        called with the new state. No connection is in use while the function runs, unless it is the caller's.
        Its errors are raised as they are, and nothing is written.

        ``metadata`` is for all messages; a message's own keys take precedence. With ``command_id``, a command that is
        repeated has its effect once: the ids of the messages are made of it (see the guide), so the load finds out if
        they were written. Then the function is not called, and the state is returned. So it is if two do the same at
        once. A command that wrote nothing is not remembered, and its function is called again.

        If a snapshot is due, it is written after the messages, in a round trip of its own. If that fails, a warning is
        logged; but in the caller's transaction, an error of the database is raised. Raises the same errors as
        ``write_batch``.
        """
        return await self._follow(self._entities.decide(entity, id, function, metadata, command_id, retries))

    async def read_correlation(
        self, correlation_stream_name: str, position: int = 0, no_of_messages: int = NO_OF_MESSAGES
    ) -> list[Message]:
        """The messages of all categories whose metadata has this correlationStreamName, by global position.

        ``position`` is the global position to begin with, inclusive. ``no_of_messages`` -1 means no limit. If the
        database has ``schema.correlation_index``, PostgreSQL reads only these messages, otherwise the whole store. It
        does not wait for writers, as a read of ``$all`` does: a message that is being written may get a lower global
        position than the last one that you got.
        """
        return await self._run(self._operations.read_correlation(correlation_stream_name, position, no_of_messages))

    def iter_correlation(
        self, correlation_stream_name: str, position: int = 0, *, batch_size: int = 1000
    ) -> AsyncIterator[Message]:
        """As ``read_correlation`` without a limit, in constant memory: ``batch_size`` messages (from 1) per round trip.

        Also returns messages that are written meanwhile; ends when it reaches the last one.
        """
        return self._pages(self._operations.iter_correlation(correlation_stream_name, position, batch_size))

    async def read_metadata(
        self,
        fields: Mapping[str, Any],
        category_name: str | None = None,
        position: int | None = None,
        no_of_messages: int = NO_OF_MESSAGES,
        *,
        backwards: bool = False,
    ) -> list[Message]:
        """The messages of a category, or of the whole store, whose metadata has these fields, by global position.

        A value must be equal; of an object or an array, the metadata must have at least what ``fields`` has: this is
        PostgreSQL's ``metadata @> fields``. ``position`` is a global position. It, ``no_of_messages`` and ``backwards``
        are as in ``read``. Reads the messages one after the other until enough are found. For a correlation, use
        ``read_correlation``, which has an index. It does not wait for writers, as a read of ``$all`` does.
        """
        return await self._run(
            self._operations.read_metadata(fields, category_name, position, no_of_messages, backwards)
        )

    def iter_metadata(
        self,
        fields: Mapping[str, Any],
        category_name: str | None = None,
        position: int | None = None,
        *,
        batch_size: int = 1000,
        backwards: bool = False,
    ) -> AsyncIterator[Message]:
        """As ``read_metadata`` without a limit, in constant memory: ``batch_size`` messages (from 1) per round trip.

        Also returns messages that are written meanwhile; ends when it reaches the last one. With ``backwards=True`` it
        goes from the newest message at its start to the first one, and returns none that are written meanwhile.
        """
        return self._pages(self._operations.iter_metadata(fields, category_name, position, batch_size, backwards))

    async def read_causes(self, message: Message, no_of_messages: int = NO_OF_MESSAGES) -> list[Message]:
        """The cause of a message, the cause of that one, and so on, by global position: the first cause comes first.

        The cause is named by the causation fields of the metadata, as ``follow`` writes them. If one is not in the
        store, the chain ends there. If there are more than ``no_of_messages``, it returns the nearest; -1 means no
        limit. The list is empty if the message itself is not in the store.
        """
        return await self._run(self._operations.read_causes(message, no_of_messages))

    async def read_effects(self, message: Message, no_of_messages: int = NO_OF_MESSAGES) -> list[Message]:
        """The messages that follow a message, those that follow them, and so on, by global position.

        If there are more than ``no_of_messages``, it returns the nearest: those with the fewest messages in between. -1
        means no limit. If the database has ``schema.causation_index``, PostgreSQL reads only these messages, otherwise
        the whole store, once for each step.
        """
        return await self._run(self._operations.read_effects(message, no_of_messages))

    async def consumers(
        self,
        category_name: str | None = None,
        *,
        lag: bool = True,
        max_lag: int | None = None,
        identifiers: Iterable[str | None] | None = None,
    ) -> list[ConsumerStatus]:
        """The consumers of a category, of ``$all``, or, for None, of every category: the position and the lag of each,
        sorted by category and identifier.

        They are found by the positions that they recorded; a consumer that has recorded none, or that was forgotten, is
        missing. From the revision messagedb_0004 on, finding them takes the same time however often they recorded.
        ``lag`` counts the messages after each position. If there may be millions of them, pass ``lag=False``: then
        ``lag`` is None, and ``waiting_since`` is looked up in an index. Or pass ``max_lag``: then ``lag`` is None for a
        consumer whose category has more than so many messages after its position, and no more of them are read.

        ``identifiers``: only these consumers of the category, all of them, also those that have recorded nothing: then
        ``position`` is None, and all messages of the category are after it.
        """
        return await self._run(ConsumerStatuses(category_name, lag, max_lag, identifiers))

    async def set_consumer_position(
        self,
        category_name: str,
        position: int | Literal["end"],
        identifier: str | None = None,
        *,
        group_member: int | None = None,
        group_size: int | None = None,
    ) -> None:
        """Make a consumer begin at the global position ``position``, inclusive; "end" is after the last message.

        With ``group_size``, which is also the number of ``slots``, it is the position of one ``group_member`` or slot,
        or of all, for None. The consumer need not exist. It works wherever the position is kept, and needs no privilege
        but those to write.

        Stop the consumer first. If it runs, it raises PositionConflict when it records its position next; with slots,
        it continues from the position that you set.
        """
        await self._run(SetPosition(self.engine.dialect, category_name, position, identifier, group_member, group_size))

    async def forget_consumer(
        self, category_name: str, identifier: str | None = None, *, group_size: int | None = None
    ) -> int:
        """Forget the positions of a consumer, of all its members and slots: it is no longer among ``consumers``, and if
        it runs again, it begins anew. Returns the number of positions.

        With ``group_size``, only those of its group of that size, or of that number of slots, as after a change of the
        number. Dead letters stay. Nothing is deleted: a message in the stream of each position says that it does not
        count any more, so no privilege is needed but those to read and to write. Stop the consumer first, as for
        ``set_consumer_position``.
        """
        return await self._run(ForgetConsumer(self.engine.dialect, category_name, identifier, group_size))

    def iter_dead_letters(
        self, category_name: str | None = None, *, batch_size: int = 100, no_of_messages: int | None = None
    ) -> AsyncIterator[DeadLetter]:
        """The messages that consumers of the category, or of ``$all``, parked, and that were neither handled nor
        discarded since, in the order in which they were parked first; ``batch_size`` (from 1) per round trip. For None,
        those of every category, one category after another.

        The messages are as they are stored: classes of the store's ``types`` are not used. Reads all that was ever
        parked there, or with ``no_of_messages`` (from 1) the last so many of each category. ``Consumer.replay`` hands
        dead letters to the handlers again.
        """
        return self._pages(DeadLetterOperations(self.engine.dialect).pages(category_name, batch_size, no_of_messages))

    async def read_dead_letter(self, id: UUID | str) -> DeadLetter | None:
        """The dead letter with this id. None if there is none, and if it was handled or discarded since."""
        return await self._run(DeadLetterOperations(self.engine.dialect).read(id))

    async def discard_dead_letters(self, dead_letters: Iterable[DeadLetter]) -> int:
        """Discard dead letters, all or none, in one round trip: nobody will handle them. Returns how many that were.

        Those that were handled or discarded meanwhile do not count. A transaction that replays one is rolled back. They
        stay in the store as messages, but no method returns them any more.
        """
        return await self._run(DeadLetterOperations(self.engine.dialect).discard(dead_letters))

    async def wait_for_consumer(
        self,
        category_name: str,
        identifier: str | None = None,
        until: str | None = None,
        *,
        seconds: float = WAIT_SECONDS,
        correlation: str | None = None,
    ) -> None:
        """Wait until a consumer has handled what is there at this moment, so that its read model has your own writes.

        ``until`` is the consumer's category, a stream of it, or ``$all``; for a consumer of ``$all``, any category or
        stream. None means all that the consumer reads. With slots or members, it waits for those that have messages to
        handle. ``correlation`` is that of the consumer.

        If ``seconds`` pass, it raises NotCaughtUp, which is also a TimeoutError; 0 means to look once. A consumer that
        has recorded no position yet is waited for. No connection is held between two looks. Only for a Store on an
        Engine: what a transaction has written cannot be handled before it is committed.
        """
        return await self._follow(
            wait_for_consumer(
                self.bind, category_name, identifier, until, seconds, correlation, joined=self._execute is run_joined
            )
        )

    async def categories(self, *, exact: bool = False) -> list[CategorySummary]:
        """The categories of the store, sorted by name: the number of messages of each, and its last one.

        If the table has more than 1,000 pages of PostgreSQL's, about 25,000 messages, the numbers of large categories
        are estimates from a sample of so many pages. So the time grows with the number of categories, and not with that
        of messages. With ``exact=True`` all are counted, which reads the whole table.
        """
        return await self._run(looking.CategorySummaries(exact))

    def iter_streams(
        self, category_name: str, *, batch_size: int = 1000, after: str | None = None
    ) -> AsyncIterator[StreamSummary]:
        """The streams of a category in constant memory, ``batch_size`` streams (from 1) per round trip.

        They come in the order of their names in the database's collation; those after the stream ``after``, if it is
        given. A stream takes the same time however many messages it has. Streams of other categories that the collation
        sorts among them take time too: those of ``Account`` among ``account``, and where it ignores punctuation, as in
        ``en_US.utf8``, those of all categories that begin with the same letters.
        """
        return self._pages(looking.StreamPage.first(category_name, batch_size, after))

    async def recent_streams(
        self, category_name: str | None = None, *, no_of_messages: int = NO_OF_MESSAGES
    ) -> list[StreamSummary]:
        """The streams of the last ``no_of_messages`` of a category, or of the whole store, written last comes first."""
        return await self._run(looking.recent_streams(category_name, no_of_messages))

    async def activity(self, category_name: str | None = None, *, no_of_messages: int = 10_000) -> list[Activity]:
        """How many of the last ``no_of_messages`` of a category, or of the whole store, were written in each minute.

        By minute, category and type, sorted. A minute without messages is missing, and the first one may have had more.
        """
        return await self._run(looking.activity(category_name, no_of_messages))

    async def open_writers(self) -> list[OpenWriter]:
        """The transactions that have written messages, or are about to, and are still open, the oldest first.

        A read of ``$all`` that finds a gap waits for them. The caller's own transaction is not among them. A standby
        server does not know those of the primary.
        """
        return await self._run(looking.open_writers())

    async def version(self) -> str:
        """The version of the Message DB interface in the database, such as 1.3.0."""
        return await self._run(self._operations.version())

    async def _run(self, call: Call[T]) -> T:
        if self._alone is not None:
            result: T = await self._alone(call)
            return result
        async with self._connection() as connection:
            return await connection.run_sync(self._execute, call)

    async def _follow(self, steps: Steps[T]) -> T:
        answer: Any = None
        error: BaseException | None = None
        while True:
            try:
                step = steps.send(answer) if error is None else steps.throw(error)
            except StopIteration as end:
                return cast("T", end.value)
            answer = error = None
            try:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                elif isinstance(step, Awaitable):
                    answer = await step
                else:
                    answer = await self._run(step)
            except BaseException as raised:  # noqa: BLE001 - it is raised again, unless the steps deal with it
                error = raised

    def _combiner(self) -> WriteCombiner:
        """The one of the running event loop: no write waits for a task of another loop, which may have ended."""
        loop = asyncio.get_running_loop()
        combiner = self._combiners.get(loop)
        if combiner is None:
            # The tasks that a closed loop left behind would keep it for ever.
            for reference in self._combiners.keyrefs():
                other = reference()
                if other is not None and other.is_closed():
                    self._combiners.pop(other, None)
            combiner = self._combiners[loop] = WriteCombiner(self._operations.write_each)
        return combiner

    async def _write_combined(self, combiner: WriteCombiner, operation: Operation[int]) -> int:
        with combiner.waiting(operation) as write:
            answer = await asyncio.wrap_future(write.answer)
            if isinstance(answer, Turn):
                with combiner.executing(answer) as combined:
                    combined.outcomes = await self._run(combined)
                answer = combined.outcomes[0]
        if isinstance(answer, BaseException):
            raise answer
        return await self._run(operation) if answer is None else answer

    async def _pages(self, page: Any) -> AsyncIterator[Any]:
        while page is not None:
            try:
                messages = await self._run(page)
            except MessageNotDecodable as error:
                for message in error._before:
                    yield message
                raise
            for message in messages:
                yield message
            page = page.after(messages)


def _run_on(engine: Engine, call: Call[T]) -> T:
    with engine.connect() as connection:
        return run_alone(connection, call)


@asynccontextmanager
async def _connection_of(session: AsyncSession | async_scoped_session[Any]) -> AsyncIterator[AsyncConnection]:
    yield await session.connection()


def _check_installed() -> None:
    # SQLAlchemy's own module is imported only when it is used: it takes its time, and SQLAlchemy 2.1 does not install
    # greenlet, without which the import fails.
    try:
        import_module("greenlet")
        import sqlalchemy.ext.asyncio  # noqa: F401
    except ImportError as error:
        raise MessageDBError(
            'AsyncStore needs greenlet and an asynchronous driver: pip install "messagedb-sa[asyncpg]", or [psycopg]'
        ) from error
