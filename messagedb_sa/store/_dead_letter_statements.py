"""The SQL of dead letters, as SQLAlchemy expressions."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Executable,
    Select,
    String,
    Text,
    bindparam,
    cast,
    func,
    literal_column,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

from messagedb_sa import functions
from messagedb_sa.schema import messages
from messagedb_sa.store._consumer_streams import DEAD, ONLY_DEAD_LETTERS
from messagedb_sa.store._position_statements import categories_like, microseconds
from messagedb_sa.store._statements import COLUMNS, bytes_of, text_parameter, unnested

FAILED, HANDLED, DISCARDED = "Failed", "Handled", "Discarded"
"""The types of the messages in an outcome stream. A dead letter without any has failed."""

_letter = messages.alias("letter")
_dead = _letter.c.metadata[DEAD]
_outcome = (
    select(messages.c.type, messages.c.metadata[DEAD].label("dead"), messages.c.time)
    .where(
        messages.c.stream_name
        == text_parameter("outcomes").op("||")(literal_column("'-'")).op("||")(cast(_letter.c.id, Text))
    )
    .order_by(messages.c.position.desc())
    .limit(literal_column("1"))
    .lateral("outcome")
)


def _text_of(key: str) -> Any:
    return func.coalesce(_outcome.c.dead[key].astext, _dead[key].astext)


def _causation(key: str) -> Any:
    return _letter.c.metadata[f"causationMessage{key}"].astext


# As bytes, since no driver and no application converts these.
LETTER_COLUMNS = [
    bytes_of(value)
    for value in (
        _letter.c.id,
        _letter.c.global_position,
        _letter.c.stream_name,
        microseconds(func.coalesce(_outcome.c.time, _letter.c.time)),
        _text_of("error"),
        _text_of("traceback"),
        _dead["id"].astext,
        _causation("StreamName"),
        _letter.c.type,
        _causation("Position"),
        _causation("GlobalPosition"),
        _letter.c.data,
        _dead["metadata"],
        _dead["time"].astext,
    )
]


def _open(*columns: Any) -> Select[Any]:
    return (
        select(*LETTER_COLUMNS, *columns)
        .select_from(_letter.outerjoin(_outcome, true()))
        .where(
            func.jsonb_typeof(_dead) == literal_column("'object'"),
            func.coalesce(_outcome.c.type, FAILED) == FAILED,
        )
    )


def _write_outcomes() -> Executable:
    # OFFSET 0 keeps the steps apart. The functions are volatile: what became of each is read with a snapshot newer than
    # the lock, within one statement.
    new = unnested("new", streams=bindparam("streams", type_=ARRAY(Text())))
    locked = select(new.c.streams, functions.acquire_lock(new.c.streams)).offset(literal_column("0")).subquery("locked")
    last = functions.get_last_stream_message(locked.c.streams).table_valued(*COLUMNS).lateral("last")
    current = (
        select(locked.c.streams, func.coalesce(last.c.type, FAILED).label("type"))
        .select_from(locked.outerjoin(last, true()))
        .offset(literal_column("0"))
        .subquery("current")
    )
    position = functions.write_message(
        cast(func.gen_random_uuid(), String),
        current.c.streams,
        text_parameter("type"),
        literal_column("'{}'::jsonb"),
        cast(bindparam("metadata", type_=Text()), JSONB),
    )
    return select(position).where((current.c.type == FAILED) == cast(bindparam("if_open", type_=Boolean()), Boolean))


def _from(key: tuple[Any, Any], position: Any) -> tuple[Any, Any]:
    """Compared as one row value, and ordered by both: PostgreSQL can then use the index of categories only. If it could
    choose the primary key, it might go through all later messages of other categories."""
    category = text_parameter("category")
    return tuple_(*key) >= tuple_(category, position), tuple_(*key) <= tuple_(category, literal_column(str(2**63 - 1)))


_letter_key = functions.category(_letter.c.stream_name), _letter.c.global_position
PAGE = (
    _open()
    .where(
        *_from(_letter_key, bindparam("position", type_=BigInteger())),
        or_(
            cast(text_parameter("stream_name"), Text).is_(None), _letter.c.stream_name == text_parameter("stream_name")
        ),
    )
    .order_by(*_letter_key)
    .limit(bindparam("batch_size", type_=BigInteger()))
)
_key = functions.category(messages.c.stream_name), messages.c.global_position
FIRST_OF_LAST = (
    select(messages.c.global_position)
    .where(*_from(_key, literal_column("0")))
    .order_by(*(each.desc() for each in _key))
    .offset(bindparam("no_of_messages", type_=BigInteger()) - literal_column("1"))
    .limit(literal_column("1"))
)
"""Where the last so many messages of a category begin. No row if it has fewer."""
CATEGORIES = categories_like(ONLY_DEAD_LETTERS)
"""Those in which consumers have parked messages."""

CATEGORY_OF = select(functions.category(_letter.c.stream_name)).where(
    _letter.c.id == cast(text_parameter("id"), UUID),
    functions.category(_letter.c.stream_name).regexp_match(literal_column(f"'{ONLY_DEAD_LETTERS}'")),
)
_is_it = (
    functions.category(_letter.c.stream_name) == text_parameter("category"),
    _letter.c.id == cast(text_parameter("id"), UUID),
)
READ = _open().where(*_is_it)
_lock = functions.hash_64(cast(_letter.c.id, String))
OPEN = _open(func.pg_try_advisory_xact_lock(_lock)).where(*_is_it)
WRITE_OUTCOMES = _write_outcomes()
