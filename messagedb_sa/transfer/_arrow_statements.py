"""The SQL that reads messages for Arrow, whose values are a part of it: COPY takes no parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, String, Text, case, cast, func, literal, select, tuple_
from sqlalchemy.dialects.postgresql.base import PGDialect

from messagedb_sa import _arguments as arguments
from messagedb_sa import functions
from messagedb_sa import stream_name as names
from messagedb_sa.schema import messages
from messagedb_sa.store._statements import FIRST_TIME, LAST_TIME

# Not a driver's, which would double each percent sign.
_DIALECT = PGDialect()  # type: ignore[no-untyped-call]

PREPARE = "SET LOCAL enable_sort = off"
"""Let PostgreSQL read in the order of an index, however many messages there are: it then sends the first at once, and
needs no space on its disk."""


def messages_statement(name: str, first: int, last: int, types: Sequence[str] | None, no_of_messages: int) -> str:
    """The messages of a stream, a category or ``$all`` between two positions, in order; -1 for all of them."""
    statement = _of(name, first, last)
    if types is not None:
        statement = statement.where(messages.c.type.in_([_text(each) for each in types]))
    if no_of_messages != -1:
        statement = statement.limit(literal(no_of_messages, BigInteger()))
    return str(statement.compile(dialect=_DIALECT, compile_kwargs={"literal_binds": True}))


def _of(name: str, first: int, last: int) -> Select[Any]:
    begin, end = (literal(each, BigInteger()) for each in (first, last))
    if name == arguments.ALL:
        key = messages.c.global_position
        return select(*_columns()).where(key >= begin, key <= end).order_by(key)
    # Bounds on both columns of an index at once, as in get_category_messages.
    columns: tuple[Any, Any] = messages.c.stream_name, messages.c.position
    if names.is_category(name):
        columns = functions.category(messages.c.stream_name), messages.c.global_position
    bounds = tuple_(*columns) >= tuple_(_text(name), begin), tuple_(*columns) <= tuple_(_text(name), end)
    return select(*_columns()).where(*bounds).order_by(*columns)


def _columns() -> tuple[ColumnElement[Any], ...]:
    columns = messages.c
    # Others overflow in Arrow, without an error.
    time = case((columns.time.between(FIRST_TIME, LAST_TIME), func.timezone(literal("UTC"), columns.time)))
    return (
        cast(columns.id, Text).label("id"),
        cast(columns.stream_name, Text).label("stream_name"),
        cast(columns.type, Text).label("type"),
        columns.position,
        columns.global_position,
        cast(columns.data, Text).label("data"),
        cast(columns.metadata, Text).label("metadata"),
        time.label("time"),
    )


def _text(value: str) -> ColumnElement[str]:
    # In hexadecimal digits, nothing in it can be mistaken for a quote, a backslash or a parameter, whatever the
    # session's settings are. The server computes it once, when it plans the query.
    digits = literal(value.encode().hex())
    return func.convert_from(func.decode(digits, literal("hex")), literal("UTF8"), type_=String())
