"""The SQL of recorded positions, as SQLAlchemy expressions."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    Numeric,
    Subquery,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    extract,
    false,
    func,
    literal_column,
    null,
    or_,
    select,
    table,
    true,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID, insert

from messagedb_sa import functions
from messagedb_sa.schema import POSITIONS_CATEGORY, SCHEMA, consumer_positions, messages
from messagedb_sa.store._consumer_streams import RECORDED
from messagedb_sa.store._statements import FIRST_TIME, LAST_TIME, known_categories, newest_of_category, text_parameter

TABLE = f"{SCHEMA}.{consumer_positions.name}"
RECORDED_IN = "recordedIn"
"""In the metadata of a marker, with the name of the table as its value."""
FORGOTTEN = "forgotten"
"""In the metadata of a message without a position, true: the consumer has none any more."""


def microseconds(time: ColumnElement[Any]) -> ColumnElement[int]:
    """Since 1970, of the closest time that Python has: other clients write any, and applications convert times."""
    closest = func.greatest(FIRST_TIME, func.least(LAST_TIME, time))
    return case((time.is_not(None), cast(extract("epoch", closest) * 1_000_000, BigInteger)))


is_recorded = messages.c.type == literal_column(f"'{RECORDED}'")
_position = messages.c.data["position"]
_number = case((func.jsonb_typeof(_position) == literal_column("'number'"), cast(_position, Numeric)))
# There is one global position more, but none after it, at which a consumer could continue.
_is_in_bounds = _number.between(literal_column("0"), literal_column(str(2**63 - 2)))
_is_global_position = and_(_is_in_bounds, _number == func.trunc(_number))
# What is in a message: None if that is not a position.
_recorded_position = cast(case((and_(is_recorded, _is_global_position), _number)), BigInteger)
_is_forgotten = func.coalesce(
    and_(is_recorded, messages.c.metadata[FORGOTTEN] == literal_column("'true'::jsonb")), false()
)
_is_marker = and_(is_recorded, messages.c.metadata[RECORDED_IN].astext == literal_column(f"'{TABLE}'"))


def _bigint(name: str) -> ColumnElement[int]:
    return cast(bindparam(name, type_=BigInteger()), BigInteger)


_ZERO, _ONE = (literal_column(each, BigInteger()) for each in ("0", "1"))

# Of the last message of a stream.
_OF_LAST: tuple[ColumnElement[Any], ...] = (
    messages.c.stream_name,
    messages.c.position.label("version"),
    messages.c.global_position,
    messages.c.id,
    _recorded_position.label("recorded"),
    microseconds(messages.c.time).label("at"),
    func.coalesce(_is_marker, false()).label("is_marker"),
    _is_forgotten.label("is_forgotten"),
)
_is_of_consumer = or_(_recorded_position.is_not(None), _is_forgotten)


def _last_of_stream() -> Subquery:
    of_stream = messages.c.stream_name == text_parameter("stream_name")
    newest = select(*_OF_LAST).where(of_stream).order_by(messages.c.position.desc())
    return newest.limit(literal_column("1")).subquery("last")


def _last_of_category() -> Subquery:
    """The last position in each stream."""
    newest = (
        select(messages.c.stream_name, func.max(messages.c.position).label("position"))
        .where(functions.category(messages.c.stream_name) == text_parameter("category"))
        .where(_is_of_consumer)
        .group_by(messages.c.stream_name)
        .subquery("newest")
    )
    is_newest = and_(messages.c.stream_name == newest.c.stream_name, messages.c.position == newest.c.position)
    return select(*_OF_LAST).join_from(newest, messages, is_newest).subquery("last")


_category = functions.category(messages.c.stream_name)
_hash = functions.hash_64(_category)


def _last_by_index(*, of_category: bool) -> Subquery:
    """The last position in each stream, from one stream to the next: two lookups in messages_recorded for each."""
    # What the index holds, in its own words.
    held = (is_recorded, _category.regexp_match(literal_column(f"'{POSITIONS_CATEGORY}'")))
    newest = select(_hash.label("hash"), *_OF_LAST).where(*held, _is_of_consumer)
    if of_category:
        category = text_parameter("category")
        # Not ``==``: PostgreSQL would use the index of categories instead, and read every position for each stream, if
        # its statistics are from before the first one.
        newest = newest.where(_hash == functions.hash_64(category), _category.is_not_distinct_from(category))
    newest = newest.order_by(_hash.desc(), messages.c.stream_name.desc(), messages.c.position.desc())
    newest = newest.limit(literal_column("1"))
    last = select(newest.subquery("first")).cte("last", recursive=True)
    # With both bounds, PostgreSQL would use the first only to filter.
    before = (
        messages.c.stream_name < last.c.stream_name
        if of_category
        else tuple_(_hash, messages.c.stream_name) < tuple_(last.c.hash, last.c.stream_name)
    )
    following = newest.where(before).lateral("following")
    every = last.union_all(select(following).select_from(last.join(following, true())))
    return select(every).subquery()


def categories_like(pattern: str) -> Executable:
    """The categories that match a regular expression."""
    every = known_categories()
    return select(every.c.category).where(every.c.category.regexp_match(literal_column(f"'{pattern}'")))


def where_they_are(last: Subquery, *, with_table: bool) -> Executable:
    """Of the last message of each stream: the stream's name, its version, and what is recorded, there or in its row.

    The columns: name, version, position, at, row_version, whether the message is a marker, the two of ``order``, and
    whether the consumer was forgotten.
    """
    of_message = case((~last.c.is_marker, last.c.recorded))
    name = last.c.stream_name
    if not with_table:
        return select(
            name,
            last.c.version,
            of_message,
            last.c.at,
            null(),
            last.c.is_marker,
            last.c.global_position,
            _ZERO,
            last.c.is_forgotten,
        )
    held = consumer_positions
    is_its_row = and_(held.c.stream_name == last.c.stream_name, held.c.marker == last.c.id)
    at = microseconds(held.c.time)
    return select(
        name,
        last.c.version,
        func.coalesce(held.c.position, of_message),
        func.coalesce(at, last.c.at),
        held.c.version,
        last.c.is_marker,
        func.coalesce(held.c.recorded_after, last.c.global_position),
        func.coalesce(at, _ZERO),
        last.c.is_forgotten,
    ).select_from(last.outerjoin(held, is_its_row))


def _recent_statement(*, with_table: bool) -> Executable:
    columns = (
        functions.id(messages.c.stream_name),
        messages.c.global_position,
        _ZERO.label("zero"),
        _is_forgotten.label("gone"),
    )
    in_streams = newest_of_category(1000, *columns).where(is_recorded)
    if not with_table:
        return in_streams
    held = consumer_positions
    is_marked = and_(messages.c.id == held.c.marker, messages.c.stream_name == held.c.stream_name)
    in_table = (
        select(functions.id(held.c.stream_name), held.c.recorded_after, microseconds(held.c.time), false())
        .join_from(held, messages, is_marked)
        .where(functions.category(held.c.stream_name) == text_parameter("category"))
    )
    return union_all(select(*in_streams.subquery("recent").c), in_table)


def _write_message(metadata: Any = None) -> ColumnElement[int]:
    return functions.write_message(
        text_parameter("id"),
        text_parameter("stream"),
        literal_column(f"'{RECORDED}'"),
        cast(bindparam("data", type_=Text()), JSONB),
        null() if metadata is None else metadata,
        bindparam("expected_version", type_=BigInteger()),
    )


def _take() -> Executable:
    marker: ColumnElement[Any] = literal_column(f"""'{{"{RECORDED_IN}": "{TABLE}"}}'::jsonb""")
    written = select(_write_message(marker)).cte("written").prefix_with("MATERIALIZED")
    row: dict[str, ColumnElement[Any]] = {
        "stream_name": cast(text_parameter("stream"), Text),
        "position": _bigint("recorded"),
        "version": _ZERO,
        "marker": cast(text_parameter("id"), UUID),
        "recorded_after": _LAST_GIVEN_OUT,
        "time": _NOW,
    }
    taken = insert(consumer_positions).from_select(list(row), select(*row.values()).select_from(written))
    again = {name: taken.excluded[name] for name in row if name != "stream_name"}
    return taken.on_conflict_do_update(
        index_elements=[consumer_positions.c.stream_name],
        set_={**again, "version": consumer_positions.c.version + _ONE},
    ).returning(consumer_positions.c.version)


def _update() -> Executable:
    held = consumer_positions
    last = select(messages.c.id).where(messages.c.stream_name == text_parameter("stream"))
    marker = last.order_by(messages.c.position.desc()).limit(literal_column("1")).scalar_subquery()
    return (
        update(held)
        .where(held.c.stream_name == text_parameter("stream"), held.c.version == _bigint("row_version"))
        .where(held.c.marker == marker)
        .values(position=_bigint("recorded"), version=held.c.version + _ONE, recorded_after=_LAST_GIVEN_OUT, time=_NOW)
        .returning(held.c.version)
    )


def _leave() -> Executable:
    held = consumer_positions
    freed = (
        update(held)
        .where(held.c.stream_name == text_parameter("stream"), held.c.version == _bigint("row_version"))
        .values(version=held.c.version + _ONE)
        .returning(held.c.version)
        .cte("freed")
    )
    return select(_write_message()).select_from(freed)


_NOW = func.timezone(literal_column("'utc'"), func.clock_timestamp())
# It belongs to no transaction, and so makes none fail to serialize, as a look at the last message would.
_sequence = table("messages_global_position_seq", column("last_value", BigInteger), schema=SCHEMA)
_LAST_GIVEN_OUT = select(_sequence.c.last_value).scalar_subquery()

# Each without the table, and with it.
READS_OF_STREAM = [where_they_are(_last_of_stream(), with_table=each) for each in (False, True)]
READS_OF_CATEGORY = [where_they_are(_last_of_category(), with_table=each) for each in (False, True)]
READS_OF_CATEGORY_BY_INDEX = [
    where_they_are(_last_by_index(of_category=True), with_table=each) for each in (False, True)
]
READS_BY_INDEX = [where_they_are(_last_by_index(of_category=False), with_table=each) for each in (False, True)]
RECENT = [_recent_statement(with_table=each) for each in (False, True)]

POSITION_CATEGORIES = categories_like(POSITIONS_CATEGORY)

UPDATE = _update()
"""Records in the row: its new version. No row if the version is another one, or if the row does not count any more."""

TAKE = _take()
"""Writes a marker to the stream, and records in the row, which counts from then on: its new version."""

LEAVE = _leave()
"""Writes the position to the stream, which counts from then on: its new version. No row if the row's version is another
one. The row has a new version then, so that nobody records in it."""


def _privilege(*privileges: str) -> ColumnElement[bool]:
    regclass = func.to_regclass(TABLE)
    return and_(*(func.coalesce(func.has_table_privilege(regclass, each), false()) for each in privileges))


TABLE_ACCESS: tuple[ColumnElement[Any], ...] = (
    func.to_regclass(TABLE).is_not(None),
    _privilege("SELECT"),
    and_(
        _privilege("SELECT", "INSERT", "UPDATE"),
        func.coalesce(
            func.has_sequence_privilege(func.to_regclass(f"{SCHEMA}.messages_global_position_seq"), "SELECT"), false()
        ),
    ),
    literal_column("session_user"),
    func.to_regclass(f"{SCHEMA}.messages_recorded").is_not(None),
)
"""The columns of TableAccess."""
