"""The store's table and views as SQLAlchemy metadata, for your queries and reports, and types that decode messages.

The metadata only describes the objects. The migrations create them.
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
    and_,
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

from messagedb_sa import _arguments as arguments
from messagedb_sa import _metadata_indexes as keys
from messagedb_sa import stream_name as names
from messagedb_sa.errors import MessageDBError

__all__ = [
    "SCHEMA",
    "VERSION_TABLE",
    "JSONText",
    "UTCDateTime",
    "category_type_summary",
    "causation_index",
    "consumer_group_index",
    "consumer_positions",
    "correlation_index",
    "include_name",
    "message_columns",
    "messages",
    "metadata",
    "stream_summary",
    "stream_type_summary",
    "tags_index",
    "type_category_summary",
    "type_stream_summary",
    "type_summary",
]

SCHEMA = "message_store"
"""The schema that holds the store."""

VERSION_TABLE = "messagedb_alembic_version"
"""The Alembic version table of this package's revisions. It is separate, so your application's own heads do not mix
with them."""


class JSONText(TypeDecorator[Any]):
    """JSON that is sent and received as text, as in the columns of Message DB's type ``message``.

    Uses the engine's json_serializer and json_deserializer if they are set. None is NULL.
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
    """A timestamp without time zone that is in UTC. Values are aware datetimes in Python.

    A naive datetime that you pass is taken as UTC.
    """

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or value.tzinfo is None:
            return value
        return value.astimezone(timezone.utc).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=timezone.utc)


metadata: MetaData = MetaData(schema=SCHEMA)
"""The store's table and views. It cannot create or drop them: use ``install`` or Alembic."""

