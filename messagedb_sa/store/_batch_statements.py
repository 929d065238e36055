"""The SQL of write_batch and write_streams, as SQLAlchemy expressions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    ColumnElement,
    Executable,
    Select,
    String,
    TableValuedAlias,
    Text,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal_column,
    null,
    select,
    true,
    union_all,
)

from messagedb_sa import functions
from messagedb_sa.store._query_statements import QUERIES, matching, matching_by_category
from messagedb_sa.store._statements import (
    NO_STREAM,
    elements,
    json_parameter,
    number_parameter,
    step,
    text_parameter,
    texts_parameter,
    unnested,
)


def write_new(new: Any, stream_name: Any, expected_version: Any = None) -> ColumnElement[int]:
    return functions.write_message(new.c.ids, stream_name, new.c.types, new.c.data, new.c.metadata, expected_version)


# ---- one stream


def write_all(expected_version: Any = None) -> ColumnElement[int]:
    """Writes the messages of the parameters by write_messages."""
    return functions.write_messages(
        texts_parameter("ids"),
        text_parameter("stream_name"),
        texts_parameter("types"),
        json_parameter("data"),
        json_parameter("metadata"),
        expected_version,
    )


def new_messages() -> TableValuedAlias:
    """The messages of the same parameters as rows, for ``write_new``."""
    return unnested(
        "new",
        ids=texts_parameter("ids"),
        types=texts_parameter("types"),
        data=elements(json_parameter("data")),
        metadata=elements(json_parameter("metadata")),
    )


def _write_batch_one_by_one() -> Executable:
    new = new_messages()
    # The first write takes the category's lock and checks the version; the others then need no check. psycopg2 sends
    # values without types: PostgreSQL would take a bare NULL in CASE for text.
    expected_version = case((new.c.number == 1, cast(number_parameter("expected_version"), BigInteger)))
    written = (
        select(write_new(new, text_parameter("stream_name"), expected_version).label("position"))
        .order_by(new.c.number)
        .subquery("written")
    )
    return select(func.max(written.c.position))


WRITE_BATCH = select(write_all(number_parameter("expected_version")))
"""A row with the position of the last message, by the server function write_messages."""

WRITE_BATCH_ONE_BY_ONE = _write_batch_one_by_one()
"""The same by write_message, for stores without write_messages."""


# ---- several streams


def _write_streams(
    write: Callable[[CTE], Select[Any]], find: Callable[[ColumnElement[Any], Any], Select[Any]] | None = None
) -> Executable:
    # Each step is materialized and refers to the one before it, so that all locks are held and all conditions checked
    # before the first message is written. Each row carries what is written to its stream: to cut that out of arrays of
    # all messages takes longer the more messages there are.
    wanted = unnested(
        "wanted",
        streams=bindparam("streams", type_=ARRAY(Text())),
        expected_versions=bindparam("expected_versions", type_=ARRAY(BigInteger())),
        ids=texts_parameter("ids"),
        types=texts_parameter("types"),
        data=elements(json_parameter("data")),
        metadata=elements(json_parameter("metadata")),
    )
    locked = step(
        "locked",
        select(wanted, functions.acquire_lock(wanted.c.streams).label("key"))
        .order_by(wanted.c.number),
    )  # fmt: skip
    version = func.coalesce(functions.stream_version(locked.c.streams), NO_STREAM)
    found = step("found", select(locked.c.streams, locked.c.expected_versions, version.label("version")))
    conflict = step("conflict", select(found).where(found.c.expected_versions != found.c.version).limit(1))
    is_written = locked.c.ids != literal_column("'{}'")
    outdated = step("outdated", _outdated().where(true() if find else exists(select(locked).where(~is_written))))
    written = write(locked).where(is_written, ~exists(select(conflict)), ~exists(select(outdated)))
    no_number, no_text = cast(null(), BigInteger), cast(null(), String)
    rows = [
        select(conflict.c.streams, no_number, conflict.c.version, no_text, no_number),
        select(no_text, no_number, no_number, outdated.c.level, no_number),
    ]
    if find:
        matched = step("matched", _matched(locked, find))
        written = written.where(~exists(select(matched)))
        rows.append(select(matched.c.stream_name, no_number, no_number, matched.c.type, matched.c.global_position))
    done = step("written", written)
    by_stream = select(done.c.streams, func.max(done.c.position), no_number, no_text, no_number)
    return union_all(by_stream.group_by(done.c.streams), *rows)


# The isolation levels that give each statement, also inside of functions, a new snapshot.
_NEW_SNAPSHOTS: tuple[ColumnElement[str], ...] = (
    literal_column("'read committed'"),
    literal_column("'read uncommitted'"),
)


def _outdated() -> Select[Any]:
    """The isolation level, if its snapshot may be older than the locks: what was written meanwhile cannot be seen.

    A stream that is written to needs no such check: its next position is taken then.
    """
    level = func.current_setting(literal_column("'transaction_isolation'"))
    return select(level.label("level")).where(level.not_in(_NEW_SNAPSHOTS))


def _matched(locked: CTE, find: Callable[[ColumnElement[Any], Any], Select[Any]]) -> Select[Any]:
    """The first message that matches the condition, looked for when all locks are held."""
    held = select(func.count().label("number")).select_from(locked).subquery("held")
    first = find(case((held.c.number > 0, QUERIES)), literal_column("1")).lateral("first")
    columns = (first.c.stream_name, first.c.type, first.c.global_position)
    return select(*columns).select_from(held.join(first, true()))


def _of_stream(streams: CTE) -> tuple[ColumnElement[Any], ...]:
    ids, types = (cast(array_literal, ARRAY(String)) for array_literal in (streams.c.ids, streams.c.types))
    return ids, types, streams.c.data, streams.c.metadata


def _written_by_stream(streams: CTE) -> Select[Any]:
    ids, types, data, metadata = _of_stream(streams)
    position = functions.write_messages(ids, streams.c.streams, types, data, metadata)
    return select(streams.c.streams, position.label("position")).order_by(streams.c.number)


def _written_one_by_one(streams: CTE) -> Select[Any]:
    ids, types, data, metadata = _of_stream(streams)
    new = unnested("new", ids=ids, types=types, data=elements(data), metadata=elements(metadata)).lateral()
    written = select(streams.c.streams, write_new(new, streams.c.streams).label("position"))
    return written.select_from(streams.join(new, true())).order_by(streams.c.number, new.c.number)


WRITE_STREAMS = _write_streams(_written_by_stream)
"""A row for each stream that is written to, with its name and the position of its last message. If nothing is written,
one or more rows that say why: a stream's name and version, if it is at another version; the transaction's isolation
level as the fourth column, if versions of other streams cannot be checked in it."""

WRITE_STREAMS_ONE_BY_ONE = _write_streams(_written_one_by_one)
"""The same by write_message, for stores without write_messages."""

WRITE_STREAMS_IF = _write_streams(_written_by_stream, matching)
"""The same, if no message matches ``queries``; otherwise the stream name, the type and the global position of the first
that does, as the first, fourth and fifth column."""

WRITE_STREAMS_IF_ONE_BY_ONE = _write_streams(_written_one_by_one, matching_by_category)
"""The same for stores that have neither write_messages nor get_query_messages."""
