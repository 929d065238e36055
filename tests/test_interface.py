"""What the migrations install, in SQL: the tables, functions, views and privileges of Message DB 1.3.0."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from hashlib import md5
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from messagedb_sa import Store, install
from messagedb_sa.schema import VERSION_TABLE

READS = ["get_stream_messages", "get_category_messages"]
HELPERS = ["category", "id", "cardinal_id", "is_category", "hash_64"]
VIEWS = {
    "type_summary": ["type"],
    "stream_summary": ["stream_name"],
    "stream_type_summary": ["stream_name", "type"],
    "type_stream_summary": ["type", "stream_name"],
    "category_type_summary": ["category", "type"],
    "type_category_summary": ["type", "category"],
}


@pytest.fixture
def connection(messagedb_engine: Engine, messagedb_store: Store) -> Iterator[Connection]:
    """A new session, since settings and compiled functions outlive a transaction; nothing is committed by itself."""
    with create_engine(messagedb_engine.url, poolclass=NullPool).connect() as connection:
        yield connection


@pytest.fixture
def other(messagedb_engine: Engine, messagedb_store: Store) -> Iterator[Connection]:
    """Another one, which gives up when it has to wait for a lock."""
    impatient = {"options": "-c lock_timeout=10ms"}
    with create_engine(messagedb_engine.url, poolclass=NullPool, connect_args=impatient).connect() as connection:
        yield connection


def rows(connection: Connection, sql: str, **values: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in connection.execute(text(sql), values)]


def column(connection: Connection, sql: str, **values: Any) -> list[Any]:
    return list(connection.scalars(text(sql), values))


def run(connection: Connection, *statements: str) -> None:
    for statement in statements:
        connection.execute(text(statement))


def call(connection: Connection, function: str, **arguments: Any) -> Any:
    named = ", ".join(f'"{name}" => :{name}' for name in arguments)
    return connection.execute(text(f"SELECT * FROM message_store.{function}({named})"), arguments).all()


def value(connection: Connection, function: str, **arguments: Any) -> Any:
    ((result,),) = call(connection, function, **arguments)
    return result


def write(connection: Connection, stream_name: str, type: str = "T", data: str | None = "{}", **more: Any) -> Any:
    arguments = {"id": str(uuid4()), "stream_name": stream_name, "type": type, "data": data, **more}
    return value(connection, "write_message", **arguments)


def diagnosis(connection: Connection, do: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What psycopg2 tells about the error with which PostgreSQL refuses."""
    with pytest.raises(DBAPIError) as caught, connection.begin_nested():
        do(connection, *arguments, **named)
    original: Any = caught.value.orig
    return original.diag


