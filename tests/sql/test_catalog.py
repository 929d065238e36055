"""The tables, types, functions and views of Message DB 1.3.0, as PostgreSQL's catalog has them."""

from __future__ import annotations

import re

from sqlalchemy import Connection, text

from messagedb_sa.schema import VERSION_TABLE

from .support import VIEWS, column, rows, value


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


def test_there_are_three_indexes_besides_the_primary_key_and_one_of_ours(connection: Connection) -> None:
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
        (
            "messages_recorded",
            False,
            False,
            [
                "message_store.hash_64(message_store.category((stream_name)::character varying))",
                "stream_name",
                '"position"',
            ],
        ),
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


def test_there_are_twelve_functions_with_these_signatures_and_three_of_ours(connection: Connection) -> None:
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
        "get_query_messages(queries jsonb, batch_size bigint DEFAULT 1000) SETOF message_store.message": "v",
    }


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


def test_everything_is_in_the_schema_message_store(connection: Connection) -> None:
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
