"""In what our install differs from the official Message DB 1.3.1 on purpose, with the answers of both."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Engine

from messagedb_sa.schema import VERSION_TABLE

from .official import NO_PATH, OFFICIAL_PATH, SCHEMA, answers


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
    "if nothing limits the batch, a condition finds NULL in the parameter $3": Difference(
        on_a_message("SELECT position FROM message_store.get_stream_messages('a-1', 0, -1, '$3 IS NULL')"), [], [(0,)]
    ),
    "a condition that leaves a quote open meets another text, with quotes of its own": Difference(
        on_a_message("SELECT position FROM message_store.get_stream_messages('a-1', condition => '\"')"),
        ("42601", "unterminated quoted identifier", None, None),
        ("42601", 'syntax error at or near "position"', None, None),
    ),
    "a condition that closes our parenthesis and reads other categories gets them one after the other": Difference(
        [
            *on_a_message("SELECT message_store.write_message(gen_random_uuid()::varchar, 'b-1', 'T', '{}')"),
            "SELECT message_store.write_message(gen_random_uuid()::varchar, 'a-2', 'T', '{}')",
            "SELECT stream_name FROM message_store.get_category_messages('a', condition => 'false) OR (true')",
        ],
        [("a-1",), ("b-1",), ("a-2",)],
        [("a-1",), ("a-2",), ("b-1",)],
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
        [
            f"SELECT proname, proconfig::text FROM pg_proc WHERE pronamespace = {SCHEMA} AND proconfig IS NOT NULL"
            " ORDER BY 1"
        ],
        [],
        [
            (
                "get_category_messages",
                "{random_page_cost=0.01,seq_page_cost=0.01,enable_seqscan=off,jit=off,plan_cache_mode=force_generic_plan}",
            ),
            ("get_query_messages", "{random_page_cost=0.01,seq_page_cost=0.01}"),
        ],
    ),
    "the version table of Alembic": Difference(
        [f"SELECT to_regclass('public.{VERSION_TABLE}') IS NOT NULL"], [(False,)], [(True,)]
    ),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_it_differs_on_purpose(name: str, official: Engine, ours: Engine) -> None:
    statements, theirs, own = DIFFERENCES[name]
    assert answers(official, *statements)[-1] == theirs
    assert answers(ours, *statements)[-1] == own


def test_with_debug_on_a_read_makes_one_notice_instead_of_six(
    official: Engine, ours: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    made = []
    for engine in (official, ours):
        caplog.clear()
        with caplog.at_level(logging.INFO, "sqlalchemy.dialects.postgresql"):
            answers(engine, OFFICIAL_PATH, "SET message_store.debug = 'on'", "SELECT get_stream_messages('a-1')")
        made.append(len(caplog.records))
    assert made == [6, 1]