def refusal(connection: Connection, do: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[str, str]:
    """The SQLSTATE and the text of the error."""
    told = diagnosis(connection, do, *arguments, **named)
    return told.sqlstate, told.message_primary


def positions(messages: Any) -> list[int]:
    return [message.position for message in messages]


def streams(messages: Any) -> list[str]:
    return [message.stream_name for message in messages]


def hash_64(value: str) -> int:
    return int.from_bytes(md5(value.encode()).digest()[:8], "big", signed=True)


# ---- the catalog


def test_the_table_messages_has_these_columns_in_this_order(connection: Connection) -> None:
    sql = """
        SELECT attname, format_type(atttypid, atttypmod), attnotnull, atthasdef FROM pg_attribute
        WHERE attrelid = 'message_store.messages'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
    """
    assert rows(connection, sql) == [
        ("global_position", "bigint", True, True),
        ("position", "bigint", True, False),
        ("time", "timestamp without time zone", True, True),
        ("stream_name", "text", True, False),
        ("type", "text", True, False),
        ("data", "jsonb", False, False),
        ("metadata", "jsonb", False, False),
        ("id", "uuid", True, True),
    ]


def test_global_position_is_a_bigserial(connection: Connection) -> None:
    sql = """
        SELECT pg_get_serial_sequence('message_store.messages', 'global_position'), format_type(seqtypid, NULL)
        FROM pg_sequence WHERE seqrelid = 'message_store.messages_global_position_seq'::regclass
    """
    assert rows(connection, sql) == [("message_store.messages_global_position_seq", "bigint")]
    default = """
        SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef
        WHERE adrelid = 'message_store.messages'::regclass AND adnum = 1
    """
    assert column(connection, default) == ["nextval('message_store.messages_global_position_seq'::regclass)"]


def test_an_inserted_row_gets_a_global_position_a_time_and_an_id(connection: Connection) -> None:
    insert = (
        "INSERT INTO message_store.messages (stream_name, position, type) VALUES ('a-1', :position, 'T') RETURNING *"
    )
    sql = "SELECT now() AT TIME ZONE 'utc'"
    first, second = (connection.execute(text(insert), {"position": position}).one() for position in (0, 1))
    assert (first.global_position, second.global_position) == (1, 2)
    assert [first.time, second.time] == column(connection, sql) * 2
    assert {first.id.version, second.id.version} == {4}
    assert first.id != second.id


def test_the_primary_key_is_global_position(connection: Connection) -> None:
    sql = """
        SELECT contype::text, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE conrelid = 'message_store.messages'::regclass AND contype <> 'n'
    """
    assert rows(connection, sql) == [("p", "PRIMARY KEY (global_position)")]


def test_there_are_three_indexes_besides_the_primary_key(connection: Connection) -> None:
    sql = """
        SELECT relname, indisunique, indpred IS NULL, array_agg(pg_get_indexdef(indexrelid, n, false) ORDER BY n)
        FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid, generate_series(1, indnatts) AS n
        WHERE indrelid = 'message_store.messages'::regclass AND NOT indisprimary AND indisvalid
        GROUP BY 1, 2, 3 ORDER BY 1
    """
    assert rows(connection, sql) == [
        (
            "messages_category",
            False,
            True,
            [
                "message_store.category((stream_name)::character varying)",
                "global_position",
                "message_store.category(((metadata ->> 'correlationStreamName'::text))::character varying)",
            ],
        ),
        ("messages_id", True, True, ["id"]),
        ("messages_stream", True, True, ["stream_name", '"position"']),
    ]


def test_the_type_message_has_these_attributes_in_this_order(connection: Connection) -> None:
    sql = """
        SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
        WHERE attrelid = (SELECT typrelid FROM pg_type WHERE oid = 'message_store.message'::regtype) ORDER BY attnum
    """
    assert rows(connection, sql) == [
        ("id", "character varying"),
        ("stream_name", "character varying"),
        ("type", "character varying"),
        ("position", "bigint"),
        ("global_position", "bigint"),
        ("data", "character varying"),
        ("metadata", "character varying"),
        ("time", "timestamp without time zone"),
    ]


def test_there_are_twelve_functions_with_these_signatures_and_one_that_we_add(connection: Connection) -> None:
    sql = """
        SELECT proname, pg_get_function_arguments(oid), pg_get_function_result(oid), provolatile::text
        FROM pg_proc WHERE pronamespace = 'message_store'::regnamespace
    """

    def short(written: str) -> str:
        return re.sub(r'::[a-z]+|"', "", written.replace("character varying", "varchar"))

    found = rows(connection, sql)
    assert {
        f"{name}({short(arguments)}) {short(result)}": volatility for name, arguments, result, volatility in found
    } == {
        "category(stream_name varchar) varchar": "i",
        "id(stream_name varchar) varchar": "i",
        "cardinal_id(stream_name varchar) varchar": "i",
        "is_category(stream_name varchar) boolean": "i",
        "hash_64(value varchar) bigint": "i",
        "acquire_lock(stream_name varchar) bigint": "v",
        "stream_version(stream_name varchar) bigint": "v",
        "message_store_version() varchar": "v",
        "write_message(id varchar, stream_name varchar, type varchar, data jsonb, metadata jsonb DEFAULT NULL, "
        "expected_version bigint DEFAULT NULL) bigint": "v",
        "get_stream_messages(stream_name varchar, position bigint DEFAULT 0, batch_size bigint DEFAULT 1000, "
        "condition varchar DEFAULT NULL) SETOF message_store.message": "v",
        "get_category_messages(category varchar, position bigint DEFAULT 1, batch_size bigint DEFAULT 1000, "
        "correlation varchar DEFAULT NULL, consumer_group_member bigint DEFAULT NULL, "
        "consumer_group_size bigint DEFAULT NULL, condition varchar DEFAULT NULL) SETOF message_store.message": "v",
        "get_last_stream_message(stream_name varchar, type varchar DEFAULT NULL) SETOF message_store.message": "v",
        "write_messages(ids varchar[], stream_name varchar, types varchar[], data jsonb, metadata jsonb DEFAULT "
        "NULL, expected_version bigint DEFAULT NULL) bigint": "v",
        "notify_category() trigger": "v",
    }


def test_with_debug_on_a_stream_reads_the_same(connection: Connection) -> None:
    store = Store(connection)
    store.write_batch("account-1", [("Opened", {"n": n}) for n in range(5)])
    found = []
    for setting in ("off", "on"):
        connection.execute(text(f"SET LOCAL message_store.debug = {setting}"))
        reads = [(0, 1000), (2, 1000), (1, 2), (0, -1), (0, 0), (7, 5)]
        found.append([store.read_stream("account-1", position, number) for position, number in reads])
    assert found[0] == found[1]
    assert [len(read) for read in found[0]] == [5, 3, 2, 5, 0, 0]


def test_there_are_six_views_with_these_columns(connection: Connection) -> None:
    sql = """
        SELECT relname, array_agg(attname || ' ' || format_type(atttypid, atttypmod) ORDER BY attnum)
        FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
        WHERE relnamespace = 'message_store'::regnamespace AND relkind = 'v' AND attnum > 0 GROUP BY 1
    """
    types = {"type": "text", "stream_name": "text", "category": "character varying"}
    assert dict(rows(connection, sql)) == {
        view: [*(f"{key} {types[key]}" for key in keys), "message_count bigint", "percent numeric"]
        for view, keys in VIEWS.items()
    }


def test_everything_lives_in_the_schema_message_store(connection: Connection) -> None:
    system = "('pg_catalog', 'information_schema', 'pg_toast')"
    relations = f"""
        SELECT relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE relkind IN ('r', 'v', 'S', 'c', 'm') AND nspname NOT IN ('message_store', {system[1:]}
    """
    functions = f"""
        SELECT proname FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
        WHERE nspname NOT IN ('message_store', {system[1:]}
    """
    assert column(connection, relations) == [VERSION_TABLE]
    assert column(connection, functions) == []


def test_no_extension_is_needed(connection: Connection) -> None:
    assert column(connection, "SELECT extname FROM pg_extension") == ["plpgsql"]


def test_the_version_is_1_3_0(connection: Connection) -> None:
    assert value(connection, "message_store_version") == "1.3.0"


# ---- names


@pytest.mark.parametrize(
    ("stream_name", "category", "id", "cardinal_id", "is_category"),
    [
        ("account", "account", None, None, True),
        ("account-1", "account", "1", "1", False),
        ("account-1+2", "account", "1+2", "1", False),
        ("account-1+2+3", "account", "1+2+3", "1", False),
        ("account-1-2+3-4", "account", "1-2+3-4", "1-2", False),
        ("account:command", "account:command", None, None, True),
        ("account:command+position-1", "account:command+position", "1", "1", False),
        ("account+x", "account+x", None, None, True),
        ("account-", "account", "", "", False),
        ("account--", "account", "-", "-", False),
        ("account-+2", "account", "+2", "", False),
        ("-1", "", "1", "1", False),
        ("-", "", "", "", False),
        ("", "", None, None, True),
        ("a b-'%\"\\_", "a b", "'%\"\\_", "'%\"\\_", False),
        ("конто-ä+ö", "конто", "ä+ö", "ä", False),
        (None, None, None, None, True),
    ],
)
def test_a_stream_name_splits_at_its_first_dash_and_its_id_at_its_first_plus(
    connection: Connection,
    stream_name: str | None,
    category: str | None,
    id: str | None,
    cardinal_id: str | None,
    is_category: bool,
) -> None:
    found = [value(connection, name, stream_name=stream_name) for name in HELPERS[:4]]
    assert found == [category, id, cardinal_id, is_category]


@pytest.mark.parametrize("hashed", ["", "account", "1", "2", "конто", "a'b\\c%", "x" * 10_000, str(UUID(int=7))])
def test_hash_64_is_the_first_8_bytes_of_the_md5_big_endian_and_signed(connection: Connection, hashed: str) -> None:
    assert value(connection, "hash_64", value=hashed) == hash_64(hashed)


def test_hash_64_has_either_sign(connection: Connection) -> None:
    found = [value(connection, "hash_64", value=str(n)) for n in range(20)]
    assert found == [hash_64(str(n)) for n in range(20)]
    assert min(found) < 0 < max(found)


def test_hash_64_of_null_is_null(connection: Connection) -> None:
    assert value(connection, "hash_64", value=None) is None


@pytest.mark.parametrize(
    ("helper", "builtin"),
    [
        ("category", "split_part("),
        ("id", "strpos("),
        ("cardinal_id", "split_part("),
        ("is_category", "strpos("),
        ("hash_64", "md5("),
    ],
)
def test_the_planner_puts_the_helpers_body_in_place_of_its_call(
    connection: Connection, helper: str, builtin: str
) -> None:
    query = (
        f"SELECT message_store.{helper}(type) FROM message_store.messages WHERE message_store.{helper}(type) IS NULL"
    )
    plan = "\n".join(column(connection, f"EXPLAIN (VERBOSE, COSTS OFF) {query}"))
    output, filter = re.findall("(?:Output|Filter): .*", plan)
    assert builtin in output
    assert builtin in filter
    assert not re.search(r"message_store\.\w+\(", plan)


# ---- the lock


def is_free(other: Connection, category: str) -> bool:
    """Whether another session could take the category's lock now."""
    (got,) = column(other, "SELECT pg_try_advisory_xact_lock(:key)", key=hash_64(category))
    other.rollback()
    return bool(got)


def keys_held(connection: Connection) -> list[int]:
    sql = """
        SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks
        WHERE locktype = 'advisory' AND objsubid = 1 AND pid = pg_backend_pid()
    """
    return column(connection, sql)


@pytest.mark.parametrize("stream_name", ["account", "account-1", "account-1+2", "account-"])
def test_acquire_lock_takes_and_returns_the_hash_of_the_category(connection: Connection, stream_name: str) -> None:
    assert value(connection, "acquire_lock", stream_name=stream_name) == hash_64("account")
    assert keys_held(connection) == [hash_64("account")]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_the_lock_is_held_until_the_transaction_ends(connection: Connection, other: Connection, end: str) -> None:
    call(connection, "acquire_lock", stream_name="account-1")
    assert not is_free(other, "account")
    assert is_free(other, "accounting")
    getattr(connection, end)()
    assert is_free(other, "account")


def test_a_transaction_may_take_the_lock_again(connection: Connection) -> None:
    for stream_name in ("account-1", "account-2"):
        assert value(connection, "acquire_lock", stream_name=stream_name) == hash_64("account")
    assert keys_held(connection) == [hash_64("account")]


def test_writing_takes_the_categorys_lock(connection: Connection) -> None:
    write(connection, "account-1")
    assert keys_held(connection) == [hash_64("account")]


@pytest.mark.parametrize("reading", ["get_stream_messages", "get_last_stream_message", "stream_version"])
def test_reading_takes_no_lock(connection: Connection, reading: str) -> None:
    call(connection, reading, stream_name="account-1")
    call(connection, "get_category_messages", category="account")
    assert keys_held(connection) == []


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_writer_waits_for_the_other_writers_of_its_category_only(
    connection: Connection, other: Connection, end: str
) -> None:
    write(connection, "account-1")
    assert refusal(other, write, "account-2") == ("55P03", "canceling statement due to lock timeout")
    assert write(other, "accounting-1") == 0
    assert write(other, "account:command-1") == 0
    getattr(connection, end)()
    assert write(other, "account-2") == 0


def test_the_order_of_commits_within_a_category_is_that_of_global_position(
    connection: Connection, other: Connection
) -> None:
    seen = []
    for writer, stream_name in ((connection, "account-1"), (other, "account-2"), (connection, "account-3")):
        write(writer, stream_name)
        writer.commit()
        seen.append([message.global_position for message in call(writer, "get_category_messages", category="account")])
        writer.rollback()
    assert seen == [[1], [1, 2], [1, 2, 3]]


def test_across_categories_a_later_global_position_can_become_visible_first(
    connection: Connection, other: Connection
) -> None:
    sql = "SELECT global_position FROM message_store.messages ORDER BY 1"
    write(connection, "account-1")
    write(other, "accounting-1")
    other.commit()
    assert column(other, sql) == [2]
    connection.commit()
    assert column(other, sql) == [1, 2]


# ---- stream_version


def test_stream_version_is_the_highest_position(connection: Connection) -> None:
    for expected in range(3):
        write(connection, "account-1")
        write(connection, "account-1+2")
        write(connection, "account")
        assert value(connection, "stream_version", stream_name="account-1") == expected


@pytest.mark.parametrize("stream_name", ["account-2", "account", "account-1+2", "", None])
def test_stream_version_of_no_stream_is_null(connection: Connection, stream_name: str | None) -> None:
    write(connection, "account-1")
    assert value(connection, "stream_version", stream_name=stream_name) is None


# ---- write_message


def test_positions_start_at_0_in_each_stream_and_write_message_returns_them(connection: Connection) -> None:
    names = ["account-1", "account-1", "account-2", "account-1", "account", "account-2", "other-1"]
    assert [write(connection, name) for name in names] == [0, 1, 0, 2, 0, 1, 0]


def test_a_write_that_was_rolled_back_leaves_a_gap_in_global_position_and_none_in_position(
    connection: Connection,
) -> None:
    write(connection, "account-1")
    with connection.begin_nested() as savepoint:
        write(connection, "account-1")
        savepoint.rollback()
    write(connection, "account-1")
    sql = "SELECT global_position, position FROM message_store.messages ORDER BY 1"
    assert rows(connection, sql) == [(1, 0), (3, 1)]


@pytest.mark.parametrize(
    ("written", "expected_version"), [(0, None), (0, -1), (1, None), (1, 0), (3, None), (3, 2)], ids=str
)
def test_the_right_expected_version_or_none_is_accepted(
    connection: Connection, written: int, expected_version: int | None
) -> None:
    for _ in range(written):
        write(connection, "account-1")
    assert write(connection, "account-1", expected_version=expected_version) == written


@pytest.mark.parametrize(
    ("written", "expected_version", "stream_version"),
    [(0, 0, -1), (0, 7, -1), (0, -2, -1), (1, -1, 0), (1, 1, 0), (3, -1, 2), (3, 0, 2), (3, 3, 2), (3, 2**62, 2)],
)
def test_a_wrong_expected_version_is_refused(
    connection: Connection, written: int, expected_version: int, stream_version: int
) -> None:
    write(connection, "account-2")
    for _ in range(written):
        write(connection, "account-1")
    assert refusal(connection, write, "account-1", expected_version=expected_version) == (
        "P0001",
        f"Wrong expected version: {expected_version} (Stream: account-1, Stream Version: {stream_version})",
    )
    assert value(connection, "stream_version", stream_name="account-1") == (written - 1 if written else None)


@pytest.mark.parametrize("stream_name", ["account-1", "account-2", "other-1"])
def test_a_message_id_that_exists_is_refused_with_23505_on_messages_id(
    connection: Connection, stream_name: str
) -> None:
    id = str(uuid4())
    write(connection, "account-1", id=id)
    told = diagnosis(connection, write, stream_name, id=id.upper())
    assert (told.sqlstate, told.constraint_name) == ("23505", "messages_id")
    assert told.message_primary == 'duplicate key value violates unique constraint "messages_id"'


@pytest.mark.parametrize("id", ["", "1", "account", str(UUID(int=1)) + "0", "g" * 32])
def test_an_id_that_is_no_uuid_is_refused_with_22p02(connection: Connection, id: str) -> None:
    assert refusal(connection, write, "account-1", id=id) == (
        "22P02",
        f'invalid input syntax for type uuid: "{id}"',
    )


def test_the_expected_version_is_checked_before_the_id(connection: Connection) -> None:
    id = str(uuid4())
    write(connection, "account-1", id=id)
    assert refusal(connection, write, "account-1", id=id, expected_version=5)[0] == "P0001"


@pytest.mark.parametrize("missing", ["id", "stream_name", "type"])
def test_a_message_without_id_stream_name_or_type_is_refused(connection: Connection, missing: str) -> None:
    arguments = {"id": str(uuid4()), "stream_name": "account-1", "type": "T", "data": None, missing: None}
    told = diagnosis(connection, call, "write_message", **arguments)
    assert (told.sqlstate, told.column_name) == ("23502", missing)


def test_what_was_written_is_in_the_table(connection: Connection) -> None:
    id = uuid4()
    write(connection, "account-1+2", "Opened", '{"n": 1}', metadata='{"m": [2]}', id=str(id))
    sql = "SELECT global_position, position, stream_name, type, data, metadata, id FROM message_store.messages"
    assert rows(connection, sql) == [(1, 0, "account-1+2", "Opened", {"n": 1}, {"m": [2]}, id)]


def test_data_and_metadata_may_be_null(connection: Connection) -> None:
    write(connection, "account-1", data=None, metadata=None)
    write(connection, "account-1", data=None)
    (one, two) = call(connection, "get_stream_messages", stream_name="account-1")
    assert (one.data, one.metadata, two.data, two.metadata) == (None, None, None, None)


@pytest.mark.parametrize(
    "json",
    [
        "{}",
        "null",
        "[]",
        "true",
        '"text"',
        "12345678901234567890.12345678901234567890",
        '{"a": [1, 1.50, null, {"ä": "\\\\ \\" € 😀 \\n"}], "b": {"c": {}}}',
    ],
)
def test_json_is_kept_and_comes_back_as_text(connection: Connection, json: str) -> None:
    write(connection, "account-1", data=json, metadata=json)
    for message in [
        *call(connection, "get_stream_messages", stream_name="account-1"),
        *call(connection, "get_category_messages", category="account"),
        *call(connection, "get_last_stream_message", stream_name="account-1"),
    ]:
        assert (message.data, message.metadata) == (json, json)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
def test_time_is_the_transactions_start_in_utc(connection: Connection, zone: str) -> None:
    run(connection, f"SET LOCAL TimeZone = '{zone}'")
    write(connection, "account-1")
    write(connection, "account-2")
    times = column(connection, "SELECT time FROM message_store.messages")
    assert times == column(connection, "SELECT transaction_timestamp() AT TIME ZONE 'utc'") * 2


# ---- get_stream_messages and get_category_messages, what they share


def insert(connection: Connection, *numbers: int, stream_name: str = "account-1") -> None:
    """Messages whose position and global position are both that number, in the order given."""
    sql = (
        "INSERT INTO message_store.messages (global_position, position, stream_name, type) VALUES (:n, :n, :name, 'T')"
    )
    connection.execute(text(sql), [{"n": number, "name": stream_name} for number in numbers])


def read(connection: Connection, function: str, **arguments: Any) -> Any:
    """Reads the stream account-1, or the category account."""
    name = {"get_stream_messages": {"stream_name": "account-1"}, "get_category_messages": {"category": "account"}}
    return call(connection, function, **{**name[function], **arguments})


@pytest.mark.parametrize("function", [*READS, "get_last_stream_message"])
def test_a_message_comes_back_as_it_was_written(connection: Connection, function: str) -> None:
    id = str(uuid4())
    write(connection, "account-1", "Opened", '{"n":1}', metadata='{"m":2}', id=id.upper())
    (time,) = column(connection, "SELECT time FROM message_store.messages")
    name = {"category": "account"} if function == "get_category_messages" else {"stream_name": "account-1"}
    (message,) = call(connection, function, **name)
    assert message == (id, "account-1", "Opened", 0, 1, '{"n": 1}', '{"m": 2}', time)
    assert isinstance(message.time, datetime)
    assert message.time.tzinfo is None


@pytest.mark.parametrize("function", READS)
@pytest.mark.parametrize(
    ("position", "found"), [(3, [3, 5, 6]), (4, [5, 6]), (6, [6]), (7, []), (-1, [0, 1, 3, 5, 6]), (2**62, [])]
)
def test_position_is_inclusive(connection: Connection, function: str, position: int, found: list[int]) -> None:
    insert(connection, 0, 1, 3, 5, 6)
    assert positions(read(connection, function, position=position)) == found


@pytest.mark.parametrize("function", READS)
def test_messages_come_in_the_order_of_their_positions(connection: Connection, function: str) -> None:
    run(connection, "SET LOCAL enable_indexscan = off", "SET LOCAL enable_bitmapscan = off")
    insert(connection, 5, 1, 8, 3, 2, 7)
    assert positions(read(connection, function)) == [1, 2, 3, 5, 7, 8]
    assert positions(read(connection, function, batch_size=3)) == [1, 2, 3]


@pytest.mark.parametrize("arguments", [{}, {"position": None}], ids=["left out", "NULL"])
def test_position_is_0_in_a_stream_and_1_in_a_category_by_default(
    connection: Connection, arguments: dict[str, Any]
) -> None:
    insert(connection, -1, 0, 1, 2)
    assert positions(read(connection, "get_stream_messages", **arguments)) == [0, 1, 2]
    assert positions(read(connection, "get_category_messages", **arguments)) == [1, 2]


@pytest.mark.parametrize("function", READS)
@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({}, 1000),
        ({"batch_size": None}, 1000),
        ({"batch_size": -1}, 1001),
        ({"batch_size": 0}, 0),
        ({"batch_size": 1}, 1),
        ({"batch_size": 1001}, 1001),
    ],
    ids=str,
)
def test_batch_size_is_a_limit_1000_by_default_and_none_with_minus_1(
    connection: Connection, function: str, arguments: dict[str, Any], count: int
) -> None:
    insert(connection, *range(1, 1002))
    assert positions(read(connection, function, **arguments)) == list(range(1, count + 1))


