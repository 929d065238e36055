"""A drop-in replacement for message-db-py 0.3.5: MessageDB and ConnectionPool as there, on a Store.

Signatures, results and errors are that package's. A write that the database refuses is a ValueError with PostgreSQL's
SQLSTATE and first line, caused by the driver's error; of a read it is the driver's own error. Deliberately different:

- Reads need no search_path. A query of the caller's own, passed to ``read``, runs with the connection's, as there.
- Such a query is one that can stand in a FROM, with all eight columns of a message, of any types; others are left out
  of the result. What PostgreSQL says of a mistake in it may be worded otherwise, in the same class of error.
- An argument that no store could take, such as an empty name, an expected version of "0" or a group of 40,000, is an
  InvalidArgument, a ValueError, before anything is sent; there it was PostgreSQL's error, or was taken. Data that
  json.dumps refuses with a TypeError is that TypeError still.
- An empty batch is an InvalidArgument; there it was an UnboundLocalError.
- A write whose connection is lost is psycopg2's OperationalError; there it was its InterfaceError.
- ``stream_identifiers`` takes ``_``, ``%`` and ``\\`` in a category as they are, and sorts by code point everywhere.
- ``no_of_messages=-1`` is no limit for ``$all`` too. Data of None is stored as NULL, not as JSON's null.
- ``read_last_message`` gives a plain dict too.
- A pool keeps up to five connections open, not one. Where all are in use, a call waits for up to 30 seconds before it
  raises PoolError. ``closeall`` may be called twice. Connections have uuid columns as UUID objects. A
  ``cursor_factory`` has to make rows that are sequences.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg2  # type: ignore[import-untyped]
from psycopg2.pool import PoolError  # type: ignore[import-untyped]
from sqlalchemy import Engine, PoolProxiedConnection, bindparam, create_engine, select
from sqlalchemy.exc import DBAPIError, TimeoutError

from messagedb_sa import arguments, functions
from messagedb_sa.driver import refusal
from messagedb_sa.errors import InvalidArgument, MessageDBError
from messagedb_sa.message import Message
from messagedb_sa.store import Store

__all__ = ["ConnectionPool", "MessageDB"]

_KEPT_OPEN = 5
_LAST = select(functions.get_last_stream_message(bindparam("stream_name")).messages())


class ConnectionPool:
    """Connections of psycopg2; ``args`` and ``kwargs`` are its connect's. Opens the first one at once.

    ``max_connections`` 0 means 1. ``engine`` is the SQLAlchemy engine that has them.
    """

    @classmethod
    def from_url(cls, *args: str, max_connections: int = 100, **kwargs: Any) -> ConnectionPool:
        return cls(*args, max_connections=max_connections, **kwargs)

    def __init__(self, *args: str, max_connections: int = 100, **kwargs: Any) -> None:
        if not isinstance(max_connections, int) or max_connections < 0:
            raise ValueError('"max_connections" must be a positive integer')
        self.max_connections = max_connections
        self.args = args
        self.kwargs = kwargs
        self._closed = False
        self._lent: dict[Any, PoolProxiedConnection] = {}
        most = max(max_connections, 1)
        kept = min(most, _KEPT_OPEN)
        self.engine = create_engine(
            "postgresql+psycopg2://",
            creator=self._connect,
            pool_size=kept,
            max_overflow=most - kept,
            json_serializer=json.dumps,
        )
        self.release(self.get_connection())

    def _connect(self) -> Any:
        if self._closed:
            raise PoolError("connection pool is closed")
        return psycopg2.connect(*self.args, **self.kwargs)

    def get_connection(self) -> Any:
        """A connection of psycopg2, to be released. Raises psycopg2's PoolError where none is to be had."""
        with _errors(writing=False):
            lent = self.engine.raw_connection()
        self._lent[lent.dbapi_connection] = lent
        return lent.dbapi_connection

    def release(self, connection: Any, close: bool = False) -> None:
        """Take a connection back, rolled back, or closed if ``close``. PoolError for one that is not lent."""
        lent = self._lent.pop(connection, None)
        if lent is None:
            raise PoolError("trying to put unkeyed connection")
        if close or connection.closed:
            lent.invalidate()
        else:
            lent.close()

    def closeall(self) -> None:
        """Close every connection, lent ones too. The pool then gives no more."""
        self._closed = True
        while self._lent:
            self._lent.popitem()[1].invalidate()
        self.engine.dispose()


