"""Our install held against the official Message DB 1.3.1: the same catalog, and the same answers to the same calls.

The official SQL comes from npm, as in test_adoption; without npm these tests are skipped. What is meant to differ
stands in DIFFERENCES, each with both answers.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import Connection, Engine, NullPool, create_engine
from sqlalchemy.exc import DBAPIError

from messagedb_sa import install
from messagedb_sa.postgres import temporary_database
from messagedb_sa.schema import VERSION_TABLE

from .test_adoption import install_as_upstream_does
from .test_adoption import releases as releases  # a fixture
from .test_interface import HELPERS, VIEWS

OFFICIAL_PATH = "SET search_path = message_store, public"
NO_PATH = "SET search_path = ''"


@contextmanager
def empty_database(server_url: str) -> Iterator[Engine]:
    with temporary_database(server_url) as url:
        yield create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")


@pytest.fixture(scope="module")
def official_sql(releases: Path) -> Path:
    return releases / "1.3.1" / "database"


@pytest.fixture(scope="module")
def official(messagedb_server_url: str, official_sql: Path) -> Iterator[Engine]:
    with empty_database(messagedb_server_url) as engine:
        install_as_upstream_does(engine, official_sql)
        yield engine


@pytest.fixture(scope="module")
def ours(messagedb_server_url: str, official_sql: Path) -> Iterator[Engine]:
    with empty_database(messagedb_server_url) as engine:
        install.upgrade(engine)
        yield engine


def answer(connection: Connection, sql: str, values: dict[str, Any] | None = None) -> Any:
    """The rows, or what an application is told about the error."""
    try:
        result = connection.exec_driver_sql(sql, values)
        return [tuple(row) for row in result] if result.returns_rows else []
    except DBAPIError as error:
        told: Any = error.orig
        # What follows is the query's text from an open quote on: see DIFFERENCES.
        message = re.sub(r"^(unterminated .*) at or near .*", r"\1", told.diag.message_primary, flags=re.DOTALL)
        return told.pgcode, message, told.diag.constraint_name, told.diag.column_name


def answers(engine: Engine, *statements: str) -> list[Any]:
    """In a new session."""
    with engine.connect() as connection:
        return [answer(connection, sql) for sql in statements]


# ---- the catalog

SCHEMA = "'message_store'::regnamespace"
RELATIONS = f"(SELECT oid FROM pg_class WHERE relnamespace = {SCHEMA})"
CATALOG = {
    # Of the table, the indexes, the sequence, the views and the composite type.
    "columns": f"""
        SELECT attrelid::regclass::text, attnum, attname, format_type(atttypid, atttypmod), attnotnull,
            attidentity::text, attgenerated::text, attcollation::regcollation::text, attstorage::text, attacl::text,
            pg_get_expr(adbin, adrelid)
        FROM pg_attribute LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)
        WHERE attrelid IN {RELATIONS} AND attnum > 0 AND NOT attisdropped
    """,
    "relations": f"""
        SELECT relname, relkind::text, relpersistence::text, reloptions::text, reltablespace, relrowsecurity,
            relreplident::text, relowner::regrole::text FROM pg_class WHERE relnamespace = {SCHEMA}
    """,
    "indexes": f"""
        SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid), indisprimary, indisvalid, indimmediate
        FROM pg_index WHERE indrelid IN {RELATIONS}
    """,
    "constraints": f"""
        SELECT conname, contype::text, pg_get_constraintdef(oid), condeferrable, conindid::regclass::text
        FROM pg_constraint WHERE connamespace = {SCHEMA}
    """,
    "sequences": f"""
        SELECT seqrelid::regclass::text, seqtypid::regtype::text, seqstart, seqincrement, seqmax, seqmin, seqcache,
            seqcycle, refobjid::regclass::text, refobjsubid, deptype::text
        FROM pg_sequence LEFT JOIN pg_depend ON objid = seqrelid AND refobjsubid > 0 WHERE seqrelid IN {RELATIONS}
    """,
    "functions": f"""
        SELECT proname, pg_get_function_arguments(oid), pg_get_function_result(oid), prokind::text, provolatile::text,
            proisstrict, prosecdef, proleakproof, procost, prorows, proowner::regrole::text
        FROM pg_proc WHERE pronamespace = {SCHEMA}
    """,
    "types": f"SELECT typname, typtype::text, typrelid::regclass::text FROM pg_type WHERE typnamespace = {SCHEMA}",
    "privileges": f"""
        SELECT name, grantee::regrole::text, privilege_type, is_grantable FROM (
            SELECT relname::text, relacl FROM pg_class WHERE relnamespace = {SCHEMA}
            UNION ALL SELECT oid::regprocedure::text, proacl FROM pg_proc WHERE pronamespace = {SCHEMA}
            UNION ALL SELECT typname::text, typacl FROM pg_type WHERE typnamespace = {SCHEMA}
            UNION ALL SELECT nspname::text, nspacl FROM pg_namespace WHERE nspname IN ('message_store', 'public')
            UNION ALL SELECT 'database', datacl FROM pg_database WHERE datname = current_database()
        ) AS granted (name, acl), aclexplode(acl)
    """,
    "extensions": "SELECT extname FROM pg_extension",
    "how many of everything else": """
        SELECT (SELECT count(*) FROM pg_trigger), (SELECT count(*) FROM pg_event_trigger),
            (SELECT count(*) FROM pg_policy), (SELECT count(*) FROM pg_default_acl), (SELECT count(*) FROM pg_operator),
            (SELECT count(*) FROM pg_cast), (SELECT count(*) FROM pg_statistic_ext), (SELECT count(*) FROM pg_rewrite),
            (SELECT count(*) FROM pg_description), (SELECT count(*) FROM pg_namespace),
            (SELECT count(*) FROM pg_db_role_setting WHERE setdatabase <> 0)
    """,
}


@pytest.mark.parametrize("part", CATALOG)
def test_but_for_what_we_add_the_catalogs_are_equal_in(part: str, official: Engine, ours: Engine) -> None:
    theirs, own = (sorted(answers(engine, NO_PATH, CATALOG[part])[-1], key=str) for engine in (official, ours))
    added = ("write_messages", "notify_category")
    assert [row for row in own if not any(name in str(row) for name in added)] == theirs != []


# ---- what is meant to differ


class Difference(NamedTuple):
    statements: list[str]
    official: Any
    ours: Any


def of_helpers(what: str) -> list[str]:
    return [f"SELECT DISTINCT {what} FROM pg_proc WHERE pronamespace = {SCHEMA} AND provolatile = 'i'"]


def on_a_message(sql: str) -> list[str]:
    message = "(gen_random_uuid()::varchar, 'a-1', 'T', '{}')"
    return [
        OFFICIAL_PATH,
        "SET message_store.sql_condition = 'on'",
        "TRUNCATE message_store.messages",
        f"SELECT message_store.write_message{message}",
        sql,
    ]


DIFFERENCES = {
    "every name is qualified, so any search_path will do": Difference(
        [NO_PATH, "SELECT message_store.category('a-1'), message_store.acquire_lock('a-1') IS NOT NULL"],
        ("42883", "function category(character varying) does not exist", None, None),
        [("a", True)],
    ),
    "the helpers are in LANGUAGE sql, which PostgreSQL can inline": Difference(
        of_helpers("(SELECT lanname FROM pg_language WHERE oid = prolang)"), [("plpgsql",)], [("sql",)]
    ),
    "the helpers are PARALLEL SAFE": Difference(of_helpers("proparallel::text"), [("u",)], [("s",)]),
    "a setting sql_condition of '' is off: it is what a setting reads as when its transaction is over": Difference(
        [
            *on_a_message("SET message_store.sql_condition = ''"),
            "SELECT position FROM message_store.get_stream_messages('a-1', condition => 'true')",
        ],
        [(0,)],
        ("P0001", "Retrieval with SQL condition is not activated", None, None),
    ),
    "where nothing limits the batch, a condition finds NULL in the parameter $3": Difference(
        on_a_message("SELECT position FROM message_store.get_stream_messages('a-1', 0, -1, '$3 IS NULL')"), [], [(0,)]
    ),
    "a condition that leaves a quote open meets another text, with quotes of its own": Difference(
        on_a_message("SELECT position FROM message_store.get_stream_messages('a-1', condition => '\"')"),
        ("42601", "unterminated quoted identifier", None, None),
        ("42601", 'syntax error at or near "position"', None, None),
    ),
    "the views count the table once": Difference(
        [
            "SELECT DISTINCT cardinality(string_to_array(definition, 'FROM message_store.messages')) - 1"
            " FROM pg_views WHERE schemaname = 'message_store'"
        ],
        [(2,)],
        [(1,)],
    ),
    "gen_random_uuid() is everybody's without a grant": Difference(
        ["SELECT coalesce(proacl::text, '') ~ 'message_store=X' FROM pg_proc WHERE proname = 'gen_random_uuid'"],
        [(True,)],
        [(False,)],
    ),
    "reads of a category are planned with settings of their own": Difference(
        [f"SELECT proname, proconfig::text FROM pg_proc WHERE pronamespace = {SCHEMA} AND proconfig IS NOT NULL"],
        [],
        [
            (
                "get_category_messages",
                "{random_page_cost=0.01,seq_page_cost=0.01,plan_cache_mode=force_generic_plan}",
            )
        ],
    ),
    "the version table of Alembic": Difference(
        [f"SELECT to_regclass('public.{VERSION_TABLE}') IS NOT NULL"], [(False,)], [(True,)]
    ),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_on_purpose_it_differs_in_that(name: str, official: Engine, ours: Engine) -> None:
    statements, theirs, own = DIFFERENCES[name]
    assert answers(official, *statements)[-1] == theirs
    assert answers(ours, *statements)[-1] == own


def test_with_debug_on_a_read_makes_one_notice_in_place_of_six(
    official: Engine, ours: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    made = []
    for engine in (official, ours):
        caplog.clear()
        with caplog.at_level(logging.INFO, "sqlalchemy.dialects.postgresql"):
            answers(engine, OFFICIAL_PATH, "SET message_store.debug = 'on'", "SELECT get_stream_messages('a-1')")
        made.append(len(caplog.records))
    assert made == [6, 1]


# ---- the same calls

FIRST_MESSAGES = """
    INSERT INTO message_store.messages (id, stream_name, position, type, data, metadata)
    SELECT md5(n::text)::uuid, (ARRAY['a-1', 'a-2', 'a-1+2', 'b-1'])[mod(n, 4) + 1], n / 4,
        (ARRAY['T', 'U'])[mod(n / 4, 2) + 1], jsonb_build_object('n', n),
        jsonb_build_object('correlationStreamName', (ARRAY['a', 'b-1', NULL])[mod(n, 3) + 1])
    FROM generate_series(0, 23) AS n ORDER BY n