@pytest.mark.parametrize("function", READS)
@pytest.mark.parametrize("batch_size", [-2, -1000])
def test_a_batch_size_below_minus_1_is_refused_with_2201w(
    connection: Connection, function: str, batch_size: int
) -> None:
    refused = refusal(connection, read, function, batch_size=batch_size)
    assert refused == ("2201W", "LIMIT must not be negative")


# ---- get_stream_messages


def test_a_stream_is_read_alone(connection: Connection) -> None:
    for name in ("account-1", "account-2", "account-1+2", "account-1-2", "account", "account-1"):
        write(connection, name)
    assert streams(call(connection, "get_stream_messages", stream_name="account-1")) == ["account-1"] * 2
    assert call(connection, "get_stream_messages", stream_name="account-3") == []


@pytest.mark.parametrize(
    ("stream_name", "printed"), [("account", "account"), ("account:command+x", "account:command+x"), (None, "<NULL>")]
)
def test_a_category_is_no_stream_name(connection: Connection, stream_name: str | None, printed: str) -> None:
    refused = refusal(connection, call, "get_stream_messages", stream_name=stream_name)
    assert refused == ("P0001", f"Must be a stream name: {printed}")


# ---- get_category_messages


def test_a_category_is_read_over_all_its_streams(connection: Connection) -> None:
    names = ["account-2", "account-1+2", "accounting-1", "account", "account:command-1", "account-1", "account-2"]
    for name in names:
        write(connection, name)
    found = call(connection, "get_category_messages", category="account")
    assert streams(found) == ["account-2", "account-1+2", "account", "account-1", "account-2"]
    assert [message.global_position for message in found] == [1, 2, 4, 6, 7]


