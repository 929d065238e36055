"""The store's table and views as SQLAlchemy metadata, for queries and reports, and the types that decode messages.

The metadata describes what the migrations made; it makes nothing itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, NoReturn

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnClause,
    DateTime,
    Dialect,
    Index,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    TypeDecorator,
    cast,
    column,
    event,
    func,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.sql.expression import UnaryExpression
from sqlalchemy.sql.operators import custom_op

from messagedb_sa import arguments
from messagedb_sa import stream_name as names
from messagedb_sa.errors import MessageDBError

__all__ = [
    "SCHEMA",
    "VERSION_TABLE",
    "JSONText",
    "UTCDateTime",
    "category_type_summary",
    "consumer_group_index",
    "include_name",
    "message_columns",
    "messages",
    "metadata",
    "stream_summary",
    "stream_type_summary",
    "type_category_summary",
    "type_stream_summary",
    "type_summary",
]

SCHEMA = "message_store"

VERSION_TABLE = "messagedb_alembic_version"
"""Alembic's record of our revisions. A table of its own, so that a host application's heads stay its own."""


class JSONText(TypeDecorator[Any]):
    """JSON that travels as text, as in the columns of Message DB's type ``message``.

    Encodes and decodes with the engine's json_serializer and json_deserializer where they are set. None is NULL.
    """

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        serialize = getattr(dialect, "_json_serializer", None) or json.dumps
        return None if value is None else serialize(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        deserialize = getattr(dialect, "_json_deserializer", None) or json.loads
        return None if value is None else deserialize(value)


class UTCDateTime(TypeDecorator[datetime]):
    """A timestamp without time zone that means UTC: an aware datetime in Python. Naive ones are taken as UTC."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or value.tzinfo is None:
            return value
        return value.astimezone(timezone.utc).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=timezone.utc)


metadata = MetaData(schema=SCHEMA)

messages = Table(
    "messages",
    metadata,
    Column("global_position", BigInteger, primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("time", UTCDateTime, nullable=False, server_default=text("(now() AT TIME ZONE 'utc')")),
    Column("stream_name", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("data", JSONB(none_as_null=True)),
    Column("metadata", JSONB(none_as_null=True)),
    Column("id", UUID(as_uuid=True), nullable=False, server_default=text("gen_random_uuid()")),
)
Index("messages_id", messages.c.id, unique=True)
Index("messages_stream", messages.c.stream_name, messages.c.position, unique=True)
Index(
    "messages_category",
    func.message_store.category(messages.c.stream_name),
    messages.c.global_position,
    func.message_store.category(messages.c.metadata["correlationStreamName"].astext),
)


def _summary(name: str, *keys: str) -> Table:
    return Table(
        name,
        metadata,
        *(Column(key, Text) for key in keys),
        Column("message_count", BigInteger),
        Column("percent", Numeric),
        info={"is_view": True},
    )


type_summary = _summary("type_summary", "type")
stream_summary = _summary("stream_summary", "stream_name")
stream_type_summary = _summary("stream_type_summary", "stream_name", "type")
type_stream_summary = _summary("type_stream_summary", "type", "stream_name")
category_type_summary = _summary("category_type_summary", "category", "type")
type_category_summary = _summary("type_category_summary", "type", "category")


@event.listens_for(metadata, "before_create")
@event.listens_for(metadata, "before_drop")
def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise MessageDBError("a store is made by messagedb_sa.install.upgrade or by Alembic, not by its metadata")


def message_columns(*, decoded: bool = True) -> tuple[ColumnClause[Any], ...]:
    """The columns of Message DB's type ``message``, in order, for ``table_valued`` and ``text(…).columns``.

    Not ``decoded``: data and metadata as JSON text, time naive, as the database sends them.
    """
    json_type, time_type = (JSONText, UTCDateTime) if decoded else (String, DateTime)
    return (
        column("id", String),
        column("stream_name", String),
        column("type", String),
        column("position", BigInteger),
        column("global_position", BigInteger),
        column("data", json_type),
        column("metadata", json_type),
        column("time", time_type),
    )


def consumer_group_index(size: int, **options: Any) -> Index:
    """The index by which the members of a consumer group of ``size`` (1 to 32767) find their messages.

    With it a member's read costs as much as one of the whole category; without it, as much as reading what all members
    are to read. It serves groups of that size alone, and is no part of ``metadata``: make it with CreateIndex, in a
    revision of your own. ``options`` are Index's, such as ``postgresql_concurrently=True``.
    """
    number = arguments.integer("size", size, minimum=1, maximum=names.MAX_GROUP_SIZE)
    # Of a copy, since an Index joins the table that its columns are of.
    columns = messages.to_metadata(MetaData()).c
    store = func.message_store
    # The operator, not abs(): PostgreSQL takes an index only for the very expression that get_category_messages has.
    hashed: UnaryExpression[int] = UnaryExpression(
        store.hash_64(store.cardinal_id(columns.stream_name)), operator=custom_op("@")
    )
    return Index(
        f"messages_consumer_group_of_{number}",
        store.category(columns.stream_name),
        func.mod(hashed, cast(literal_column(str(number)), BigInteger)),
        columns.global_position,
        **options,
    )


def include_name(name: str | None, type_: str, parent_names: Mapping[Any, str | None]) -> bool:
    """For a host's Alembic ``context.configure(include_name=…)``: False for what belongs to the store.

    That is the schema message_store, which include_schemas=True would look into, and the version table. Without it
    autogenerate proposes to drop them.
    """
    if type_ == "schema":
        return name != SCHEMA
    return not (type_ == "table" and name == VERSION_TABLE)
