"""A drop-in replacement for message-db-py 0.3.5: its MessageDB and ConnectionPool, with the operations of a Store.

Signatures, results and errors are the same as in message-db-py. If the database refuses a write, the error is a
ValueError with PostgreSQL's SQLSTATE and the first line of its message, raised ``from`` the driver's error. If it
refuses a read, the error is the driver's. The page "Coming from message-db-py" of the manual lists what is different on
purpose.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg2  # type: ignore[import-untyped]
from psycopg2.pool import PoolError  # type: ignore[import-untyped]
from sqlalchemy import Engine, NullPool, PoolProxiedConnection, create_engine, make_url
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.exc import DBAPIError, TimeoutError

from messagedb_sa import _arguments as arguments
from messagedb_sa._drivers.errors import server_error
from messagedb_sa.errors import InvalidArgument, MessageDBError
from messagedb_sa.message import Message
from messagedb_sa.store._execute import run_alone
from messagedb_sa.store._operation import SETTLE_SECONDS, Call
from messagedb_sa.store._operations import Operations
from messagedb_sa.store._sync import Store

__all__ = ["ConnectionPool", "MessageDB"]

T = TypeVar("T")
_LARGEST_POOL_SIZE = 5


class ConnectionPool:
    """A pool of psycopg2 connections. ``args`` and ``kwargs`` are passed to psycopg2.connect.

    The first connection is opened immediately. If ``max_connections`` is 0, the pool has one connection. ``engine`` is
    the SQLAlchemy engine that manages the connections.
    """

    # So that the class has the attributes too, for mocks that are made of it.
    __slots__ = ("__dict__", "__weakref__", "_checked_out", "_closed", "args", "engine", "kwargs", "max_connections")

    @classmethod
    def from_url(cls, *args: str, max_connections: int = 100, **kwargs: Any) -> ConnectionPool:
        """A pool for a libpq URL, ``postgresql://…``, with the same parameters as the class."""
        return cls(*args, max_connections=max_connections, **kwargs)

    def __init__(self, *args: str, max_connections: int = 100, **kwargs: Any) -> None:
        if not isinstance(max_connections, int) or max_connections < 0:
            raise ValueError('"max_connections" must be a positive integer')
        self.max_connections = max_connections
        self.args = args
        self.kwargs = kwargs
        self._closed = False
        self._checked_out: dict[Any, PoolProxiedConnection] = {}
        limit = max(max_connections, 1)
        pool_size = min(limit, _LARGEST_POOL_SIZE)
        self.engine = create_engine(
            "postgresql+psycopg2://",
            creator=self._connect,
            pool_size=pool_size,
            max_overflow=limit - pool_size,
            json_serializer=json.dumps,
        )
        self.release(self.get_connection())

    def _connect(self) -> Any:
        if self._closed:
            raise PoolError("connection pool is closed")
        return psycopg2.connect(*self.args, **self.kwargs)

    def get_connection(self) -> Any:
        """A psycopg2 connection. Give it back with ``release``.

        Raises psycopg2's PoolError if all connections stay in use for 30 seconds, or if the pool is closed.
        """
        with _message_db_py_errors(writing=False):
            pooled = self.engine.raw_connection()
        self._checked_out[pooled.dbapi_connection] = pooled
        return pooled.dbapi_connection

    def release(self, connection: Any, close: bool = False) -> None:
        """Return a connection to the pool, which rolls it back; or close it, with ``close=True``.

        Raises psycopg2's PoolError if the connection is not from ``get_connection``, or was released before.
        """
        pooled = self._checked_out.pop(connection, None)
        if pooled is None:
            raise PoolError("trying to put unkeyed connection")
        if close or connection.closed:
            pooled.invalidate()
        else:
            pooled.close()

    def closeall(self) -> None:
        """Close all connections, also those in use. After that, ``get_connection`` raises PoolError."""
        self._closed = True
        while self._checked_out:
            self._checked_out.popitem()[1].invalidate()
        self.engine.dispose()