@pytest.mark.parametrize("category", ["acc", "account-", "account-1"])
def test_what_is_no_category_of_a_message_is_not_found(connection: Connection, category: str) -> None:
    write(connection, "account-1")
    if "-" in category:
        refused = refusal(connection, call, "get_category_messages", category=category)
        assert refused == ("P0001", f"Must be a category: {category}")
    else:
        assert call(connection, "get_category_messages", category=category) == []


def test_null_for_every_argument_but_the_category_means_its_default(connection: Connection) -> None:
    insert(connection, *range(1002))
    optional = ["position", "batch_size", "correlation", "consumer_group_member", "consumer_group_size", "condition"]
    found = read(connection, "get_category_messages", **dict.fromkeys(optional))
    assert positions(found) == list(range(1, 1001))


def test_correlation_keeps_the_messages_whose_correlation_stream_is_in_that_category(connection: Connection) -> None:
    metadata = [
        '{"correlationStreamName": "other-1"}',
        '{"correlationStreamName": "other-2+3"}',
        '{"correlationStreamName": "other"}',
        '{"correlationStreamName": "others-1"}',
        '{"correlationStreamName": "other:command-1"}',
        '{"correlationStreamName": null}',
        '{"correlation_stream_name": "other-1"}',
        '{"properties": {"correlationStreamName": "other-1"}}',
        "{}",
        "[]",
        None,
    ]
    for each in metadata:
        write(connection, "account-1", metadata=each)
    write(connection, "else-1", metadata=metadata[0])
    assert positions(read(connection, "get_category_messages", correlation="other")) == [0, 1, 2]
    assert positions(read(connection, "get_category_messages", correlation="other:command")) == [4]
    assert len(read(connection, "get_category_messages")) == len(metadata)


