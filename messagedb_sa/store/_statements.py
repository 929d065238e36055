"""The SQL of the store's operations, as SQLAlchemy expressions. Each is built once, so that a call builds no SQL."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any
from typing import cast as cast_type

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    ColumnElement,
    Executable,
    FromClause,
    Select,
    String,
    Subquery,
    TableValuedAlias,
    Text,
    bindparam,
    case,
    cast,
    column,
    exists,
    extract,
    false,
    func,
    literal_column,
    not_,
    or_,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

from messagedb_sa import functions
from messagedb_sa._drivers.catalog import triggers
from messagedb_sa.schema import SCHEMA, message_columns, messages

NO_STREAM = -1
"""As ``expected_version``: the stream must not exist yet."""

COLUMNS = message_columns(decoded=False)
"""What every read returns, in this order; ``_rows`` makes messages of it."""

FIRST_TIME: ColumnElement[Any] = literal_column("timestamp '0001-01-01'")
LAST_TIME: ColumnElement[Any] = literal_column("timestamp '9999-12-31 23:59:59.999999'")
"""The times that Python has. PostgreSQL has others."""

WRITE_EACH_PARAMETERS = {
    "ids": "id",
    "streams": "stream_name",
    "types": "type",
    "data": "data",
    "metadata": "metadata",
}
"""For each array parameter of WRITE_EACH, the parameter of WRITE that its elements stand for."""


# ---- parts


def text_parameter(name: str) -> Any:
    return bindparam(name, type_=String())


def number_parameter(name: str) -> Any:
    return bindparam(name, type_=BigInteger())


def unknown_limit(number: ColumnElement[int]) -> Any:
    """A limit that PostgreSQL does not know when it plans: it then expects to need a tenth of the rows.

    So it reads them in the order of an index. If it knew the limit, and its statistics said that there are hardly more
    rows than that, or not many, it would rather read all of them and sort them: of a category that has grown since,
    millions.
    """
    return select(cast(number, BigInteger)).scalar_subquery()


def json_parameter(name: str) -> Any:
    return cast(bindparam(name, type_=Text()), JSONB)


def texts_parameter(name: str) -> ColumnElement[Any]:
    """An array that is sent as PostgreSQL's array literal."""
    return cast(bindparam(name, type_=Text()), ARRAY(String))


def iso_time(time: ColumnElement[Any]) -> ColumnElement[Any]:
    """The text of a time that Python has, as in ``Message.as_json_dict``. The session's settings do not matter."""
    return func.to_char(time, literal_column("""'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'"""))


def elements(json_array: ColumnElement[Any]) -> ColumnElement[Any]:
    elements = func.jsonb_array_elements(json_array).table_valued(column("value", JSONB))
    return func.array(
        select(func.nullif(elements.c.value, literal_column("'null'::jsonb"))).scalar_subquery(), type_=ARRAY(JSONB)
    )


def step(name: str, query: Select[Any]) -> CTE:
    return query.cte(name).prefix_with("MATERIALIZED")


def unnested(name: str, **arrays: ColumnElement[Any]) -> TableValuedAlias:
    """The arrays side by side as columns of these names, with each row's ``number`` from 1."""
    columns = (column(key, cast_type("ARRAY[Any]", array.type).item_type) for key, array in arrays.items())
    return func.unnest(*arrays.values()).table_valued(*columns, with_ordinality="number", name=name).render_derived()


# ---- writing one message


def _write_message(expected_version: Any = None) -> ColumnElement[int]:
    return functions.write_message(
        text_parameter("id"),
        text_parameter("stream_name"),
        text_parameter("type"),
        json_parameter("data"),
        json_parameter("metadata"),
        expected_version,
    )


def version_under_lock() -> tuple[Subquery, ColumnElement[bool]]:
    """The stream's ``version`` once its category's lock is held, and whether it is the expected one."""
    # OFFSET 0 keeps the steps apart. The functions are volatile: the version is read with a snapshot newer than the
    # lock, within one statement.
    locked = (
        select(functions.acquire_lock(text_parameter("stream_name"))).offset(literal_column("0")).subquery("locked")
    )
    current = (
        select(func.coalesce(functions.stream_version(text_parameter("stream_name")), NO_STREAM).label("version"))
        .select_from(locked)
        .offset(literal_column("0"))
        .subquery("current")
    )
    return current, current.c.version == cast(number_parameter("expected_version"), BigInteger)


def _write_if_as_expected() -> Executable:
    current, as_expected = version_under_lock()
    return select(case((as_expected, _write_message())), current.c.version)


