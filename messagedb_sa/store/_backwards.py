"""Reads from the newest message to the oldest: their SQL, each by an index and in its order.

Message DB's functions read forwards only, so these read the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    FromClause,
    Select,
    bindparam,
    cast,
    exists,
    func,
    literal_column,
    select,
    tuple_,
)

from messagedb_sa import functions
from messagedb_sa._drivers.catalog import indexes
from messagedb_sa.message import Message
from messagedb_sa.schema import SCHEMA, consumer_group_index, messages
from messagedb_sa.store._operation import Operation, Page, Run
from messagedb_sa.store._rows import scalar
from messagedb_sa.store._statements import columns_of_messages, text_parameter, unknown_limit

LAST = 2**63 - 1
"""The position that a read backwards begins at by default."""

_position = bindparam("position", type_=BigInteger())
_batch_size = bindparam("batch_size", type_=BigInteger())
_member = cast(bindparam("consumer_group_member", type_=BigInteger()), BigInteger)
_of_category = functions.category(messages.c.stream_name)


@dataclass(slots=True)
class MemberPage(Page):
    """A page of a member of a consumer group. ``statement`` is for a store without the index for groups of this size.

    PostgreSQL would find that index for ``by_index`` only, which is slow without it. So the first page looks it up.
    """

    index: str = field(kw_only=True)
    by_index: Executable = field(kw_only=True)
    is_looked_up: bool = False

    def perform(self, run: Run) -> list[Message]:
        if not self.is_looked_up and run(Operation(_HAS_INDEX, {"index": self.index}, scalar)):
            self.statement = self.by_index
        self.is_looked_up = True
        return self._read(run)


_HAS_INDEX = select(
    exists(literal_column("1")).where(
        indexes.c.indexrelid == func.to_regclass(text_parameter("index")), indexes.c.indisvalid
    )
)


def _newest(table: FromClause, key: Sequence[ColumnElement[Any]], *values: Any) -> Select[Any]:
    """The newest messages up to the position, of those whose key begins with these values.

    ``key`` has the columns of an index, of which the last is the global position. They are compared as one row value,
    and the order names them all. So PostgreSQL can use that index only: if it could choose the primary key, it might
    go through all later messages of other categories.
    """
    whole = tuple_(*key)
    return (
        select(*columns_of_messages(table))
        .where(whole >= tuple_(*values, literal_column("0")), whole <= tuple_(*values, _position))
        .order_by(*(each.desc() for each in key))
        .limit(unknown_limit(_batch_size))
    )


def _correlated(read: Select[Any], table: FromClause = messages) -> Select[Any]:
    origin = functions.category(table.c.metadata["correlationStreamName"].astext)
    return read.where(origin == text_parameter("correlation"))


@cache
def member_backwards(group_size: int, *, correlated: bool) -> tuple[Executable, str, Executable]:
    """The newest messages of a member: without the index for groups of this size, its name, and with it."""
    # The index's own expressions, in which the size is a literal: otherwise PostgreSQL would not recognize them.
    index = consumer_group_index(group_size)
    table = index.table
    assert table is not None
    expressions: Any = index.expressions
    of_category, its_member, position = expressions
    category = text_parameter("category")
    by_category = _newest(table, (of_category, position), category).where(its_member == _member)
    by_index = _newest(table, (of_category, its_member, position), category, _member)
    if correlated:
        by_category, by_index = _correlated(by_category, table), _correlated(by_index, table)
    return by_category, f"{SCHEMA}.{index.name}", by_index


STREAM_BACKWARDS = (
    select(*columns_of_messages())
    .where(messages.c.stream_name == text_parameter("stream_name"), messages.c.position <= _position)
    .order_by(messages.c.position.desc())
    .limit(_batch_size)
)
CATEGORY_BACKWARDS = _newest(messages, (_of_category, messages.c.global_position), text_parameter("category"))
CORRELATED_BACKWARDS = _correlated(CATEGORY_BACKWARDS)
ALL_BACKWARDS = (
    select(*columns_of_messages())
    .where(messages.c.global_position <= _position)
    .order_by(messages.c.global_position.desc())
    .limit(_batch_size)
)