@pytest.mark.parametrize("correlation", ["other-1", "other-", "-"])
def test_a_stream_name_is_no_correlation(connection: Connection, correlation: str) -> None:
    refused = refusal(connection, read, "get_category_messages", correlation=correlation)
    assert refused == ("P0001", f"Correlation must be a category (Correlation: {correlation})")


GROUP_IDS = [*map(str, range(20)), "1+x", "1+y", "2+x+y", "3-4", "3-5", "", "+x", "ä"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 32767])
def test_a_stream_belongs_to_the_member_that_its_cardinal_ids_hash_gives(connection: Connection, size: int) -> None:
    expected: dict[int, list[str]] = {member: [] for member in range(min(size, 7))}
    for id in GROUP_IDS:
        write(connection, f"account-{id}")
        expected.setdefault(abs(hash_64(id.split("+")[0])) % size, []).append(f"account-{id}")
    group = {"consumer_group_size": size}
    found = {
        member: streams(read(connection, "get_category_messages", consumer_group_member=member, **group))
        for member in expected
    }
    assert found == expected


def test_a_stream_without_an_id_belongs_to_no_member(connection: Connection) -> None:
    write(connection, "account")
    group = {"consumer_group_member": 0, "consumer_group_size": 1}
    assert read(connection, "get_category_messages", **group) == []
    assert streams(read(connection, "get_category_messages")) == ["account"]


@pytest.mark.parametrize(
    ("member", "size", "flaw"),
    [
        (0, None, "Consumer group member and size must be specified"),
        (None, 1, "Consumer group member and size must be specified"),
        (-1, None, "Consumer group member and size must be specified"),
        (None, 0, "Consumer group member and size must be specified"),
        (0, 0, "Consumer group size must not be less than 1"),
        (0, -1, "Consumer group size must not be less than 1"),
        (-1, 0, "Consumer group size must not be less than 1"),
        (-1, 1, "Consumer group member must not be less than 0"),
        (1, 1, "Consumer group member must be less than the group size"),
        (3, 2, "Consumer group member must be less than the group size"),
        (40000, 40000, "Consumer group member must be less than the group size"),
    ],
)
def test_a_consumer_group_that_cannot_be_is_refused(
    connection: Connection, member: int | None, size: int | None, flaw: str
) -> None:
    group = {"consumer_group_member": member, "consumer_group_size": size}
    printed = ["<NULL>" if number is None else number for number in (member, size)]
    assert refusal(connection, read, "get_category_messages", **group) == (
        "P0001",
        f"{flaw} (Consumer Group Member: {printed[0]}, Consumer Group Size: {printed[1]})",
    )


@pytest.mark.parametrize("size", [32768, 65537, 2**40])
def test_a_group_size_above_32767_is_refused_with_22003(connection: Connection, size: int) -> None:
    group = {"consumer_group_member": 0, "consumer_group_size": size}
    assert refusal(connection, read, "get_category_messages", **group) == ("22003", "smallint out of range")


def test_the_filters_of_a_category_are_combined(connection: Connection) -> None:
    run(connection, "SET LOCAL message_store.sql_condition = 'on'")
    for id in range(20):
        for origin in ("other-1", "else-1"):
            write(connection, f"account-{id}", metadata=f'{{"correlationStreamName": "{origin}"}}')
    arguments = {
        "position": 11,
        "batch_size": 3,
        "correlation": "other",
        "consumer_group_member": 1,
        "consumer_group_size": 2,
        "condition": "stream_name <> 'account-7' OR false",
    }
    found = read(connection, "get_category_messages", **arguments)
    mine = [f"account-{id}" for id in range(5, 20) if abs(hash_64(str(id))) % 2 == 1 and id != 7]
    assert streams(found) == mine[:3]


# ---- condition


@pytest.mark.parametrize("function", READS)
@pytest.mark.parametrize("setting", [None, "off", ""])
def test_a_condition_is_refused_unless_the_setting_is_set_and_not_off(
    connection: Connection, function: str, setting: str | None
) -> None:
    if setting is not None:
        run(connection, f"SET LOCAL message_store.sql_condition = '{setting}'")
    assert column(connection, "SELECT current_setting('message_store.sql_condition', true)") == [setting]
    refused = refusal(connection, read, function, condition="true")
    assert refused == ("P0001", "Retrieval with SQL condition is not activated")


@pytest.mark.parametrize("function", READS)
def test_a_setting_ends_with_the_transaction_that_it_was_made_for(connection: Connection, function: str) -> None:
    run(connection, "SET LOCAL message_store.sql_condition = 'on'")
    assert read(connection, function, condition="true") == []
    connection.commit()
    refused = refusal(connection, read, function, condition="true")
    assert refused == ("P0001", "Retrieval with SQL condition is not activated")


@pytest.mark.parametrize("function", READS)
def test_no_condition_needs_no_setting(connection: Connection, function: str) -> None:
    insert(connection, 1)
    assert positions(read(connection, function, condition=None)) == [1]


@pytest.mark.parametrize("function", READS)
@pytest.mark.parametrize("setting", ["on", "true", "no matter what"])
def test_a_condition_is_taken_with_any_other_setting(connection: Connection, function: str, setting: str) -> None:
    insert(connection, 1, 2)
    run(connection, f"SET LOCAL message_store.sql_condition = '{setting}'")
    assert positions(read(connection, function, condition="global_position = 2")) == [2]


@pytest.mark.parametrize("function", READS)
@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ("true", [2, 3]),
        ("true OR true", [2, 3]),
        ("false OR global_position = 3", [3]),
        ("type = 'U'", []),
        ("(data->>'n') IS NULL AND stream_name LIKE '%-1'", [2, 3]),
        ("NULL", []),
    ],
)
def test_a_condition_is_sql_in_parentheses_added_with_and(
    connection: Connection, function: str, condition: str, found: list[int]
) -> None:
    insert(connection, 1, 2, 3)
    insert(connection, 4, stream_name="other-1")
    run(connection, "SET LOCAL message_store.sql_condition = 'on'")
    assert positions(read(connection, function, position=2, condition=condition)) == found


# ---- get_last_stream_message


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({}, [3]),
        ({"type": None}, [3]),
        ({"type": "A"}, [2]),
        ({"type": "B"}, [3]),
        ({"type": "C"}, []),
        ({"type": "a"}, []),
        ({"type": ""}, []),
    ],
    ids=str,
)
def test_the_last_message_has_the_highest_position_or_the_highest_of_its_type(
    connection: Connection, arguments: dict[str, Any], found: list[int]
) -> None:
    for type in "ABAB":
        write(connection, "account-1", type)
    for name in ("account-2", "account-1+2", "account"):
        for _ in range(6):
            write(connection, name, "C")
    assert positions(call(connection, "get_last_stream_message", stream_name="account-1", **arguments)) == found


def test_the_last_message_is_the_one_of_the_highest_position_whatever_the_order_of_writing(
    connection: Connection,
) -> None:
    insert(connection, 1, 9, 4)
    assert positions(call(connection, "get_last_stream_message", stream_name="account-1")) == [9]
    assert positions(call(connection, "get_last_stream_message", stream_name="account-1", type="T")) == [9]


