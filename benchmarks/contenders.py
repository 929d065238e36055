"""The clients that are compared. Each does the same work through its own interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from data import DATA, DATA_JSON, METADATA, METADATA_JSON, TYPE, originator
from database import connect, libpq_url
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from message_db.client import MessageDB  # type: ignore[import-untyped]
from message_db.connection import ConnectionPool  # type: ignore[import-untyped]
from sqlalchemy import create_engine, make_url

from messagedb_sa import Store
from messagedb_sa._ids import new_ids
from messagedb_sa.store._json_codec import STANDARD


@dataclass(frozen=True)
class Batch:
    stream: str
    size: int
    first: int = 0
    """The position of its first message. The eventsourcing package needs it."""

    @cached_property
    def messages(self) -> list[tuple[str, Any, Any]]:
        return [(TYPE, DATA, METADATA)] * self.size


class Ours:
    def __init__(self, url: str, *, combine_writes: bool = False, msgspec: bool = True, **engine_options: Any) -> None:
        self.store = Store(create_engine(url, **engine_options), combine_writes=combine_writes)
        if not msgspec:
            # The codec that is used if msgspec is not installed.
            self.store._operations._codec._library = STANDARD

    def close(self) -> None:
        self.store.engine.dispose()

    def write(self, stream: str) -> object:
        return self.store.write(stream, TYPE, DATA, METADATA)

    def write_batch(self, batch: Batch) -> object:
        return self.store.write_batch(batch.stream, batch.messages)

    def read_stream(self, stream: str) -> object:
        return self.store.read_stream(stream)

    def read_category(self, category: str) -> object:
        return self.store.read_category(category)

    def read_last_message(self, stream: str) -> object:
        return self.store.read_last_message(stream)

    def read_from(self, category: str, position: int) -> object:
        return self.store.read_category(category, position)

    def read_as_member(self, category: str, position: int, member: int, size: int) -> object:
        return self.store.read_category(category, position, 1000, member, size)


class MessageDBPy:
    def __init__(self, url: str) -> None:
        self.pool = ConnectionPool.from_url(libpq_url(url))
        self.client = MessageDB(connection_pool=self.pool)

    def close(self) -> None:
        self.pool.closeall()

    def write(self, stream: str) -> object:
        return self.client.write(stream, TYPE, DATA, METADATA)

    def write_batch(self, batch: Batch) -> object:
        return self.client.write_batch(batch.stream, batch.messages)

    def read_stream(self, stream: str) -> object:
        return self.client.read_stream(stream)

    def read_category(self, category: str) -> object:
        return self.client.read_category(category)

    def read_last_message(self, stream: str) -> object:
        return self.client.read_last_message(stream)

    def read_as_member(self, category: str, position: int, member: int, size: int) -> object:
        return self.client.read_category(category, position, 1000, member, size)


class BareDriver:
    """Calls the server's functions on an open psycopg2 connection. It does not encode or decode JSON."""

    def __init__(self, url: str) -> None:
        self.connection = connect(url)
        self.cursor = self.connection.cursor()

    def close(self) -> None:
        self.connection.close()

    def run(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        self.cursor.execute(statement, parameters)
        rows: list[tuple[Any, ...]] = self.cursor.fetchall()
        return rows

    def write(self, stream: str) -> object:
        return self.run(
            "SELECT message_store.write_message(%s, %s, %s, %s, %s, %s)",
            new_ids(1)[0],
            stream,
            TYPE,
            DATA_JSON,
            METADATA_JSON,
            None,
        )

    def write_batch(self, batch: tuple[str, Sequence[str], str, str]) -> object:
        stream, ids, data, metadata = batch
        return self.run(
            "SELECT message_store.write_messages(%s::varchar[], %s, %s::varchar[], %s, %s, %s)",
            ids,
            stream,
            [TYPE] * len(ids),
            data,
            metadata,
            None,
        )

    def read_stream(self, stream: str) -> object:
        return self.run("SELECT * FROM message_store.get_stream_messages(%s, %s, %s)", stream, 0, 1000)

    def read_category(self, category: str) -> object:
        return self.run("SELECT * FROM message_store.get_category_messages(%s, %s, %s)", category, 0, 1000)

    def read_last_message(self, stream: str) -> object:
        return self.run("SELECT * FROM message_store.get_last_stream_message(%s)", stream)


class EventSourcing:
    """The recorder of the eventsourcing package that orders all events of the store, as Message DB does.

    It has the pool that the package's own factory makes. Events are bytes: nothing is encoded or decoded.
    """

    def __init__(self, url: str) -> None:
        where = make_url(url)
        self.datastore = PostgresDatastore(
            dbname=str(where.database),
            host=str(where.query["host"]),
            port=str(where.query["port"]),
            user=str(where.username),
            password="",
            pool_size=5,
            max_overflow=10,
        )
        self.recorder = PostgresApplicationRecorder(self.datastore)
        self.recorder.create_table()

    def close(self) -> None:
        self.datastore.close()

    def write_batch(self, events: Sequence[StoredEvent]) -> object:
        return self.recorder.insert_events(events)

    def read_stream(self, stream: str) -> object:
        return self.recorder.select_events(originator(stream))

    def read_last_message(self, stream: str) -> object:
        return self.recorder.select_events(originator(stream), desc=True, limit=1)


def events(batch: Batch) -> list[StoredEvent]:
    id = originator(batch.stream)
    state = f'{{"data": {DATA_JSON}, "metadata": {METADATA_JSON}}}'.encode()
    return [StoredEvent(id, batch.first + number, TYPE, state) for number in range(batch.size)]