def _write_each() -> Executable:
    # Without ORDER BY, and with OFFSET 0 to keep the steps apart: row by row this takes the lock, reads the version,
    # which the rows before may have changed, and writes. A sort would read all versions first.
    arrays: dict[str, Any] = {key: bindparam(key, type_=ARRAY(Text())) for key in WRITE_EACH_PARAMETERS}
    arrays["expected_versions"] = bindparam("expected_versions", type_=ARRAY(BigInteger()))
    new = unnested("new", **arrays)
    locked = select(new, functions.acquire_lock(new.c.streams).label("key")).offset(literal_column("0")).subquery()
    version = func.coalesce(functions.stream_version(locked.c.streams), NO_STREAM)
    current = select(locked, version.label("version")).offset(literal_column("0")).subquery()
    expected = func.coalesce(current.c.expected_versions, current.c.version)
    data, metadata = (cast(current.c[name], JSONB) for name in ("data", "metadata"))
    position = functions.write_message(current.c.ids, current.c.streams, current.c.types, data, metadata)
    return select(current.c.number, case((expected == current.c.version, position)), current.c.version)


WRITE = select(_write_message(number_parameter("expected_version")))
"""A row with the position. The server raises an error if the stream is at another version."""

WRITE_IF_AS_EXPECTED = _write_if_as_expected()
"""A row with the position, None if the stream is at another version, and that version. Raises no error, which would
abort the caller's transaction."""

WRITE_EACH = _write_each()
"""Several writes to one category, each with its own expected version: number, position or None, and version of each."""


# ---- parking a message


def _park() -> Executable:
    # Copied in the database, so that what cannot be decoded is parked too, and each value as it is stored.
    is_of_python = messages.c.time.between(FIRST_TIME, LAST_TIME)
    its_own = func.jsonb_build_object(
        literal_column("'metadata'"),
        messages.c.metadata,
        literal_column("'id'"),
        messages.c.id,
        literal_column("'time'"),
        case((is_of_python, iso_time(messages.c.time)), else_=cast(messages.c.time, Text)),
    )
    origin = func.jsonb_build_object(
        literal_column("'causationMessageStreamName'"),
        messages.c.stream_name,
        literal_column("'causationMessagePosition'"),
        messages.c.position,
        literal_column("'causationMessageGlobalPosition'"),
        messages.c.global_position,
        literal_column("'dead'"),
        json_parameter("dead").op("||", return_type=JSONB())(its_own),
    )
    is_object = func.jsonb_typeof(messages.c.metadata) == literal_column("'object'")
    metadata = case((is_object, messages.c.metadata), else_=literal_column("'{}'::jsonb"))
    parked = functions.write_message(
        text_parameter("id"),
        text_parameter("stream_name"),
        cast(messages.c.type, String),
        messages.c.data,
        metadata.op("||", return_type=JSONB())(origin),
    )
    return select(parked).where(_is_original)


_is_original = messages.c.id == cast(text_parameter("original"), UUID)
PARK = _park()
"""Writes a copy of the message ``original``, with its metadata, its origin and ``dead`` as metadata."""


# ---- reading


def columns_of_messages(table: FromClause = messages) -> Iterator[ColumnElement[Any]]:
    for each in COLUMNS:
        own: ColumnElement[Any] = table.c[each.name]
        yield own if each.name == "time" else cast(own, each.type).label(each.name)


def _read_member_and_stream_without_id() -> Executable:
    of_member = select(*READ_CATEGORY.selected_columns)
    correlated = functions.category(messages.c.metadata["correlationStreamName"].astext) == text_parameter(
        "correlation"
    )
    without_id = READ_ALL.where(
        messages.c.stream_name == text_parameter("category"), or_(text_parameter("correlation").is_(None), correlated)
    )
    both = union_all(of_member, select(*without_id.subquery().c)).subquery()
    return select(both).order_by(both.c.global_position).limit(number_parameter("batch_size"))


def newest_of_category(number: int, *columns: ColumnElement[Any], of: ColumnElement[str] | None = None) -> Select[Any]:
    """These columns of a category's last messages, the newest first. ``of``: None for the parameter ``category``."""
    category, position = functions.category(messages.c.stream_name), messages.c.global_position
    # PostgreSQL looks up bounds on both columns at once in messages_category, as in get_category_messages.
    name = text_parameter("category") if of is None else of
    first, last = (tuple_(name, literal_column(bound)) for bound in ("0", str(2**63 - 1)))
    return (
        select(*columns)
        .where(tuple_(category, position) >= first, tuple_(category, position) <= last)
        .order_by(category.desc(), position.desc())
        .limit(literal_column(str(number)))
    )