@pytest.mark.parametrize("stream_name", ["account-2", "account", "", None])
def test_no_stream_has_no_last_message(connection: Connection, stream_name: str | None) -> None:
    write(connection, "account-1")
    assert call(connection, "get_last_stream_message", stream_name=stream_name) == []


def test_a_stream_named_like_a_category_has_a_last_message(connection: Connection) -> None:
    write(connection, "account")
    assert positions(call(connection, "get_last_stream_message", stream_name="account")) == [0]


# ---- debug settings

REPORTED: dict[str, dict[str, Any]] = {
    "write_message": {
        "id": str(UUID(int=7)),
        "stream_name": "account-1",
        "type": "Opened",
        "data": '{"n": 71}',
        "metadata": '{"m": 72}',
        "expected_version": -1,
    },
    "get_stream_messages": {"stream_name": "account-1", "position": 73, "batch_size": 74, "condition": "75 = 75"},
    "get_category_messages": {
        "category": "account",
        "position": 73,
        "batch_size": 74,
        "correlation": "other",
        "consumer_group_member": 76,
        "consumer_group_size": 77,
        "condition": "75 = 75",
    },
    "get_last_stream_message": {"stream_name": "account-1", "type": "Opened"},
}
GETS = [name for name in REPORTED if name != "write_message"]


def notices(caplog: pytest.LogCaptureFixture, connection: Connection, function: str, **arguments: Any) -> list[str]:
    """What the call reports: SQLAlchemy takes the notices from psycopg2 and logs them."""
    logger = "sqlalchemy.dialects.postgresql"
    caplog.clear()
    with caplog.at_level(logging.INFO, logger):
        call(connection, function, **arguments)
    return [record.getMessage() for record in caplog.records if record.name == logger]


@pytest.mark.parametrize(
    ("setting", "function"),
    [
        *(("debug", function) for function in REPORTED),
        *(("debug_get", function) for function in GETS),
        ("debug_write", "write_message"),
    ],
)
def test_a_debug_setting_makes_a_function_report_its_arguments(
    connection: Connection, caplog: pytest.LogCaptureFixture, setting: str, function: str
) -> None:
    run(connection, "SET LOCAL message_store.sql_condition = 'on'", f"SET LOCAL message_store.{setting} = 'on'")
    told = "\n".join(notices(caplog, connection, function, **REPORTED[function]))
    assert told.startswith("NOTICE:")
    assert function in told
    for name, argument in REPORTED[function].items():
        assert re.search(rf"\b{name}\b", told)
        assert str(argument) in told


@pytest.mark.parametrize("function", READS)
def test_a_debug_setting_makes_a_read_report_the_query_that_it_built(
    connection: Connection, caplog: pytest.LogCaptureFixture, function: str
) -> None:
    run(connection, "SET LOCAL message_store.sql_condition = 'on'", "SET LOCAL message_store.debug = 'on'")
    told = "\n".join(notices(caplog, connection, function, **REPORTED[function]))
    assert re.search(r"SELECT .+ FROM message_store\.messages WHERE .+ AND \(75 = 75\)\s+ORDER BY .+ LIMIT", told)


@pytest.mark.parametrize("function", REPORTED)
@pytest.mark.parametrize("setting", [None, "debug", "debug_get", "debug_write"])
def test_nothing_is_reported_where_the_setting_is_not_on(
    connection: Connection, caplog: pytest.LogCaptureFixture, setting: str | None, function: str
) -> None:
    run(connection, "SET LOCAL message_store.sql_condition = 'on'")
    for off in ("off", "") if setting else ():
        run(connection, f"SET LOCAL message_store.{setting} = '{off}'")
        with connection.begin_nested() as savepoint:
            assert notices(caplog, connection, function, **REPORTED[function]) == []
            savepoint.rollback()
    assert notices(caplog, connection, function, **REPORTED[function]) == []


@pytest.mark.parametrize(
    ("setting", "function"), [("debug_get", "write_message"), *(("debug_write", function) for function in GETS)]
)
def test_debug_get_is_for_reading_and_debug_write_for_writing(
    connection: Connection, caplog: pytest.LogCaptureFixture, setting: str, function: str
) -> None:
    run(connection, "SET LOCAL message_store.sql_condition = 'on'", f"SET LOCAL message_store.{setting} = 'on'")
    assert notices(caplog, connection, function, **REPORTED[function]) == []


def test_arguments_that_are_null_are_reported_too(connection: Connection, caplog: pytest.LogCaptureFixture) -> None:
    run(connection, "SET LOCAL message_store.debug = 'on'")
    assert "<NULL>" in notices(caplog, connection, "write_message", **{**REPORTED["write_message"], "data": None})[0]
    assert "<NULL>" in notices(caplog, connection, "get_category_messages", category="account")[0]


# ---- the plans


def plan(
    caplog: pytest.LogCaptureFixture, connection: Connection, function: str, values: str, **arguments: Any
) -> list[str]:
    """How PostgreSQL would run the query that the function reports, with the indexes that a big store would use."""
    run(
        connection,
        """
        INSERT INTO message_store.messages (stream_name, type, position, metadata)
        SELECT 'c' || n % 200 || '-' || n % 400, 'T', n, '{"correlationStreamName": "other-1"}'
        FROM generate_series(1, 2000) AS n
        """,
        "ANALYZE message_store.messages",
        "SET LOCAL message_store.debug = 'on'",
        "SET LOCAL enable_seqscan = off",
    )
    (told,) = notices(caplog, connection, function, **arguments)
    query = told[told.index("SELECT ") :]
    declared = "varchar, bigint, bigint, varchar, bigint, bigint"
    connection.exec_driver_sql(f"PREPARE reported ({declared}) AS {query}")
    lines = list(connection.exec_driver_sql(f"EXPLAIN (COSTS OFF) EXECUTE reported ({values})").scalars())
    connection.exec_driver_sql("DEALLOCATE reported")
    return [line.strip() for line in lines]


@pytest.mark.parametrize("enable_sort", ["on", "off"])
def test_a_category_is_read_through_messages_category(
    connection: Connection, caplog: pytest.LogCaptureFixture, enable_sort: str
) -> None:
    run(connection, f"SET LOCAL enable_sort = {enable_sort}")
    arguments = {"category": "c7", "correlation": "other", "position": 5}
    lines = plan(caplog, connection, "get_category_messages", "'c7', 5, 1000, 'other', NULL, NULL", **arguments)
    assert any("messages_category" in line for line in lines)
    (condition,) = (line for line in lines if line.startswith("Index Cond"))
    for part in ("split_part(", "stream_name", "'c7'", "global_position) >= ", "correlationStreamName", "'other'"):
        assert part in condition


