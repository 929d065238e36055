"""Reading with SQL of the caller's own, on each driver."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import bindparam, create_engine, select, text

from messagedb_sa import InvalidArgument, Store, functions, schema

from ..support import numbers


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM message_store.get_stream_messages(%(stream_name)s, %(position)s, %(batch_size)s);",
        """
        SELECT time, metadata, data, global_position, position, type, stream_name, id, 1 AS more -- a comment: 100 %% 7
        FROM message_store.messages
        WHERE stream_name = %(stream_name)s AND position >= %(position)s AND id::text LIKE '%%-%%' AND 7 % 4 = 3
        ORDER BY position LIMIT %(batch_size)s -- the end""",
        text(
            "SELECT * FROM message_store.messages WHERE stream_name = :stream_name AND position >= :position"
            " ORDER BY position LIMIT :batch_size"
        ),
        select(schema.messages)
        .where(
            schema.messages.c.stream_name == bindparam("stream_name"),
            schema.messages.c.position >= bindparam("position"),
        )
        .order_by(schema.messages.c.position)
        .limit(bindparam("batch_size")),
    ],
    ids=["text", "text with percent signs", "text()", "select"],
)
def test_read_takes_the_callers_own_query(filled: Store, sql: Any) -> None:
    assert filled.read("account-1", sql, position=1, no_of_messages=2) == filled.read_stream("account-1", 1, 2)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM message_store.get_stream_messages('account-1', 1, 2)",
        select(schema.messages)
        .where(schema.messages.c.stream_name == "account-1", schema.messages.c.position.between(1, 2))
        .order_by(schema.messages.c.position),
        select(functions.get_stream_messages("account-1", 1, 2).messages()),
    ],
    ids=["text", "select", "select of a function"],
)
def test_an_argument_that_the_callers_own_query_does_not_use_is_refused(filled: Store, sql: Any) -> None:
    assert filled.read("account-1", sql) == filled.read_stream("account-1", 1, 2)
    for argument, given in (
        ("position", {"position": 1}),
        ("no_of_messages", {"no_of_messages": 2}),
        ("consumer_group_member", {"consumer_group_member": 0, "consumer_group_size": 2}),
    ):
        with pytest.raises(InvalidArgument, match="has no effect, since sql does not use the parameter") as caught:
            filled.read("account-1", sql, **given)  # type: ignore[arg-type]
        assert caught.value.argument == argument


def test_an_argument_for_which_the_callers_own_query_has_a_value_is_refused(filled: Store) -> None:
    own = text("SELECT * FROM message_store.get_stream_messages(:stream_name, :position)").bindparams(position=2)
    with pytest.raises(InvalidArgument, match="position=1: has no effect"):
        filled.read("account-1", own, position=1)


def test_with_message_dbs_search_path_own_sql_can_be_that_of_message_db_py(messagedb_url: str, filled: Store) -> None:
    engine = create_engine(messagedb_url, connect_args={"options": "-c search_path=message_store"})
    own = "SELECT * FROM get_stream_messages(%(stream_name)s, %(position)s, %(batch_size)s);"
    assert Store(engine).read("account-1", own) == filled.read_stream("account-1")
    engine.dispose()


def test_own_sql_gets_the_consumer_group_too(filled: Store) -> None:
    own = (
        "SELECT * FROM message_store.get_category_messages(%(stream_name)s, %(position)s, %(batch_size)s, NULL,"
        " %(consumer_group_member)s, %(consumer_group_size)s)"
    )
    shares = [filled.read("account", own, consumer_group_member=m, consumer_group_size=2) for m in (0, 1)]
    assert sorted(n for share in shares for n in numbers(share)) == list(range(10))
    assert numbers(filled.read("account", own)) == list(range(10))


def test_times_of_own_sql_are_utc_whatever_the_sessions_time_zone(filled: Store) -> None:
    (expected,) = filled.read_stream("account-1", 0, 1)
    own = (
        "SELECT id, stream_name, type, position, global_position, data, metadata, time AT TIME ZONE 'utc' AS time"
        " FROM message_store.messages, set_config('timezone', 'Asia/Tokyo', true) ORDER BY global_position LIMIT 1"
    )
    assert filled.read("account-1", own) == [expected]


def test_a_value_bound_in_the_callers_query_is_kept(filled: Store) -> None:
    own = text("SELECT * FROM message_store.get_stream_messages(:stream_name, :position)")
    assert numbers(filled.read("account-1", own.bindparams(position=2))) == [6, 9]
    bound = select(schema.messages).where(schema.messages.c.global_position == bindparam("position", 3))
    assert numbers(filled.read("account-1", bound)) == [2]