def known_categories() -> CTE:
    """Every ``category``, from one to the next: a lookup in messages_category for each."""
    category = functions.category(messages.c.stream_name)
    first = select(category.label("category")).order_by(category).limit(literal_column("1"))
    known = select(first.subquery("first")).cte("known", recursive=True)
    following = first.where(category > known.c.category).lateral("following")
    return known.union_all(select(following).select_from(known.join(following, true())))


READ_ALL = (
    select(*columns_of_messages())
    .where(messages.c.global_position >= number_parameter("position"))
    .order_by(messages.c.global_position)
    .limit(number_parameter("batch_size"))
)
READ_STREAM = select(
    functions.get_stream_messages(
        text_parameter("stream_name"),
        number_parameter("position"),
        number_parameter("batch_size"),
        text_parameter("condition"),
    ).table_valued(*COLUMNS)
)
READ_CATEGORY = select(
    functions.get_category_messages(
        text_parameter("category"),
        number_parameter("position"),
        number_parameter("batch_size"),
        text_parameter("correlation"),
        number_parameter("consumer_group_member"),
        number_parameter("consumer_group_size"),
        text_parameter("condition"),
    ).table_valued(*COLUMNS)
)
READ_MEMBER_AND_STREAM_WITHOUT_ID = _read_member_and_stream_without_id()
"""What a member of a group reads, and the stream that has the category's name, which Message DB gives to no member."""

READ_LAST = select(
    functions.get_last_stream_message(text_parameter("stream_name"), text_parameter("type")).table_valued(*COLUMNS)
)
READ_BY_ID = select(*columns_of_messages()).where(_is_original)
END_OF_ALL = select(func.coalesce(func.max(messages.c.global_position), 0))
END_OF_CATEGORY = select(func.coalesce(newest_of_category(1, messages.c.global_position).scalar_subquery(), 0))
STREAM_VERSION = select(func.coalesce(functions.stream_version(text_parameter("stream_name")), NO_STREAM))
_identifier = functions.id(messages.c.stream_name).collate("C")
STREAM_IDENTIFIERS = (
    select(_identifier)
    .distinct()
    .where(functions.category(messages.c.stream_name) == text_parameter("category"), _identifier != "")
    .order_by(_identifier)
)


# ---- reading values that drivers cannot return


def plain(read: Any, *, kept: bool) -> Executable:
    """The same read with all values as bytes of UTF-8, which no driver, and hardly any application, converts.

    The time is in seconds since 1970, followed by its text for errors. ``kept``: the statement is one of ours.
    """
    return _kept_plain(read) if kept else _plain(read)


def _plain(read: Any) -> Executable:
    read = read.subquery()
    *others, time = (read.c[each.name] for each in COLUMNS)
    return select(*map(bytes_of, (*others, extract("epoch", time), time)))


def bytes_of(value: ColumnElement[Any]) -> ColumnElement[Any]:
    """The value's text as bytes of UTF-8."""
    # In a database without an encoding, PostgreSQL converts nothing.
    encoding = case(
        (func.getdatabaseencoding() == literal_column("'SQL_ASCII'"), literal_column("'SQL_ASCII'")),
        else_=literal_column("'UTF8'"),
    )
    return func.convert_to(cast(value, Text), encoding)


_kept_plain = lru_cache(maxsize=None)(_plain)


# ---- what is installed

VERSION = select(functions.message_store_version())
OUR_FUNCTIONS = {
    "write_messages": "write_messages(varchar[],varchar,varchar[],jsonb,jsonb,bigint)",
    "get_query_messages": "get_query_messages(jsonb,bigint)",
}
"""The functions that we add to Message DB's, with their signatures."""

WRITE_MESSAGES = frozenset({"write_messages"})
GET_QUERY_MESSAGES = frozenset({"get_query_messages"})
"""For the operations that use one of them."""

HAS_OUR_FUNCTIONS = select(
    *(
        func.coalesce(
            func.has_function_privilege(func.to_regprocedure(f"{SCHEMA}.{signature}"), literal_column("'EXECUTE'")),
            false(),
        )
        for signature in OUR_FUNCTIONS.values()
    )
)
"""Whether each of them exists, and may be executed."""

HAS_NOTIFICATIONS = select(
    exists(literal_column("1")).where(
        not_(func.pg_is_in_recovery()),
        triggers.c.tgrelid == func.to_regclass("message_store.messages"),
        triggers.c.tgname == literal_column("'messages_notify'"),
        or_(triggers.c.tgenabled == literal_column("'O'"), triggers.c.tgenabled == literal_column("'A'")),
    )
)
"""Whether every writer notifies of the category that it writes to, and sessions of this server can listen."""
