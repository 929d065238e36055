"""The store: Message DB's operations on a SQLAlchemy engine, or in a transaction of the caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar, overload
from uuid import UUID

from sqlalchemy import URL, Connection, Engine, Executable, create_engine
from sqlalchemy.orm import Session, scoped_session

from messagedb_sa import arguments, monitoring
from messagedb_sa.combining import Combiner
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.execution import run_alone, run_joined
from messagedb_sa.message import Message, MessageInput
from messagedb_sa.message_types import MessageTypes
from messagedb_sa.monitoring import ConsumerStatus
from messagedb_sa.operations import (
    NO_STREAM,
    NOT_GIVEN,
    SETTLE_SECONDS,
    Operation,
    Operations,
    Page,
    StreamWriteInput,
)
from messagedb_sa.urls import with_driver

if TYPE_CHECKING:
    from messagedb_sa.tracing import Tracing

__all__ = ["NO_STREAM", "Store"]

T = TypeVar("T")


class Store:
    """A Message DB store in the database of ``bind``.

    On an Engine each call is a transaction of its own, committed; such a Store is safe to share between threads. On a
    Connection or an ORM Session each call joins the caller's transaction: it never commits, never rolls back, and
    opens no connection of its own. A WrongExpectedVersion leaves that transaction usable, at no cost of a savepoint;
    after any other refusal by the database it has to be rolled back, to a savepoint if the caller made one.

    Each call is one statement, but for reads of ``$all`` where a global position is missing. Positions are inclusive:
    "read from here". A stream's first message has position 0, the store's first global position 1.

    Arguments that no store could take raise InvalidArgument, a ValueError, before anything is sent; a database
    without a store raises StoreNotInstalled. What else the driver reports stays SQLAlchemy's error.

    ``combine_writes``, on an Engine: ``write`` calls of several threads to one category, whose transactions would wait
    for each other's flush to disk, are written together in one transaction, each with its own position or error. Worth
    it from about eight writers at a time on; below that it may be slower.

    ``types``: instances of the classes registered there are written, and read as the ``data`` of messages. A message
    that is no instance of its type's class then raises MessageNotDecodable, in every read.

    ``tracing``: each write is a span of OpenTelemetry, and what it writes carries its context in the metadata.
    """

    def __init__(
        self,
        bind: Engine | Connection | Session | scoped_session[Any],
        *,
        combine_writes: bool = False,
        types: MessageTypes | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._connection: Callable[[], AbstractContextManager[Connection]]
        if isinstance(bind, Engine):
            self._connection = bind.connect
        elif isinstance(bind, Connection):
            self._connection = lambda: nullcontext(bind)
        elif isinstance(bind, (Session, scoped_session)):
            self._connection = lambda: nullcontext(bind.connection())
        else:
            raise InvalidArgument("bind", bind, "is no Engine, Connection or Session of SQLAlchemy")
        engine = bind.get_bind().engine if isinstance(bind, (Session, scoped_session)) else bind.engine
        if engine.dialect.name != "postgresql":
            raise InvalidArgument("bind", bind, "is not on PostgreSQL")
        self.engine = engine
        joined = not isinstance(bind, Engine)
        self._execute = run_joined if joined else run_alone
        self._operations = Operations(engine.dialect, joined=joined, types=types, tracing=tracing)
        if combine_writes and joined:
            raise InvalidArgument("combine_writes", combine_writes, "is for a Store on an Engine")
        self._combiner = Combiner(self._operations.write_each) if combine_writes else None

    @classmethod
    def from_url(
        cls,
        url: str | URL,
        *,
        combine_writes: bool = False,
        types: MessageTypes | None = None,
        tracing: Tracing | None = None,
        **engine_options: Any,
    ) -> Store:
        """A store on an engine of its own, which ``store.engine.dispose()`` closes.

        ``engine_options`` are create_engine's. A URL that names no driver means psycopg2.
        """
        engine = create_engine(with_driver(url), **engine_options)
        return cls(engine, combine_writes=combine_writes, types=types, tracing=tracing)

    @overload
    def write(
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
    def write(
        self,
        stream_name: str,
        message_type: object,
        *,
        metadata: dict[str, Any] | None = None,
        expected_version: int | None = None,
        id: UUID | str | None = None,
    ) -> int: ...

    def write(
        self,
        stream_name: str,
        message_type: object,
        data: Any = NOT_GIVEN,
        metadata: Any = None,
        expected_version: int | None = None,
        *,
        id: UUID | str | None = None,
    ) -> int:
        """Write a message; its position in the stream.

        ``expected_version`` is the position that the stream's last message must have, NO_STREAM (-1) if the stream
        must not exist yet, None for no check. ``id`` None means a new one, a UUID of version 7. ``data`` and
        ``metadata`` are anything that JSON can hold; None is stored as NULL. An instance of a class of the store's
        ``types`` takes the place of ``message_type`` and ``data``; its metadata is a dict or None.

        Raises WrongExpectedVersion, DuplicateMessageId.
        """
        with self._operations.writing(stream_name):
            operation = self._operations.write(stream_name, message_type, data, metadata, expected_version, id)
            return self._run(operation) if self._combiner is None else self._write_in_turn(self._combiner, operation)

    def write_batch(
        self, stream_name: str, messages: Iterable[MessageInput], expected_version: int | None = None
    ) -> int:
        """Write messages in order, all or none, in one round trip; the position of the last one.

        A message is ``(type, data)``, ``(type, data, metadata)``, a NewMessage or an instance of a class of the store's
        ``types``. ``expected_version`` applies to the first. Without messages, InvalidArgument. Raises as ``write``.
        """
        with self._operations.writing(stream_name):
            return self._run(self._operations.write_batch(stream_name, messages, expected_version))

    def write_streams(self, writes: Iterable[StreamWriteInput]) -> dict[str, int]:
        """Write to several streams, all or nothing, in one round trip; the position of each stream's last message.

        Each is ``(stream_name, messages)``, ``(stream_name, messages, expected_version)`` or a StreamWrite, with
        messages as in ``write_batch``. The locks of their categories are taken in one order everywhere, so that
        two such calls never wait for each other in a circle; single writes in one transaction can. Raises as
        ``write``, for the stream whose version is wrong. (A serialization failure in a SERIALIZABLE transaction of
        the caller's does not say which of several streams it was, and stays the driver's error.)
        """
        with self._operations.writing():
            return self._run(self._operations.write_streams(writes))

    def read(
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
        """Read by the kind of name: ``$all`` is the whole store by global position, a name with a ``-`` a stream, any
        other a category.

        ``no_of_messages=-1`` is no limit. ``sql`` is a query of the caller's instead, which returns the columns of a
        message: a select of SQLAlchemy's, or text with the parameters ``%(stream_name)s``, ``%(position)s``,
        ``%(batch_size)s``, ``%(consumer_group_member)s`` and ``%(consumer_group_size)s``.

        Of ``$all``, messages come in the order of their global positions, and never one before another with a lower
        position that is still to commit: who goes on after the last one misses nothing. Where a number is missing, the
        read waits until the transactions that write at that moment are over, whichever of them it is about, for up to
        ``settle_seconds`` (0: does not wait). After that it returns what comes before that number, maybe nothing, and
        logs a warning. Raises CannotSettle where a number is missing and waiting would not tell: on a standby server,
        and in a transaction that is REPEATABLE READ or SERIALIZABLE. ``allow_holes=True`` is the plain read: it waits
        for nobody, and who goes on after its last message can miss those that were still being written.
        """
        return self._run(
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

    def read_stream(
        self, stream_name: str, position: int = 0, no_of_messages: int = 1000, *, condition: str | None = None
    ) -> list[Message]:
        """A stream's messages from ``position`` on, in order; none for a stream that does not exist.

        ``no_of_messages=-1`` is no limit. ``condition`` is SQL text about the columns of messages, run as it is:
        never build it from input. Raises ConditionNotActivated where the session does not allow it.
        """
        return self._run(self._operations.read_stream(stream_name, position, no_of_messages, condition))

    def read_category(
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
        """The messages of a category's streams from global position ``position`` on, in order.

        A consumer group of ``consumer_group_size`` members (1 to 32767) shares the streams by cardinal id, each
        stream with one member; ``consumer_group_member`` counts from 0. Streams without an id belong to no member.
        ``correlation`` keeps the messages whose metadata's correlationStreamName is in that category.
        ``no_of_messages`` and ``condition`` as in ``read_stream``.
        """
        return self._run(
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

    def read_last_message(self, stream_name: str, message_type: str | None = None) -> Message | None:
        """The stream's message with the highest position, of ``message_type`` if given; None where there is none."""
        return self._run(self._operations.read_last_message(stream_name, message_type))

    def stream_version(self, stream_name: str) -> int | None:
        """The position of the stream's last message, None for a stream that does not exist."""
        return self._run(self._operations.stream_version(stream_name))

    def stream_identifiers(self, category_name: str) -> list[str]:
        """The ids of a category's streams: what stands after the first ``-`` of their names, distinct, sorted by code
        point. Reads every message of the category.

        Exactly this category: its snapshot streams (``category:snapshot-id``) are in another.
        """
        return self._run(self._operations.stream_identifiers(category_name))

    def iter_stream(
        self, stream_name: str, position: int = 0, *, batch_size: int = 1000, condition: str | None = None
    ) -> Iterator[Message]:
        """As ``read_stream`` without a limit, in constant memory: ``batch_size`` messages (from 1) a round trip.

        Ends at what was the last message when it got there.
        """
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
    ) -> Iterator[Message]:
        """As ``read_category`` without a limit, in constant memory: ``batch_size`` messages (from 1) a round trip.

        Ends at what was the last message when it got there.
        """
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
    ) -> Iterator[Message]:
        """As ``read("$all")`` without a limit, in constant memory: ``batch_size`` messages (from 1) a round trip.

        Ends at what is settled: everything is there that had committed when it began, unless a writer's transaction
        stayed open for longer than ``settle_seconds``; then it ends before the first number that is missing. Each page
        may wait that long. What it learns about numbers that are missing serves the pages that follow.
        """
        page_size = arguments.integer("batch_size", batch_size, minimum=1)
        return self._pages(self._operations.read_all(position, page_size, allow_holes, settle_seconds))

    def consumers(self, category_name: str) -> list[ConsumerStatus]:
        """The consumers of a category, or of ``$all``, by identifier: how far each is, and what waits for it.

        Found by the positions that they recorded; one that has recorded none is not there. Reads all positions of the
        category's consumers, and what is after them.
        """
        found = self._run(monitoring.recorded(category_name))
        after = [recorded.position or 0 for recorded in found.values()]
        waiting = self._run(monitoring.waiting(category_name, [*found], after))
        return monitoring.statuses(category_name, found, waiting)

    def version(self) -> str:
        """The version of the Message DB interface in the database, such as 1.3.0."""
        return self._run(self._operations.version())

    def _run(self, operation: Operation[T]) -> T:
        with self._connection() as connection:
            return self._execute(connection, operation)

    def _write_in_turn(self, combiner: Combiner, operation: Operation[int]) -> int:
        turn = combiner.arrive(operation)
        try:
            answer = turn.answer.result()
        except BaseException:
            combiner.abandon(turn)
            raise
        if isinstance(answer, list):
            with combiner.written(answer) as batch:
                batch.outcomes = self._run(batch.operation)
            answer = batch.outcomes[0]
        if isinstance(answer, BaseException):
            raise answer
        return self._run(operation) if answer is None else answer

    def _pages(self, page: Page | None) -> Iterator[Message]:
        while page is not None:
            messages = self._run(page)
            yield from messages
            page = page.after(messages)