messages: Table = Table(
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
"""The table of all messages, to select from. Write with ``Store`` or ``functions``, which keep positions right."""
Index("messages_id", messages.c.id, unique=True)
Index("messages_stream", messages.c.stream_name, messages.c.position, unique=True)
Index(
    "messages_category",
    func.message_store.category(messages.c.stream_name),
    messages.c.global_position,
    func.message_store.category(messages.c.metadata["correlationStreamName"].astext),
)
POSITIONS_CATEGORY = ":(.*[+])?position$"
"""A regular expression, of Python and of PostgreSQL, for the categories of positions."""
Index(
    "messages_recorded",
    func.message_store.hash_64(func.message_store.category(messages.c.stream_name)),
    messages.c.stream_name,
    messages.c.position,
    postgresql_where=and_(
        messages.c.type == literal_column("'Recorded'"),
        func.message_store.category(messages.c.stream_name).regexp_match(literal_column(f"'{POSITIONS_CATEGORY}'")),
    ),
)

consumer_positions: Table = Table(
    "consumer_positions",
    metadata,
    Column("stream_name", Text, primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("marker", UUID(as_uuid=True), nullable=False),
    Column("recorded_after", BigInteger, nullable=False),
    Column("time", UTCDateTime, nullable=False),
)
"""The table in which consumers record their positions: a row for each consumer, member or slot.

It is not part of Message DB: this package's revision messagedb_0004 adds it. ``store.consumers`` reads it for you.
``stream_name`` is the stream that would hold the position otherwise. Its message with the id ``marker`` says that the
position is here: the row counts as long as that is the stream's last message. ``version`` counts the records, and
``recorded_after`` is the highest global position that had been given out at the last one.
"""


def _summary(name: str, *keys: str) -> Table:
    return Table(
        name,
        metadata,
        *(Column(key, Text) for key in keys),
        Column("message_count", BigInteger),
        Column("percent", Numeric),
        info={"is_view": True},
    )


type_summary: Table = _summary("type_summary", "type")
"""A view: the number of messages of each type, and their share of all in percent."""
stream_summary: Table = _summary("stream_summary", "stream_name")
"""A view: the number of messages of each stream, and their share of all in percent."""
stream_type_summary: Table = _summary("stream_type_summary", "stream_name", "type")
"""A view: the number of messages of each stream and type, and their share of all in percent."""
type_stream_summary: Table = _summary("type_stream_summary", "type", "stream_name")
"""A view: the number of messages of each type and stream, and their share of all in percent."""
category_type_summary: Table = _summary("category_type_summary", "category", "type")
"""A view: the number of messages of each category and type, and their share of all in percent."""
type_category_summary: Table = _summary("type_category_summary", "type", "category")
"""A view: the number of messages of each type and category, and their share of all in percent."""


@event.listens_for(metadata, "before_create")
@event.listens_for(metadata, "before_drop")
def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise MessageDBError(
        "this metadata cannot create or drop a store: use messagedb_sa.install.upgrade or downgrade, or Alembic"
    )


def message_columns(*, decoded: bool = True) -> tuple[ColumnClause[Any], ...]:
    """The columns of Message DB's type ``message``, in order, for ``table_valued`` and ``text(…).columns``.

    With ``decoded=False`` they return what the database sends: data and metadata as JSON text, time as a naive
    datetime.
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
    """An index with which the members of a consumer group of ``size`` (1 to 32767) find their messages.

    Without the index, PostgreSQL reads the messages of all members to find those of one member. With it, it reads only
    that member's. The index helps groups of exactly this size. It is not part of ``metadata``: create it with
    CreateIndex in a revision of your own. ``options`` are passed to Index, such as ``postgresql_concurrently=True``.
    """
    number = arguments.integer("size", size, minimum=1, maximum=names.MAX_GROUP_SIZE)
    # Use a copy of the table: an Index adds itself to the table of its columns.
    columns = messages.to_metadata(MetaData()).c
    store = func.message_store
    # The operator @, not abs(): PostgreSQL uses the index only for the exact expression in get_category_messages.
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


def tags_index(**options: Any) -> Index:
    """An index with which reads by query, and the check of an AppendCondition, find the messages with a query's tags.

    Without it, PostgreSQL reads all messages of the category from the position on. Revision messagedb_0005 is needed to
    use it. It has the messages with ``tags`` in their metadata. It is not part of ``metadata``: create it with
    CreateIndex in a revision of your own. ``options`` are passed to Index, such as ``postgresql_concurrently=True``.
    """
    tags = keys.tags(messages.to_metadata(MetaData()).c.metadata)
    return Index(
        "messages_tags",
        tags.label("tags"),
        postgresql_using="gin",
        postgresql_ops={"tags": "jsonb_path_ops"},
        postgresql_where=tags.is_not(None),
        **options,
    )


def correlation_index(**options: Any) -> Index:
    """An index with which ``read_correlation`` finds its messages. Without it, PostgreSQL reads all messages.

    It has the messages whose metadata has a correlationStreamName. It is not part of ``metadata``: create it with
    CreateIndex in a revision of your own. ``options`` are passed to Index, such as ``postgresql_concurrently=True``.
    """
    columns = messages.to_metadata(MetaData()).c
    correlation = keys.correlation(columns.metadata)
    return Index(
        "messages_correlation",
        keys.hashed(correlation),
        columns.global_position,
        postgresql_where=correlation.is_not(None),
        **options,
    )


def causation_index(**options: Any) -> Index:
    """An index with which ``read_effects`` finds its messages. Without it, PostgreSQL reads all messages several times.

    It has the messages whose metadata has a causationMessageStreamName. It is not part of ``metadata``: create it with
    CreateIndex in a revision of your own. ``options`` are passed to Index, such as ``postgresql_concurrently=True``.
    """
    metadata = messages.to_metadata(MetaData()).c.metadata
    stream_name = keys.causation_stream(metadata)
    return Index(
        "messages_causation",
        keys.hashed(stream_name),
        keys.hashed(keys.causation_position(metadata)),
        postgresql_where=stream_name.is_not(None),
        **options,
    )


def include_name(name: str | None, type_: str, parent_names: Mapping[Any, str | None]) -> bool:
    """Keeps the store out of your autogenerate: pass it to Alembic's ``context.configure(include_name=…)``.

    False for the schema message_store, which Alembic compares with include_schemas=True, and for the store's version
    table. Without this filter, autogenerate proposes to drop them.
    """
    if type_ == "schema":
        return name != SCHEMA
    return not (type_ == "table" and name == VERSION_TABLE)