def test_messages_category_gives_a_category_in_order_without_sorting(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    run(connection, "SET LOCAL enable_sort = off", "SET LOCAL enable_bitmapscan = off")
    lines = plan(caplog, connection, "get_category_messages", "'c7', 5, 1000, NULL, NULL, NULL", category="c7")
    assert "->  Index Scan using messages_category on messages" in lines
    assert not any("Sort" in line for line in lines)


def test_a_stream_is_read_through_messages_stream(connection: Connection, caplog: pytest.LogCaptureFixture) -> None:
    arguments = {"stream_name": "c7-7", "position": 5}
    lines = plan(caplog, connection, "get_stream_messages", "'c7-7', 5, 1000, NULL, NULL, NULL", **arguments)
    assert any("messages_stream" in line for line in lines)


# ---- views

SUMMARIES = {
    "type_summary": [("X", 3, "9.38"), ("Y", 20, "62.50"), ("Z", 9, "28.13")],
    "stream_summary": [("a-1", 23, "71.88"), ("b-1", 8, "25.00"), ("b-2", 1, "3.13")],
    "stream_type_summary": [
        ("a-1", "X", 3, "9.38"),
        ("a-1", "Y", 20, "62.50"),
        ("b-1", "Z", 8, "25.00"),
        ("b-2", "Z", 1, "3.13"),
    ],
    "type_stream_summary": [
        ("X", "a-1", 3, "9.38"),
        ("Y", "a-1", 20, "62.50"),
        ("Z", "b-1", 8, "25.00"),
        ("Z", "b-2", 1, "3.13"),
    ],
    "category_type_summary": [("a", "X", 3, "9.38"), ("a", "Y", 20, "62.50"), ("b", "Z", 9, "28.13")],
    "type_category_summary": [("X", "a", 3, "9.38"), ("Y", "a", 20, "62.50"), ("Z", "b", 9, "28.13")],
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_counts_messages_and_gives_their_share_rounded_to_2_digits(connection: Connection, view: str) -> None:
    for stream_name, type, count in (("b-2", "Z", 1), ("a-1", "Y", 20), ("b-1", "Z", 8), ("a-1", "X", 3)):
        for _ in range(count):
            write(connection, stream_name, type)
    found = [(*row[:-1], str(row[-1])) for row in rows(connection, f"SELECT * FROM message_store.{view}")]
    assert found == SUMMARIES[view]


@pytest.mark.parametrize(("view", "keys"), VIEWS.items())
def test_a_view_is_ordered_by_its_keys(connection: Connection, view: str, keys: list[str]) -> None:
    for n in range(60):
        write(connection, f"c{n * 7 % 10}-{n * 3 % 10}", f"t{n * 13 % 17:02}")
    sql = f"SELECT {', '.join(keys)} FROM message_store.{view}"
    found = rows(connection, sql)
    assert found == rows(connection, f"{sql} ORDER BY {', '.join(keys)}")
    assert len(found) == len(set(found)) >= 10


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_an_empty_store_is_empty(connection: Connection, view: str) -> None:
    assert rows(connection, f"SELECT * FROM message_store.{view}") == []


@pytest.mark.parametrize("view", VIEWS)
def test_a_single_message_is_all_of_the_store(connection: Connection, view: str) -> None:
    write(connection, "account-1")
    ((*_, count, percent),) = rows(connection, f"SELECT * FROM message_store.{view}")
    assert (count, str(percent)) == (1, "100.00")


# ---- the role message_store


def test_the_role_can_log_in_and_has_no_password_and_no_power(connection: Connection) -> None:
    sql = """
        SELECT rolcanlogin, rolpassword, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls
        FROM pg_authid WHERE rolname = 'message_store'
    """
    assert rows(connection, sql) == [(True, None, False, False, False, False, False)]


def test_the_role_owns_nothing(connection: Connection) -> None:
    sql = "SELECT * FROM pg_shdepend WHERE refobjid = 'message_store'::regrole AND deptype = 'o'"
    assert rows(connection, sql) == []


def test_the_role_is_granted_exactly_this(connection: Connection) -> None:
    sql = """
        SELECT name, string_agg(privilege_type || repeat('*', is_grantable::int), ',' ORDER BY privilege_type) FROM (
          SELECT 'schema ' || nspname AS name, nspacl AS acl FROM pg_namespace
          UNION ALL SELECT 'relation ' || oid::regclass::text, relacl FROM pg_class
          UNION ALL SELECT 'column ' || attrelid::regclass::text || '.' || attname, attacl FROM pg_attribute
          UNION ALL SELECT 'function ' || oid::regproc::text, proacl FROM pg_proc
          UNION ALL SELECT 'type ' || oid::regtype::text, typacl FROM pg_type
          UNION ALL SELECT 'database ' || datname, datacl FROM pg_database WHERE datname = current_database()
          UNION ALL SELECT 'default ' || defaclobjtype::text, defaclacl FROM pg_default_acl
        ) AS objects, aclexplode(acl) WHERE grantee = 'message_store'::regrole GROUP BY 1
    """
    # Whoever fires a trigger needs no right to call its function.
    functions = """
        SELECT oid::regproc::text FROM pg_proc
        WHERE pronamespace = 'message_store'::regnamespace AND prorettype <> 'trigger'::regtype
    """
    assert dict(rows(connection, sql)) == {
        "schema message_store": "USAGE",
        "relation message_store.messages": "INSERT,SELECT",
        "relation message_store.messages_global_position_seq": "SELECT,USAGE",
        **{f"relation message_store.{view}": "SELECT" for view in VIEWS},
        **{f"function {name}": "EXECUTE" for name in column(connection, functions)},
    }


def test_the_role_is_a_member_of_no_other(connection: Connection) -> None:
    assert rows(connection, "SELECT * FROM pg_auth_members WHERE member = 'message_store'::regrole") == []


@pytest.fixture
def as_message_store(messagedb_engine: Engine, messagedb_store: Store) -> Iterator[Connection]:
    """A session of the role message_store, logged in; its transaction is rolled back."""
    from .conftest import as_role

    with as_role(messagedb_engine, "message_store").connect() as connection:
        yield connection


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE message_store.messages SET type = 'U'",
        "DELETE FROM message_store.messages",
        "TRUNCATE message_store.messages",
        "SELECT setval('message_store.messages_global_position_seq', 1)",
        "ALTER TABLE message_store.messages ADD COLUMN more text",
        "CREATE TABLE message_store.more (n int)",
        "DROP VIEW message_store.type_summary",
        "DROP FUNCTION message_store.message_store_version()",
    ],
)
def test_the_role_cannot_change_what_was_written_nor_the_store(as_message_store: Connection, statement: str) -> None:
    assert refusal(as_message_store, run, statement)[0] == "42501"


# ---- any role, any search_path


def everything(connection: Connection) -> list[Any]:
    """The result of calling each function and reading each view."""
    group = {"correlation": "other", "consumer_group_member": 0, "consumer_group_size": 1, "condition": "true"}
    metadata = '{"correlationStreamName": "other-1"}'
    run(connection, "SET LOCAL message_store.debug = 'on'", "SET LOCAL message_store.sql_condition = 'on'")
    return [
        *(value(connection, helper, stream_name="account-1+2") for helper in HELPERS[:4]),
        value(connection, "hash_64", value="account"),
        value(connection, "acquire_lock", stream_name="account-1"),
        value(connection, "message_store_version"),
        value(connection, "stream_version", stream_name="account-1"),
        write(connection, "account-1", metadata=metadata, expected_version=-1),
        value(connection, "stream_version", stream_name="account-1"),
        refusal(connection, write, "account-1", expected_version=5)[0],
        positions(read(connection, "get_stream_messages", condition="true")),
        positions(read(connection, "get_category_messages", **group)),
        positions(call(connection, "get_last_stream_message", stream_name="account-1")),
        positions(call(connection, "get_last_stream_message", stream_name="account-1", type="T")),
        *(column(connection, f"SELECT message_count FROM message_store.{view}") for view in VIEWS),
    ]


