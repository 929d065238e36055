"""The SQL of the pages: messages without all of their data, and one message whatever it holds.

The data of a message may have many megabytes, and a page has many messages. Other clients may have written what Python
does not represent. So pages get JSON as text, and only the beginning of it.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Index,
    Select,
    Text,
    and_,
    case,
    cast,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSONB

from messagedb_sa import functions
from messagedb_sa._drivers.catalog import indexes
from messagedb_sa.schema import SCHEMA, causation_index, correlation_index, messages
from messagedb_sa.store._statements import FIRST_TIME, LAST_TIME

PREVIEW = 240
"""How many characters of a message's data and metadata a list shows."""
SHOWN = 200_000
"""How many characters of them the page of a message shows."""
LOOKED_AT = 10_000
"""How many messages a page looks at for those of a type, or with fields in their metadata, which have no index."""

# Larger ones are not read for a preview. It is the size on disk, which PostgreSQL knows without reading the value.
_SMALL: ColumnElement[Any] = literal_column("16384")
_ONE: ColumnElement[Any] = literal_column("1")
_FIRST: ColumnElement[Any] = literal_column("0")
_LAST: ColumnElement[Any] = literal_column(str(2**63 - 1))
_columns = messages.c
_of_category = functions.category(_columns.stream_name)
# Of an infinite time, and of one outside of the years that Python has, the closest one.
_time = func.least(func.greatest(_columns.time, FIRST_TIME), LAST_TIME)


class Source(NamedTuple):
    """Messages in the order of an index: ``key`` has its columns, of which the last one is the position."""

    key: tuple[ColumnElement[Any], ...]
    values: tuple[str, ...]
    """What the key's other columns are."""


def stream(name: str) -> Source:
    return Source((_columns.stream_name, _columns.position), (name,))


def category(name: str) -> Source:
    return Source((_of_category, _columns.global_position), (name,))


ALL = Source((_columns.global_position,), ())


def listed(
    source: Source,
    position: int | None,
    number: int,
    *,
    forwards: bool,
    type: str | None = None,
    fields: dict[str, Any] | None = None,
) -> Select[Any]:
    """At most ``number`` messages from a position on, inclusive, or from the source's end; with previews as data and
    metadata: text, None for NULL, or the bytes on disk of what is too large.

    With a type, or fields that the metadata must have, those among the next LOOKED_AT. If there are more than these,
    the first of the rest comes last, with the type "".
    """
    where, order_by = _in_order(source, position, forwards)
    if type is None and fields is None:
        return select(*_all_columns(_columns.type, *_PREVIEWS)).where(*where).order_by(*order_by).limit(number)
    in_order = (
        select(_columns.global_position, _columns.type, _columns.metadata)
        .where(*where)
        .order_by(*order_by)
        .limit(LOOKED_AT + 1)
        .subquery("in_order")
    )
    # Counted in the order in which they come: to order them again would take longer than to read them.
    next_ones = select(*in_order.c, func.row_number().over().label("place")).subquery("next_ones")
    is_wanted = [] if type is None else [next_ones.c.type == type]
    if fields is not None:
        is_wanted.append(next_ones.c.metadata.op("@>")(cast(literal(json.dumps(fields)), JSONB)))
    is_rest = next_ones.c.place > LOOKED_AT
    found = (
        select(
            next_ones.c.global_position, next_ones.c.place, case((is_rest, ""), else_=next_ones.c.type).label("type")
        )
        .where(or_(and_(*is_wanted), is_rest))
        .order_by(next_ones.c.place)
        .limit(number)
        .subquery("found")
    )
    is_found = _columns.global_position == found.c.global_position
    columns = _all_columns(found.c.type, *_PREVIEWS)
    return select(*columns).join_from(found, messages, is_found).order_by(found.c.place)


def message(
    *,
    id: UUID | None = None,
    global_position: int | None = None,
    stream_name: str | None = None,
    position: int | None = None,
) -> Select[Any]:
    """A message, by one of its three names.

    Its data: [the beginning, how many characters there are, whether it is the last one of its stream]. Its metadata:
    [the beginning, how many characters there are, whether the database has the index that finds what it caused].
    """
    return _by(_SHOWN, id, global_position, stream_name, position)


def raw(id: UUID) -> Select[Any]:
    """A message with all of its data and metadata, as the text of JSON."""
    return _by(_RAW, id, None, None, None)


def _by(
    columns: list[ColumnElement[Any]],
    id: UUID | None,
    global_position: int | None,
    stream_name: str | None,
    position: int | None,
) -> Select[Any]:
    names = (
        (_columns.id, id),
        (_columns.global_position, global_position),
        (_columns.stream_name, stream_name),
        (_columns.position, position),
    )
    return select(*columns).where(*(column == value for column, value in names if value is not None))


def _in_order(
    source: Source, position: int | None, forwards: bool
) -> tuple[tuple[ColumnElement[bool], ...], tuple[ColumnElement[Any], ...]]:
    """The conditions and the order."""
    # Compared as one row value, with all columns in the order: PostgreSQL can then use this index only. If it could
    # choose the primary key, it might go through all messages of other categories.
    key, values = source
    whole = tuple_(*key)
    first, last = (_FIRST, _LAST) if position is None else (literal(position, BigInteger),) * 2
    if forwards:
        return (whole >= tuple_(*values, first), whole <= tuple_(*values, _LAST)), key
    where = whole >= tuple_(*values, _FIRST), whole <= tuple_(*values, last)
    return where, tuple(each.desc() for each in key)


def _all_columns(
    type: ColumnElement[Any], data: ColumnElement[Any], metadata: ColumnElement[Any]
) -> list[ColumnElement[Any]]:
    c = _columns
    own = c.id, c.stream_name, type, c.position, c.global_position
    return [*own, data.label("data"), metadata.label("metadata"), _time.label("time")]


def _preview(value: ColumnElement[Any]) -> ColumnElement[Any]:
    size: ColumnElement[Any] = func.pg_column_size(value)
    text = func.left(cast(value, Text), literal_column(str(PREVIEW)))
    return case((size < _SMALL, func.to_json(text)), else_=func.to_json(size))


def _beginning(value: ColumnElement[Any], more: ColumnElement[Any]) -> ColumnElement[Any]:
    text = cast(value, Text)
    # Not an object, of which the engine's own json_deserializer may make something else.
    return func.json_build_array(func.left(text, literal_column(str(SHOWN))), func.length(text), more)


def _has_index(index: Index) -> ColumnElement[bool]:
    """Whether the database has it. Without it, PostgreSQL would read the whole store."""
    name: ColumnElement[str] = literal_column(f"'{SCHEMA}.{index.name}'")
    return exists().where(indexes.c.indexrelid == func.to_regclass(name), indexes.c.indisvalid)


def _whole(value: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.to_json(cast(value, Text))


_PREVIEWS = _preview(_columns.data), _preview(_columns.metadata)
_next = messages.alias("next")
_IS_LAST = ~exists().where(_next.c.stream_name == _columns.stream_name, _next.c.position == _columns.position + _ONE)
_SHOWN = _all_columns(
    _columns.type,
    _beginning(_columns.data, _IS_LAST),
    _beginning(_columns.metadata, _has_index(causation_index())),
)
_RAW = _all_columns(_columns.type, _whole(_columns.data), _whole(_columns.metadata))
HAS_CORRELATION_INDEX = select(_has_index(correlation_index()))