class MessageDB:
    """message-db-py's client. ``connection_pool`` is what was passed, or made; ``store`` the Store that does the work,
    for new code beside the old.

    With an Engine as ``connection_pool``, JSON is written as that engine writes it: strictly, unless it has a
    json_serializer.
    """

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> MessageDB:
        """``url`` is libpq's, ``postgresql://…``; ``kwargs`` are ConnectionPool's."""
        return cls(connection_pool=ConnectionPool.from_url(url, **kwargs))

    def __init__(
        self,
        dbname: str = "message_store",
        user: str = "message_store",
        password: str = "",
        host: str = "localhost",
        port: int = 5432,
        connection_pool: ConnectionPool | Engine | None = None,
    ) -> None:
        if connection_pool is None:
            connection_pool = ConnectionPool(dbname=dbname, user=user, password=password, host=host, port=port)
        if not isinstance(connection_pool, (ConnectionPool, Engine)):
            raise InvalidArgument("connection_pool", connection_pool, f"is no ConnectionPool of {__name__}, no Engine")
        self.connection_pool: Any = connection_pool
        self.store = Store(connection_pool.engine)

    def write(
        self,
        stream_name: str,
        message_type: str,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        expected_version: int | None = None,
    ) -> int:
        """The message's position in its stream, from 0. Metadata that is empty is stored as NULL."""
        with _errors(writing=True):
            return self.store.write(stream_name, message_type, data, metadata or None, expected_version)

    def write_batch(self, stream_name: str, data: Iterable[Sequence[Any]], expected_version: int | None = None) -> int:
        """Write ``(type, data)`` or ``(type, data, metadata)`` in order, all or none; the position of the last one."""
        batch = [(record[0], record[1], (record[2] if len(record) > 2 else None) or None) for record in data]
        with _errors(writing=True):
            return self.store.write_batch(stream_name, batch, expected_version)

    def read(
        self,
        stream_name: str,
        sql: str | None = None,
        position: int = 0,
        no_of_messages: int = 1000,
        consumer_group_member: int | None = None,
        consumer_group_size: int | None = None,
    ) -> list[dict[str, Any]]:
        """Messages of a stream from ``position`` on, or of a category from that global position on; of ``$all`` those
        after it, where one that is still being written may be passed over: ``store.read`` passes over none. What is not
        a category has no consumer group: one that is given is ignored."""
        of_category = bool(sql) or (stream_name != "$all" and "-" not in stream_name)
        if consumer_group_member is None or not of_category:
            consumer_group_member = consumer_group_size = None
        if stream_name == "$all" and not sql:
            position = arguments.integer("position", position) + 1
        with _errors(writing=False):
            messages = self.store.read(
                stream_name,
                sql or None,
                position,
                no_of_messages,
                consumer_group_member,
                consumer_group_size,
                allow_holes=stream_name == "$all" and not sql,
            )
        return [_plain(message) for message in messages]

    def read_stream(self, stream_name: str, position: int = 0, no_of_messages: int = 1000) -> list[dict[str, Any]]:
        """ValueError for a category."""
        if "-" not in stream_name:
            raise ValueError(f"{stream_name} is not a stream")
        with _errors(writing=False):
            return [_plain(message) for message in self.store.read_stream(stream_name, position, no_of_messages)]

    def read_category(
        self,
        category_name: str,
        position: int = 0,
        no_of_messages: int = 1000,
        consumer_group_member: int | None = None,
        consumer_group_size: int | None = None,
    ) -> list[dict[str, Any]]:
        """ValueError for a stream, and for a consumer group that is none."""
        _check_category(category_name)
        member, size = consumer_group_member, consumer_group_size
        if (member is None) != (size is None):
            raise ValueError(
                "Both consumer_group_member and consumer_group_size must be provided together or both must be None"
            )
        if member is not None and size is not None:
            if member < 0:
                raise ValueError(f"consumer_group_member must be >= 0, got {member}")
            if size <= 0:
                raise ValueError(f"consumer_group_size must be > 0, got {size}")
            if member >= size:
                raise ValueError(f"consumer_group_member ({member}) must be less than consumer_group_size ({size})")
        with _errors(writing=False):
            messages = self.store.read_category(category_name, position, no_of_messages, member, size)
        return [_plain(message) for message in messages]

    def stream_identifiers(self, category_name: str) -> list[str]:
        """The ids of a category's streams, distinct, sorted; not of its snapshots. ValueError for a stream."""
        _check_category(category_name)
        with _errors(writing=False):
            return self.store.stream_identifiers(category_name)

    def read_last_message(self, stream_name: str) -> dict[str, Any] | None:
        """None for a stream without messages. Any name is a stream's here, with a ``-`` or without."""
        with _errors(writing=False):
            return next((_plain(message) for message in self.store.read(stream_name, _LAST)), None)


def _plain(message: Message) -> dict[str, Any]:
    return {**message._asdict(), "time": message.time.replace(tzinfo=None)}


def _check_category(name: str) -> None:
    if "-" in name:
        raise ValueError(f"{name} is not a category")


@contextmanager
def _errors(*, writing: bool) -> Iterator[None]:
    """What lies beneath SQLAlchemy's errors and ours, as message-db-py lets it through or names it."""
    try:
        yield
    except TimeoutError as error:
        raise PoolError("connection pool exhausted") from error
    except (DBAPIError, MessageDBError) as error:
        beneath = error if isinstance(error, DBAPIError) else error.__cause__
        if isinstance(beneath, TypeError):
            raise beneath from None
        if not isinstance(beneath, DBAPIError) or beneath.orig is None:
            raise
        refused = refusal(beneath)
        if writing and refused.state:
            text = getattr(beneath.orig, "pgerror", None) or f"ERROR:  {refused.message}"
            raise ValueError(f"{refused.state}-{text.splitlines()[0]}") from beneath.orig
        raise beneath.orig from None