ALL_OF_IT = [
    *("account", "1+2", "1", False),
    *(hash_64("account"), hash_64("account"), "1.3.0", None),
    *(0, 0, "P0001"),
    *([0], [0], [0], [0]),
    *([1], [1], [1], [1], [1], [1]),
]

TAKEN = (
    "CREATE TABLE evil.messages (n int)",
    "CREATE TEMP TABLE messages (n int)",
    "CREATE TABLE evil.message (n int)",
    "CREATE SEQUENCE evil.messages_global_position_seq",
    """
    DO $$
    DECLARE
      signature text;
    BEGIN
      FOR signature IN
        SELECT DISTINCT format('%I(%s)', proname, arguments)
        FROM pg_proc, unnest(ARRAY['text', 'varchar']) AS texts,
          LATERAL (SELECT replace(array_to_string(proargtypes::regtype[], ', '), 'text', texts) AS arguments) AS its
        WHERE pronamespace = 'message_store'::regnamespace
          OR pronamespace = 'pg_catalog'::regnamespace AND proname IN (
            'split_part', 'strpos', 'substr', 'left', 'md5', 'mod', 'abs', 'max', 'now', 'gen_random_uuid', 'round',
            'current_setting', 'pg_advisory_xact_lock'
          )
      LOOP
        EXECUTE 'CREATE FUNCTION evil.' || signature
          || ' RETURNS int LANGUAGE plpgsql AS ''BEGIN RAISE EXCEPTION USING MESSAGE = 42; END''';
      END LOOP;
    END
    $$
    """,
)
OPERATORS = """
    DO $$
    DECLARE
      operands text;
    BEGIN
      FOREACH operands IN ARRAY '{{{pairs}}}'::text[] LOOP
        EXECUTE 'CREATE FUNCTION evil.operate(' || operands || ') RETURNS boolean LANGUAGE plpgsql'
          ' AS ''BEGIN RAISE EXCEPTION USING MESSAGE = 42; END''';
        EXECUTE (
          SELECT string_agg(
            format('CREATE OPERATOR evil.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = evil.operate)',
              operator, split_part(operands, ',', 1), split_part(operands, ',', 2)),
            ';')
          FROM unnest(ARRAY['=', '<>', '>', '>=', '+', '||', '->>']) AS operator
        );
      END LOOP;
    END
    $$
"""


@pytest.mark.parametrize(
    ("hostile", "search_path"),
    [
        pytest.param((), "''", id="nothing"),
        pytest.param((), "message_store, public", id="the store"),
        pytest.param(TAKEN, "evil, message_store, public", id="functions and tables after pg_catalog"),
        pytest.param(TAKEN, "evil, pg_catalog, message_store", id="functions and tables before pg_catalog"),
        pytest.param(
            (OPERATORS.format(pairs='"bigint,bigint","int,int","text,text","jsonb,text"'),),
            "evil, pg_catalog",
            id="operators before pg_catalog",
        ),
        pytest.param(
            (OPERATORS.format(pairs='"text,varchar","varchar,varchar","varchar,text"'),),
            "public, evil",
            id="operators of varchar after pg_catalog",
        ),
        pytest.param(
            ("CREATE DOMAIN evil.text AS int", "CREATE DOMAIN evil.uuid AS int", "CREATE DOMAIN evil.jsonb AS int"),
            "evil, pg_catalog",
            id="types before pg_catalog",
        ),
        pytest.param(("CREATE TEMP TABLE text (n int)",), "public", id="a temporary table text"),
        pytest.param(("CREATE TEMP TABLE uuid (n int)",), "public", id="a temporary table uuid"),
    ],
)
def test_a_role_with_the_rights_can_call_everything_whatever_its_search_path(
    connection: Connection, hostile: tuple[str, ...], search_path: str
) -> None:
    role = f"passer_by_{uuid4().hex}"
    run(
        connection,
        f"CREATE ROLE {role}",
        f"GRANT USAGE ON SCHEMA message_store TO {role}",
        f"GRANT SELECT, INSERT ON message_store.messages TO {role}",
        f"GRANT USAGE ON SEQUENCE message_store.messages_global_position_seq TO {role}",
        *(f"GRANT SELECT ON message_store.{view} TO {role}" for view in VIEWS),
        "CREATE SCHEMA evil",
        f"GRANT USAGE ON SCHEMA evil TO {role}",
        *hostile,
        f"SET LOCAL ROLE {role}",
        f"SET LOCAL search_path = {search_path}",
    )
    assert everything(connection) == ALL_OF_IT


def test_the_role_message_store_can_call_everything(as_message_store: Connection) -> None:
    assert everything(as_message_store) == ALL_OF_IT


def test_a_role_without_the_rights_can_neither_read_nor_write(connection: Connection) -> None:
    role = f"passer_by_{uuid4().hex}"
    run(connection, f"CREATE ROLE {role}", f"GRANT USAGE ON SCHEMA message_store TO {role}", f"SET LOCAL ROLE {role}")
    for function in READS:
        assert refusal(connection, read, function) == ("42501", "permission denied for table messages")
    assert refusal(connection, write, "account-1") == ("42501", "permission denied for table messages")


@pytest.mark.parametrize("helper", HELPERS)
def test_an_index_on_a_helper_can_be_made_analyzed_and_made_again_with_an_empty_search_path(
    connection: Connection, helper: str
) -> None:
    for n in range(10):
        write(connection, f"account-{n % 3}+{n}")
    run(
        connection,
        "SET LOCAL search_path = ''",
        f"CREATE INDEX on_helper ON message_store.messages (message_store.{helper}(stream_name))",
        "ANALYZE message_store.messages",
        "REINDEX INDEX message_store.on_helper",
    )
    sql = "SELECT null_frac FROM pg_stats WHERE schemaname = 'message_store' AND tablename = 'on_helper'"
    assert column(connection, sql) == [0]


# ---- taking over an older store


def unknown_to_alembic(connection: Connection) -> None:
    run(connection, f"DROP TABLE {VERSION_TABLE}")


def of_1_2(connection: Connection) -> None:
    unknown_to_alembic(connection)
    run(
        connection,
        "DROP FUNCTION message_store.get_last_stream_message(varchar, varchar)",
        """
        CREATE FUNCTION message_store.get_last_stream_message(stream_name varchar)
        RETURNS SETOF message_store.message LANGUAGE sql AS 'SELECT NULL::message_store.message'
        """,
        """
        CREATE OR REPLACE FUNCTION message_store.message_store_version()
        RETURNS varchar LANGUAGE plpgsql AS $$ BEGIN RETURN '1.2.6'; END $$
        """,
    )


@pytest.mark.parametrize("before", [unknown_to_alembic, of_1_2])
def test_a_store_that_is_there_is_updated_and_no_row_is_changed(
    connection: Connection, before: Callable[[Connection], None]
) -> None:
    signatures = """
        SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'message_store'::regnamespace ORDER BY 1
    """
    messages = "SELECT ctid::text, xmin::text, * FROM message_store.messages"
    everything(connection)
    wanted = [rows(connection, sql) for sql in (signatures, messages)]
    before(connection)
    install.upgrade(connection)
    assert [rows(connection, sql) for sql in (signatures, messages)] == wanted
    assert value(connection, "message_store_version") == "1.3.0"
    assert positions(call(connection, "get_last_stream_message", stream_name="account-1", type="T")) == [0]