"""
streams = st.sampled_from(["a-1", "a-2", "a-1+2", "b-1"])
categories = st.sampled_from(["a", "b"])
names = st.sampled_from(
    [
        *("a-1-2", "a-", "a-+", "a-+1", "a", "b", "-", "--", "-a", "", " ", "+", ":", "A-1", "a:c", "a:c-1", "a+b-1"),
        *("a:x+y-1+2", "a%", "a%s-1", "a_-%", "a'-'1", 'a"-"1', "a\\-\\1", "a-\n1", "a\n-1", "é-ü", "e\u0301-1"),
        *("漢-字+字", "𝄞-👩‍👩‍👧", "a-$1", "a-{b}", "x" * 300 + "-1", "a-" + "y" * 300, None),
    ]
) | st.text("ab-+:%_'\"\\é漢\n\t $", max_size=6)
# Of what is given several times more is drawn.
any_stream = streams | streams | streams | streams | names
any_category = categories | categories | categories | categories | names
few = st.sampled_from([None, 0, 1, 2, 3])
integers = st.sampled_from([None, -(2**63), -2, -1, 0, 1, 2, 3, 5, 1000, 32767, 32768, 2**62, 2**63 - 1])
odd_ids = st.sampled_from(
    [
        *("cfcd2084-95d5-65ef-66e7-dff9f98764da", "CFCD208495D565EF66E7DFF9F98764DA"),  # the first message's
        *("00000000-0000-0000-0000-000000000000", "no-uuid", "", "1", None),
        *("{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}", "a0eebc999c0b4ef8bb6d6bb9bd380a11"),
    ]
)
types = st.sampled_from(["T", "T", "T", "U", "U", "", "É%'", None])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text('a"\\é𝄞\n\0', max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["n", "é", ""]), inner, max_size=2),
    max_leaves=3,
)
data = st.sampled_from(
    ['{"n": 1}', '{"n": "1"}', "{}", "[1, 2.50, 1e3]", "null", '"x"', '{"n": 1, "n": 2}', " [ ] ", "{", "", None]
) | json_values.map(json.dumps)
correlations = st.sampled_from(["a", "a-1", "b", "b-1", "", "-", "a:c-1", 7, ["a"], None])
metadata = correlations.map(lambda name: json.dumps({"correlationStreamName": name})) | data
good_conditions = st.sampled_from(
    [
        *("true", "type = 'T'", "messages.type = 'U'", "position > 0", "global_position % 2 = 0", "data->>'n' = '1'"),
        *("data @> '{\"n\": 1}'", "metadata IS NULL", "stream_name LIKE 'a%'", "stream_name LIKE '%s'", "time IS NULL"),
        *("message_store.category(stream_name) = 'a'", "EXISTS (SELECT FROM message_store.messages)", "$1 IS NULL"),
        *("true OR true", "false OR true", "type = 'T' OR type = 'U'", "false) OR (true", "/* */ true", "true --\n"),
        *("true) --", "NULL", "data IS NULL OR type = 'T'", "stream_name = $1 OR true"),
    ]
)
bad_conditions = st.sampled_from(
    [
        *("true --", "true) LIMIT 1 --", "true; SELECT 1", "", " ", ")", "(", "true)", "bad(", "1", "type", "nonsense"),
        *("nonsense()", "1 / 0 = 1", "id = 'no-uuid'", "$9", "count(*) > 0", "%", "%s", "%1$s", "\\", "'", "/*", "$$"),
    ]
)
conditions = st.none() | st.none() | good_conditions | good_conditions | bad_conditions


class Call(NamedTuple):
    function: str
    arguments: dict[str, Any]


CASTS = {
    **dict.fromkeys(["position", "batch_size", "expected_version"], "bigint"),
    **dict.fromkeys(["consumer_group_member", "consumer_group_size"], "bigint"),
    **dict.fromkeys(["data", "metadata"], "jsonb"),
}


def calls(
    function: str, required: dict[str, st.SearchStrategy[Any]], **optional: st.SearchStrategy[Any]
) -> st.SearchStrategy[Call]:
    return st.builds(Call, st.just(function), st.fixed_dictionaries(required, optional=optional))


message = {"stream_name": any_stream, "type": types, "data": data}
writes = calls(
    "write_message",
    {"id": st.uuids().map(str), **message},
    metadata=metadata,
    expected_version=st.none() | st.integers(-2, 8),
)
odd_writes = calls("write_message", {"id": odd_ids, **message}, metadata=data, expected_version=integers)
batches = {"position": few | few | integers, "batch_size": few | few | integers, "condition": conditions}
category_batches = {**batches, "correlation": st.none() | any_category}
groups = {"consumer_group_member": few | few | integers, "consumer_group_size": few | few | integers}
stream_reads = calls("get_stream_messages", {"stream_name": any_stream}, **batches)
category_reads = calls("get_category_messages", {"category": any_category}, **category_batches)
consumer_reads = calls("get_category_messages", {"category": categories, **groups}, **category_batches)
last_reads = calls("get_last_stream_message", {"stream_name": any_stream}, type=types)


class Conformance(RuleBasedStateMachine):
    """The same calls, one after the other, on the official store and on others."""

    def __init__(self, official: Connection, *others: Connection) -> None:
        super().__init__()
        self.connections = [official, *others]
        self.on_all("TRUNCATE message_store.messages RESTART IDENTITY")
        self.on_all(FIRST_MESSAGES)
        self.on_all("SET message_store.sql_condition = 'on'")

    def on_all(self, sql: str) -> None:
        for connection in self.connections:
            connection.exec_driver_sql(sql)

    def compare(self, sql: str, values: dict[str, Any] | None = None) -> None:
        theirs, *others = (answer(connection, sql, values) for connection in self.connections)
        for own in others:
            assert own == theirs

    def compare_call(self, call: Call) -> None:
        all_but_time = "id, stream_name, type, position, global_position, data, metadata"
        result = all_but_time if call.function.startswith("get_") else "*"
        given = (f'"{name}" => CAST(%({name})s AS {CASTS.get(name, "varchar")})' for name in call.arguments)
        self.compare(f"SELECT {result} FROM message_store.{call.function}({', '.join(given)})", call.arguments)

    write = rule(call=writes)(compare_call)
    write_more = rule(call=writes)(compare_call)
    write_oddly = rule(call=odd_writes)(compare_call)
    read_stream = rule(call=stream_reads)(compare_call)
    read_category = rule(call=category_reads)(compare_call)
    read_as_consumer = rule(call=consumer_reads)(compare_call)
    read_last = rule(call=last_reads)(compare_call)

    @rule(name=any_stream)
    def ask(self, name: str | None) -> None:
        functions = [*HELPERS, "acquire_lock", "stream_version"]
        asked = ", ".join(f"message_store.{function}(CAST(%(name)s AS varchar))" for function in functions)
        # Sent together they are one transaction, which holds the lock.
        held = "SELECT classid, objid, mode FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'"
        self.compare(f"SELECT message_store.message_store_version(), {asked}", {"name": name})
        self.compare(f"SELECT {asked}; {held}", {"name": name})

    @rule(view=st.sampled_from([*VIEWS]))
    def look(self, view: str) -> None:
        self.compare(f"SELECT * FROM message_store.{view}")
        self.compare("SELECT to_jsonb(m) - 'time' FROM message_store.messages AS m ORDER BY global_position")
        self.compare("SELECT last_value, is_called FROM message_store.messages_global_position_seq")

    @rule(value=st.sampled_from(["on", "on", "on", "ON", "yes", "off"]))
    def switch_conditions(self, value: str) -> None:
        self.on_all(f"SET message_store.sql_condition = '{value}'")


# Without the phase that explains, a failure is there within half a minute.
PROFILE = settings(stateful_step_count=30, report_multiple_bugs=False, phases=set(Phase) - {Phase.explain})


@contextmanager
def session(engine: Engine, path: str = OFFICIAL_PATH) -> Iterator[Connection]:
    with engine.connect() as connection:
        connection.exec_driver_sql(path)
        yield connection


def test_every_call_is_answered_alike_whatever_our_search_path_is(
    messagedb_server_url: str, official: Engine, ours: Engine
) -> None:
    with empty_database(messagedb_server_url) as pathless:
        install.upgrade(pathless)
        with session(official) as theirs, session(ours) as own, session(pathless, NO_PATH) as own_without_path:

            class Both(Conformance):
                def __init__(self) -> None:
                    super().__init__(theirs, own, own_without_path)

            run_state_machine_as_test(Both, settings=settings(PROFILE, max_examples=250))  # type: ignore[no-untyped-call, unused-ignore]


def test_after_an_adoption_every_call_is_answered_as_if_there_had_been_none(
    messagedb_server_url: str, official: Engine, official_sql: Path
) -> None:
    with empty_database(messagedb_server_url) as adopted:
        install_as_upstream_does(adopted, official_sql)
        with session(official) as theirs, session(adopted) as own:

            class Adopted(Conformance):
                """A second official store is taken over while it has messages and an open session."""

                def __init__(self) -> None:
                    answers(adopted, "DROP SCHEMA message_store CASCADE", f"DROP TABLE IF EXISTS {VERSION_TABLE}")
                    install_as_upstream_does(adopted, official_sql)
                    super().__init__(theirs, own)

                @initialize(before=st.lists(writes, max_size=20))
                def adopt(self, before: list[Call]) -> None:
                    for call in before:
                        self.compare_call(call)
                    install.upgrade(adopted)
                    self.look("stream_summary")

            run_state_machine_as_test(Adopted, settings=settings(PROFILE, max_examples=40))  # type: ignore[no-untyped-call, unused-ignore]
