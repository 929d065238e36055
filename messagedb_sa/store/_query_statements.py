"""The SQL of reads by query, which also checks conditional appends."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    Select,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB

from messagedb_sa import functions
from messagedb_sa.schema import messages
from messagedb_sa.store._statements import COLUMNS, newest_of_category

QUERIES: ColumnElement[Any] = cast(bindparam("queries", type_=Text()), JSONB)
"""A JSON array, as the server function get_query_messages takes it."""


def matching(queries: ColumnElement[Any], batch_size: Any) -> Select[Any]:
    """The messages that match, by the server function get_query_messages."""
    return select(functions.get_query_messages(queries, batch_size).table_valued(*COLUMNS))


def matching_by_category(queries: ColumnElement[Any], batch_size: Any) -> Select[Any]:
    """The same, for stores without that function. It reads each category from its position to its end.

    By get_category_messages, which looks with a snapshot of its own, as get_query_messages does.
    """
    query = func.jsonb_array_elements(queries).table_valued(column("value", JSONB), name="query").c.value
    position = cast(query["position"].astext, BigInteger)
    found = functions.get_category_messages(query["category"].astext, position, literal_column("-1")).table_valued(
        *COLUMNS, name="found"
    )
    types, tags = query["types"], query["tags"]
    return (
        select(found)
        .select_from(query.table.join(found, true()))
        .where(
            or_(types.is_(None), types.has_key(found.c.type)),
            or_(tags.is_(None), cast(found.c.metadata, JSONB)["tags"].contains(tags)),
        )
        # A message may match several queries.
        .distinct()
        .order_by(found.c.global_position)
        .limit(func.nullif(batch_size, literal_column("-1")))
    )


def _read_query(found: Select[Any]) -> Executable:
    query = func.jsonb_array_elements(QUERIES).table_valued(column("value", JSONB), name="query").c.value
    category = query["category"].astext
    end = newest_of_category(1, messages.c.global_position, of=category).scalar_subquery()
    of_category = {"stream_name": category, "global_position": func.coalesce(end, 0)}
    ends = select(*(of_category.get(each.name, cast(null(), each.type)).label(each.name) for each in COLUMNS))
    both = union_all(ends, found.subquery().select()).subquery()
    return select(both).order_by(both.c.global_position)


_batch_size = bindparam("batch_size", type_=BigInteger())
READ_QUERY = _read_query(matching(QUERIES, _batch_size))
"""The messages; and for each query a row that has no id: its category as stream_name, and this category's last global
position. What came later is not in the result, since a category's messages become visible in their order."""

READ_QUERY_BY_CATEGORY = _read_query(matching_by_category(QUERIES, _batch_size))
"""The same without get_query_messages."""
