"""The SQL of exports, imports, copies and comparisons, as SQLAlchemy expressions.

Values travel as PostgreSQL's own text, and never as objects of Python: numbers keep all their digits.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Executable,
    FromClause,
    MetaData,
    Table,
    Text,
    bindparam,
    case,
    cast,
    column,
    exists,
    func,
    insert,
    literal_column,
    not_,
    select,
    table,
    text,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSON, JSONB, UUID
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.schema import CreateTable

from messagedb_sa import functions
from messagedb_sa.schema import SCHEMA, consumer_positions, messages
from messagedb_sa.store._statements import (
    FIRST_TIME,
    NO_STREAM,
    bytes_of,
    iso_time,
    number_parameter,
    step,
    text_parameter,
    unnested,
)

PAGE_MESSAGES = 1000
PAGE_BYTES = 2**20
"""A page has at most so many messages, and ends after so many bytes of data as they are stored, perhaps compressed."""

DIGEST_MESSAGES = 10_000
"""How many messages one digest is about."""

NO_OF_PROBLEMS = 10
"""How many conflicts of a kind, and how many differences, are looked for."""

END = 2**63 - 1
"""The last global position that there can be."""

JSON_NULL = "json_null"
"""In a line: the names of the fields that are JSON's null, and not SQL's NULL."""


# ---- reading


def _raw(of: FromClause) -> tuple[ColumnElement[Any], ...]:
    # Not time as text, except if it is infinite: that depends on the session's DateStyle.
    time = case(
        (not_(func.isfinite(of.c.time)), cast(of.c.time, Text)),
        (of.c.time < FIRST_TIME, iso_time(of.c.time).op("||")(literal_column("' BC'"))),
        else_=iso_time(of.c.time),
    )
    return (
        cast(of.c.id, Text).label("id"),
        of.c.stream_name,
        of.c.type,
        of.c.position,
        of.c.global_position,
        cast(of.c.data, Text).label("data"),
        cast(of.c.metadata, Text).label("metadata"),
        time.label("time"),
    )


def _time(value: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.timezone(literal_column("'UTC'"), cast(value, DateTime(timezone=True)))


def _page(key: tuple[ColumnElement[Any], ...], *bounds: ColumnElement[bool]) -> Executable:
    """The messages within the bounds in the order of the key, until one of the limits of a page is reached."""
    sizes = [func.coalesce(func.pg_column_size(each), 0) for each in (messages.c.data, messages.c.metadata)]
    # Of the messages before this one.
    before = func.sum(sizes[0] + sizes[1]).over(order_by=key, rows=(None, -1))
    # With the key as columns, PostgreSQL knows that the page is sorted.
    page = (
        select(messages, before.label("before"), *(part.label(f"key_{n}") for n, part in enumerate(key)))
        .where(*bounds)
        .order_by(*key)
        .limit(literal_column(str(PAGE_MESSAGES)))
        .subquery("page")
    )
    is_on_it = func.coalesce(page.c.before, 0) < literal_column(str(PAGE_BYTES))
    return select(*_raw(page)).where(is_on_it).order_by(*(page.c[f"key_{n}"] for n in range(len(key))))


_position = messages.c.global_position
_after, _end = number_parameter("after"), number_parameter("end")
_category = functions.category(messages.c.stream_name)
_name = text_parameter("name")

READ_ALL = _page((_position,), _position > _after, _position <= _end)
# Bounds on both columns at once, as in get_category_messages: so PostgreSQL looks them up in messages_category.
READ_CATEGORY = _page(
    (_category, _position),
    tuple_(_category, _position) > tuple_(_name, _after),
    tuple_(_category, _position) <= tuple_(_name, _end),
)
READ_STREAM = _page(
    (messages.c.position,), messages.c.stream_name == _name, messages.c.position > _after, messages.c.position <= _end
)
"""Raw messages after a position and up to another one, in order. No row: there are no more."""

READ_ONE = select(*_raw(messages)).where(_position == number_parameter("position"))
READ_LAST = select(*_raw(messages)).order_by(_position.desc()).limit(literal_column("1"))


def _gap() -> Executable:
    # Without a gap, the n-th message after a position has that position plus n.
    wanted = func.row_number().over(order_by=_position) + cast(_after, BigInteger)
    numbered = (
        select(_position, wanted.label("wanted")).where(_position > _after, _position <= _end).subquery("numbered")
    )
    return (
        select(numbered.c.wanted)
        .where(numbered.c.global_position != numbered.c.wanted)
        .order_by(numbered.c.global_position)
        .limit(literal_column("1"))
    )


GAP = _gap()
"""The first global position that is missing. No row: none is."""


def _digest() -> Executable:
    def sha256(value: ColumnElement[Any]) -> ColumnElement[str]:
        return func.encode(func.sha256(bytes_of(value)), literal_column("'hex'"))

    page = (
        select(messages)
        .where(_position > _after, _position <= _end)
        .order_by(_position)
        .limit(literal_column(str(DIGEST_MESSAGES)))
        .subquery("page")
    )
    # PostgreSQL quotes the fields in a row's text, so that different rows have different texts.
    each = step("each", select(page.c.global_position, sha256(func.row(*_raw(page))).label("digest")))
    in_order = func.array(select(each.c.digest).order_by(each.c.global_position).scalar_subquery(), type_=ARRAY(Text))
    of_all = sha256(func.array_to_string(in_order, literal_column("''")))
    return select(func.count(), func.max(each.c.global_position), of_all).select_from(each)


DIGEST = _digest()
"""Of the messages after a position and up to another one: their number, the last global position, and a digest of all
fields of all of them."""


# ---- writing

LOCK = text(f"LOCK TABLE {SCHEMA}.messages IN SHARE ROW EXCLUSIVE MODE")
"""Waits for the open transactions that write, and lets no other write until the transaction ends. Reading goes on."""

_ONE = literal_column("1", BigInteger())
_sequence = table("messages_global_position_seq", column("last_value", BigInteger), schema=SCHEMA)

_FIELDS: dict[str, Any] = {
    "id": UUID(),
    "stream_name": Text(),
    "type": Text(),
    "position": BigInteger(),
    "global_position": BigInteger(),
    "data": JSONB(),
    "metadata": JSONB(),
    "time": DateTime(),
}
"""The columns of a message, in the order of ``Message``."""


def _append() -> Executable:
    arrays = {
        name: bindparam(name, type_=ARRAY(BigInteger() if isinstance(type_, BigInteger) else Text()))
        for name, type_ in _FIELDS.items()
    }
    new = unnested("new", **arrays)
    values = [_time(new.c.time) if name == "time" else cast(new.c[name], type_) for name, type_ in _FIELDS.items()]
    return insert(messages).from_select(list(_FIELDS), select(*values), include_defaults=False)


APPEND = _append()
"""Writes messages as they are. The parameters are an array for each field."""

_last_given_out = select(func.greatest(func.max(_position), select(_sequence.c.last_value).scalar_subquery()))
ADVANCE_SEQUENCE = select(
    func.setval(literal_column(f"'{SCHEMA}.{_sequence.name}'"), _last_given_out.scalar_subquery())
)
"""The next global position is after that of the last message."""

# ---- importing

STAGED = Table(
    "messagedb_import",
    MetaData(),
    Column("line", BigInteger, primary_key=True, autoincrement=False),
    *(Column(name, type_, nullable=name in ("data", "metadata")) for name, type_ in _FIELDS.items()),
    schema="pg_temp",
    prefixes=["TEMPORARY"],
    postgresql_on_commit="DROP",
)
"""The messages of a file, before they are checked and imported."""

CREATE_STAGED = CreateTable(STAGED)
ANALYZE_STAGED = text(f"ANALYZE {STAGED.fullname}")

_WITH_OFFSET = r"':\d\d(\.\d+)?(Z|[+-]\d\d(:?\d\d)?)( BC)?$|^-?infinity$'"


def _stage() -> Executable:
    line = unnested(
        "lines",
        lines=bindparam("lines", type_=ARRAY(Text())),
        numbers=bindparam("numbers", type_=ARRAY(BigInteger())),
    )
    field = (
        func.json_to_record(cast(line.c.lines, JSON))
        .table_valued(
            *(column(name, type_ if isinstance(type_, JSONB) else JSON()) for name, type_ in _FIELDS.items()),
            column(JSON_NULL, JSONB()),
            name="field",
        )
        .render_derived(with_types=True)
        .lateral()
    )

    def value(name: str, json_type: str) -> ColumnElement[Any]:
        # NULL, which the table refuses, if it is of another type.
        its_text = field.c[name].op("#>>", return_type=Text())(literal_column("'{}'"))
        return case((func.json_typeof(field.c[name]) == literal_column(f"'{json_type}'"), its_text))

    def document(name: str) -> ColumnElement[Any]:
        is_null = func.jsonb_exists(field.c[JSON_NULL], literal_column(f"'{name}'"))
        return case((is_null, literal_column("'null'::jsonb")), else_=field.c[name])

    time = value("time", "string")
    values = [
        line.c.numbers,
        cast(value("id", "string"), UUID),
        value("stream_name", "string"),
        value("type", "string"),
        cast(value("position", "number"), BigInteger),
        cast(value("global_position", "number"), BigInteger),
        document("data"),
        document("metadata"),
        _time(case((time.regexp_match(literal_column(_WITH_OFFSET)), time))),
    ]
    return insert(STAGED).from_select(["line", *_FIELDS], select(*values).select_from(line.join(field, true())))


STAGE = _stage()
"""Puts lines of JSON, with their numbers, into the table."""

_staged = STAGED.c


def _lock_categories() -> Executable:
    # In the same order as write_streams, so that the two do not deadlock.
    category = functions.category(_staged.stream_name)
    each = select(category.label("name")).distinct().subquery("each")
    hashed = functions.hash_64(each.c.name)
    in_order = select(each.c.name).order_by(hashed).offset(literal_column("0")).subquery("in_order")
    return select(func.count(functions.acquire_lock(in_order.c.name)))


LOCK_CATEGORIES = _lock_categories()
"""Takes the locks that writers to these categories take."""


_previous = func.lag(_staged.position).over(partition_by=_staged.stream_name, order_by=_staged.line)
_previous_global = func.lag(_staged.global_position).over(order_by=_staged.line)
_allow_gaps = cast(bindparam("allow_gaps", type_=Boolean()), Boolean)


def _first(statement: Any) -> Executable:
    found: Executable = statement.order_by(literal_column("1")).limit(literal_column(str(NO_OF_PROBLEMS)))
    return found


def _order_in_streams() -> Executable:
    line = select(_staged.line, _staged.stream_name, _staged.position, _previous.label("previous")).subquery()
    next_position = line.c.previous + _ONE
    is_wrong = case((_allow_gaps, line.c.position < next_position), else_=line.c.position != next_position)
    return _first(select(line).where(is_wrong))


def _beginnings() -> Executable:
    begins = (
        select(func.min(_staged.line).label("line"), _staged.stream_name, func.min(_staged.position).label("position"))
        .group_by(_staged.stream_name)
        .subquery("begins")
    )
    version = func.coalesce(functions.stream_version(begins.c.stream_name), NO_STREAM)
    stream = select(begins, version.label("version")).offset(literal_column("0")).subquery("stream")
    next_position = stream.c.version + _ONE
    is_wrong = case((_allow_gaps, stream.c.position < next_position), else_=stream.c.position != next_position)
    return _first(select(stream).where(is_wrong))


def _order_of_all() -> Executable:
    line = select(_staged.line, _staged.global_position, _previous_global.label("previous")).subquery()
    return _first(select(line).where(line.c.global_position <= line.c.previous))


IDS_TWICE = _first(
    select(func.max(_staged.line), _staged.id, func.min(_staged.line)).group_by(_staged.id).having(func.count() > 1)
)
"""Line, id, and the line that has it already."""

IDS_TAKEN = _first(
    select(_staged.line, _staged.id, messages.c.stream_name, messages.c.position).join(
        messages, messages.c.id == _staged.id
    )
)
"""Line, id, and the stream and the position of the message that has it."""

ORDER_IN_STREAMS = _order_in_streams()
"""Line, stream, position, and the position before it in the file."""

BEGINNINGS = _beginnings()
"""Line, stream, position, and the version that the stream has in the store."""

ORDER_OF_ALL = _order_of_all()
"""Line, global position, and the one before it in the file."""

BEGINNING_OF_ALL = select(
    func.min(_staged.global_position), select(func.coalesce(func.max(_position), 0)).scalar_subquery()
)
"""The first global position in the file, and the last one in the store."""


def _import(*, with_global_positions: bool) -> Executable:
    names = [name for name in _FIELDS if with_global_positions or name != "global_position"]
    lines = (
        select(*(_staged[name] for name in names))
        .where(_staged.line > number_parameter("after"), _staged.line <= number_parameter("last"))
        .order_by(_staged.line)
    )
    new = insert(messages).from_select(names, lines, include_defaults=False).returning(_position).cte("new")
    return select(func.count(), func.max(new.c.global_position))


IMPORT = _import(with_global_positions=True)
IMPORT_WITH_NEW_GLOBAL_POSITIONS = _import(with_global_positions=False)
"""Writes the messages of some lines. A row with their number and the last global position."""


# ---- positions in the table

HAS_POSITIONS = select(func.to_regclass(f"{SCHEMA}.{consumer_positions.name}").is_not(None))
ANY_POSITION = select(exists(select(literal_column("1")).select_from(consumer_positions)))

_columns = consumer_positions.c


def _read_positions() -> Executable:
    # Not beyond the end of the copy: a consumer would skip what is written there later.
    page = (
        select(
            _columns.stream_name,
            func.least(_columns.position, _end).label("position"),
            _columns.version,
            _columns.marker,
            func.least(_columns.recorded_after, _end).label("recorded_after"),
            _columns.time,
        )
        .where(_columns.stream_name > text_parameter("after_name"))
        .order_by(_columns.stream_name)
        .limit(literal_column(str(PAGE_MESSAGES)))
        .subquery("page")
    )
    return select(func.max(page.c.stream_name), cast(func.json_agg(literal_column("page")), Text)).select_from(page)


READ_POSITIONS = _read_positions()
"""The name of the last row's stream, None if there is none, and the rows as JSON."""


def _write_positions() -> Executable:
    rows = (
        func.json_to_recordset(cast(text_parameter("rows"), JSON))
        .table_valued(*(column(each.name, each.type) for each in _columns), name="rows")
        .render_derived(with_types=True)
    )
    write = upsert(consumer_positions).from_select([each.name for each in _columns], select(rows))
    key, *others = (each.name for each in _columns)
    return write.on_conflict_do_update(index_elements=[key], set_={name: write.excluded[name] for name in others})


WRITE_POSITIONS = _write_positions()