class MessageDB:
    """message-db-py's client.

    ``connection_pool`` is the pool or Engine that you passed, or a new pool. A pool of another class must lend
    connections of psycopg2 by ``get_connection``, and take them back by ``release``. ``store`` is a Store on the same
    connections: use it in new code. If you pass an Engine, its json_serializer writes the JSON; without one, values
    that JSON does not have, such as NaN, are refused.
    """

    __slots__ = ("__dict__", "__weakref__", "_operations", "connection_pool", "store")

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> MessageDB:
        """A client for a libpq URL, ``postgresql://…``. ``kwargs`` are passed to ConnectionPool."""
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
        self.connection_pool: Any = connection_pool
        self.store = Store(_engine(connection_pool))
        self._operations = Operations(self.store.engine.dialect, joined=False, lenient=True)

    def _run(self, call: Call[T]) -> T:
        with self.store.engine.connect() as connection:
            return run_alone(connection, call)

    def write(
        self,
        stream_name: str,
        message_type: str,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        expected_version: int | None = None,
    ) -> int:
        """Write a message and return its position in the stream, from 0. Empty metadata is stored as NULL."""
        with _message_db_py_errors(writing=True):
            return self._run(
                self._operations.write(stream_name, message_type, data, metadata or None, expected_version, None)
            )

    def write_batch(self, stream_name: str, data: Iterable[Sequence[Any]], expected_version: int | None = None) -> int:
        """Write messages in order, all or none, and return the position of the last one.

        ``data`` holds ``(type, data)`` or ``(type, data, metadata)``. Empty metadata is stored as NULL.
        """
        batch = [(record[0], record[1], (record[2] if len(record) > 2 else None) or None) for record in data]
        with _message_db_py_errors(writing=True):
            return self._run(self._operations.write_batch(stream_name, batch, expected_version))

    def read(
        self,
        stream_name: str,
        sql: str | None = None,
        position: int = 0,
        no_of_messages: int = 1000,
        consumer_group_member: int | None = None,
        consumer_group_size: int | None = None,
    ) -> list[dict[str, Any]]:
        """Read a stream, a category, ``$all``, or the result of your own query, ``sql``.

        ``position`` is inclusive: a position of the stream, or a global position of the category. For ``$all`` it is
        exclusive, and a message that is not committed yet may be skipped; ``store.read`` skips none. A consumer group
        applies to a category or your own query only. Otherwise it is ignored.
        """
        takes_group = bool(sql) or (stream_name != "$all" and "-" not in stream_name)
        if consumer_group_member is None or not takes_group:
            consumer_group_member = consumer_group_size = None
        if stream_name == "$all" and not sql:
            position = arguments.integer("position", position) + 1
        with _message_db_py_errors(writing=False):
            messages = self._run(
                self._operations.read(
                    stream_name,
                    sql or None,
                    position,
                    no_of_messages,
                    consumer_group_member,
                    consumer_group_size,
                    allow_holes=stream_name == "$all" and not sql,
                    settle_seconds=SETTLE_SECONDS,
                )
            )
        return [_as_dict(message) for message in messages]

    def read_stream(self, stream_name: str, position: int = 0, no_of_messages: int = 1000) -> list[dict[str, Any]]:
        """Read a stream from ``position``, inclusive. ValueError for a category."""
        if "-" not in stream_name:
            raise ValueError(f"{stream_name} is not a stream")
        with _message_db_py_errors(writing=False):
            messages = self._run(self._operations.read_stream(stream_name, position, no_of_messages, None))
        return [_as_dict(message) for message in messages]

    def read_category(
        self,
        category_name: str,
        position: int = 0,
        no_of_messages: int = 1000,
        consumer_group_member: int | None = None,
        consumer_group_size: int | None = None,
    ) -> list[dict[str, Any]]:
        """Read a category from the global position ``position``, inclusive.

        ValueError for a stream name, or for a consumer group whose member or size is missing or out of range.
        """
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
        with _message_db_py_errors(writing=False):
            messages = self._run(
                self._operations.read_category(category_name, position, no_of_messages, member, size, None, None)
            )
        return [_as_dict(message) for message in messages]

    def stream_identifiers(self, category_name: str) -> list[str]:
        """The ids of a category's streams, distinct and sorted, without its snapshots. ValueError for a stream name."""
        _check_category(category_name)
        with _message_db_py_errors(writing=False):
            return self._run(self._operations.stream_identifiers(category_name))

    def read_last_message(self, stream_name: str) -> dict[str, Any] | None:
        """The stream's last message. None if it has no messages. ``stream_name`` may be a name without a ``-``."""
        with _message_db_py_errors(writing=False):
            last = self._run(self._operations.read_last_message(stream_name, None))
        return None if last is None else _as_dict(last)


def _engine(connection_pool: Any) -> Engine:
    """The engine whose connections are the pool's."""
    if isinstance(connection_pool, Engine):
        return connection_pool
    if not (hasattr(connection_pool, "get_connection") and hasattr(connection_pool, "release")):
        reason = f"must be a {__name__}.ConnectionPool or a SQLAlchemy Engine"
        raise InvalidArgument("connection_pool", connection_pool, reason)
    engine = getattr(connection_pool, "engine", None)
    if isinstance(engine, Engine):
        return engine
    # A pool that is not ours, such as an application's mock in a test: each call borrows a connection of it. Nothing is
    # asked of a new connection, as create_engine would do.
    dialect_class: Any = PGDialect_psycopg2
    dialect = dialect_class(dbapi=psycopg2, json_serializer=json.dumps)
    dialect.do_close = connection_pool.release
    return Engine(
        NullPool(connection_pool.get_connection, dialect=dialect), dialect, make_url("postgresql+psycopg2://")
    )


def _as_dict(message: Message) -> dict[str, Any]:
    return {**message._asdict(), "time": message.time.replace(tzinfo=None)}


def _check_category(name: str) -> None:
    if "-" in name:
        raise ValueError(f"{name} is not a category")


@contextmanager
def _message_db_py_errors(*, writing: bool) -> Iterator[None]:
    """Replace SQLAlchemy's errors and ours by those that message-db-py raises."""
    try:
        yield
    except TimeoutError as error:
        raise PoolError("connection pool exhausted") from error
    except (DBAPIError, MessageDBError) as error:
        cause = error if isinstance(error, DBAPIError) else error.__cause__
        if isinstance(cause, TypeError):
            raise cause from None
        if not isinstance(cause, DBAPIError) or cause.orig is None:
            raise
        reported = server_error(cause)
        if writing and reported.state:
            text = getattr(cause.orig, "pgerror", None) or f"ERROR:  {reported.message}"
            raise ValueError(f"{reported.state}-{text.splitlines()[0]}") from cause.orig
        raise cause.orig from None
