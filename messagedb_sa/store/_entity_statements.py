"""The SQL of entities: a snapshot with the events after it, and a write that returns what it wrote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    Numeric,
    Select,
    String,
    case,
    cast,
    func,
    literal_column,
    null,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import UUID

from messagedb_sa import functions
from messagedb_sa._message_types import SCHEMA_VERSION
from messagedb_sa.schema import messages
from messagedb_sa.store._batch_statements import new_messages, write_all, write_new
from messagedb_sa.store._consumer_streams import RECORDED
from messagedb_sa.store._snapshots import ENTITY_VERSION
from messagedb_sa.store._statements import (
    COLUMNS,
    columns_of_messages,
    number_parameter,
    step,
    text_parameter,
    version_under_lock,
)

REPEATED = ""
"""The name of the stream in a row that says that the message with the id ``first_id`` exists in the stream."""

_EMPTY: ColumnElement[Any] = cast(literal_column("''"), String)
_ANY_TIME: ColumnElement[Any] = literal_column("timestamp '1970-01-01'")


def _columns(**replaced: ColumnElement[Any]) -> Iterator[ColumnElement[Any]]:
    # Without a type, so that no class is registered for it; with a time that Python has.
    replaced = {"type": _EMPTY, "time": _ANY_TIME, **replaced}
    return (replaced.get(each.name, each).label(each.name) for each in columns_of_messages())


def _snapshot() -> Select[Any]:
    version = messages.c.data[ENTITY_VERSION]
    # Any client may have written any number. What does not fit is found out later.
    bounded = func.least(func.greatest(cast(version, Numeric), literal_column("-1")), literal_column(str(2**62)))
    state_version = func.coalesce(messages.c.metadata[SCHEMA_VERSION].astext, literal_column("'1'"))
    return (
        select(*_columns(), cast(func.floor(bounded), BigInteger).label("version"))
        .where(
            messages.c.stream_name == text_parameter("snapshot_stream"),
            messages.c.type == literal_column(f"'{RECORDED}'"),
            state_version == text_parameter("state_version"),
            func.jsonb_typeof(version) == literal_column("'number'"),
        )
        .order_by(messages.c.position.desc())
        .limit(literal_column("1"))
    )


def _read(*, snapshot: bool, command: bool) -> Executable:
    parts: list[Select[Any]] = []
    position = number_parameter("position")
    if command:
        its_first = messages.c.id == cast(text_parameter("first_id"), UUID)
        nothing = {"stream_name": _EMPTY, "data": cast(null(), String), "metadata": cast(null(), String)}
        parts.append(
            select(*_columns(**nothing)).where(its_first, messages.c.stream_name == text_parameter("stream_name"))
        )
    if snapshot:
        last = step("snapshot", _snapshot())
        parts.append(select(*(last.c[each.name] for each in COLUMNS)))
        position = func.coalesce(select(last.c.version).scalar_subquery(), literal_column("0"))
    page = functions.get_stream_messages(text_parameter("stream_name"), position, number_parameter("batch_size"))
    parts.append(select(page.table_valued(*COLUMNS)))
    return union_all(*parts)


READS = {
    (snapshot, command): _read(snapshot=snapshot, command=command)
    for snapshot, command in ((False, True), (True, False), (True, True))
}
"""By whether there may be a snapshot, and whether a command's first message is looked for.

Rows of the stream's messages, from ``position`` or from the version of the last snapshot; of that snapshot, in its own
stream; and of REPEATED. They need not be in this order.
"""


def _write_and_read() -> Executable:
    # The function that reads is called once its arguments are known, and so after the write.
    last, count = write_all(number_parameter("expected_version")), number_parameter("count")
    read = functions.get_stream_messages(text_parameter("stream_name"), last - count + 1, count)
    written: ColumnElement[Any] = literal_column("true")
    return select(written, null(), *read.table_valued(*COLUMNS).c)


def _write_and_read_if_as_expected(*, one_by_one: bool) -> Executable:
    # OFFSET 0 keeps the steps apart. The functions are volatile, so each sees what the ones before have written.
    name, count = text_parameter("stream_name"), number_parameter("count")
    current, as_expected = version_under_lock()
    if one_by_one:
        new = new_messages()
        each = select(write_new(new, name).label("position")).where(as_expected).order_by(new.c.number)
        positions = each.correlate(current).subquery("each")
        last: Any = select(func.max(positions.c.position)).scalar_subquery()
    else:
        last = case((as_expected, write_all()))
    written = select(current.c.version, last.label("position")).offset(literal_column("0")).subquery("written")
    number = case((written.c.position.is_(None), literal_column("0")), else_=count)
    page = functions.get_stream_messages(name, written.c.position - count + 1, number)
    read = page.table_valued(*COLUMNS, name="read").lateral()
    both = written.outerjoin(read, true())
    return select(written.c.position.is_not(None), written.c.version, *read.c).select_from(both)


WRITE_AND_READ = _write_and_read()
"""Writes a batch, and returns what it wrote, in rows that begin with true and None. The server raises an error if the
stream is at another version."""

WRITE_AND_READ_IF_AS_EXPECTED = _write_and_read_if_as_expected(one_by_one=False)
"""The same; but if the stream is at another version, there is one row, which begins with false and that version. No
error is raised: it would abort the caller's transaction."""

WRITE_AND_READ_ONE_BY_ONE = _write_and_read_if_as_expected(one_by_one=True)
"""The same by write_message, for stores without write_messages."""
