"""get_category_messages prepares the query of a consumer group, or of a correlation, once for a session.

A prepared statement is the session's, not the transaction's. Clients and poolers may drop it at any time.
"""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from messagedb_sa import Store

from ..standby import primary_and_standby
from .support import call, column, positions, read, refusal, rows, run, streams, write

MEMBER = {"consumer_group_member": 0, "consumer_group_size": 1}


def prepared(connection: Connection) -> list[tuple[Any, ...]]:
    """The queries that the function has prepared in this session, and how often they were executed with one plan."""
    return rows(
        connection,
        "SELECT statement, generic_plans, custom_plans FROM pg_prepared_statements"
        " WHERE statement LIKE 'PREPARE message_store%' ORDER BY prepare_time",
    )


def read_as_member(connection: Connection, **arguments: Any) -> list[int]:
    return positions(read(connection, "get_category_messages", **{**MEMBER, **arguments}))


@pytest.fixture
def filled(connection: Connection) -> Connection:
    """A session in autocommit mode, and a stream of three messages."""
    connection = connection.execution_options(isolation_level="AUTOCOMMIT")
    for _ in range(3):
        write(connection, "account-1", metadata='{"correlationStreamName": "other-1"}')
    return connection


@pytest.mark.parametrize(
    "arguments", [MEMBER, {"correlation": "other"}, {**MEMBER, "correlation": "other"}], ids=", ".join
)
def test_pages_share_a_plan_whatever_their_values(filled: Connection, arguments: dict[str, Any]) -> None:
    for position in range(1, 4):
        for batch_size in (1, 2, -1, None):
            found = read(filled, "get_category_messages", position=position, batch_size=batch_size, **arguments)
            assert positions(found) == list(range(3))[position - 1 :][: batch_size if batch_size != -1 else None]
    call(filled, "get_category_messages", category="another", **arguments)
    ((_, generic, custom),) = prepared(filled)
    assert (generic, custom) == (13, 0)


def test_a_group_of_another_size_has_a_plan_of_its_own(filled: Connection) -> None:
    for size in (1, 2, 3, 2, 1):
        for member in range(size):
            read(filled, "get_category_messages", consumer_group_member=member, consumer_group_size=size)
    assert [plans[1] for plans in prepared(filled)] == [2, 4, 3]


def test_a_read_without_a_group_prepares_nothing_nor_does_one_with_a_condition(filled: Connection) -> None:
    run(filled, "SET message_store.sql_condition = 'on'")
    assert positions(read(filled, "get_category_messages")) == [0, 1, 2]
    for n in range(3):
        assert read_as_member(filled, condition=f"position = {n}") == [n]
    assert prepared(filled) == []


@pytest.mark.parametrize("dropped", ["DEALLOCATE ALL", "DISCARD ALL", "DISCARD PLANS"])
def test_what_drops_it_is_not_noticed(filled: Connection, dropped: str) -> None:
    for _ in range(3):
        assert read_as_member(filled) == [0, 1, 2]
        run(filled, dropped)


def test_it_may_be_dropped_and_prepared_within_a_transaction(connection: Connection) -> None:
    write(connection, "account-1")
    for _ in range(3):
        assert read_as_member(connection) == [0]
        run(connection, "DEALLOCATE ALL")


def test_it_outlives_a_transaction_that_is_rolled_back(connection: Connection) -> None:
    write(connection, "account-1")
    assert read_as_member(connection) == [0]
    connection.rollback()
    assert read_as_member(connection) == []
    write(connection, "account-1")
    with connection.begin_nested() as inner:
        assert read_as_member(connection) == [0]
        inner.rollback()
    assert read_as_member(connection) == [0]
    assert [plans[1] for plans in prepared(connection)] == [4]


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE, READ ONLY, DEFERRABLE"])
def test_it_is_prepared_in_a_transaction_that_may_only_read(connection: Connection, isolation: str) -> None:
    write(connection, "account-1")
    connection.commit()
    run(connection, f"SET TRANSACTION ISOLATION LEVEL {isolation}, READ ONLY")
    assert read_as_member(connection) == [0]
    assert len(prepared(connection)) == 1


def test_it_sees_what_the_same_statement_wrote_before(connection: Connection) -> None:
    """As a query does in a volatile function: it has a snapshot of its own."""
    statement = """
        SELECT message_store.write_message(gen_random_uuid()::varchar, 'account-1', 'T', '{}'),
            (SELECT count(*) FROM message_store.get_category_messages('account', 1, 1000, NULL, 0, 1))
    """
    assert [rows(connection, statement) for _ in range(3)] == [[(n, n + 1)] for n in range(3)]


def test_it_is_prepared_on_a_standby() -> None:
    with primary_and_standby() as pair:
        Store(pair.engine(pair.primary)).write("account-1", "T", {})
        pair.catch_up()
        with pair.engine(pair.standby).connect() as connection:
            assert column(connection, "SELECT pg_is_in_recovery()") == [True]
            assert read_as_member(connection) == read_as_member(connection) == [0]
            assert [plans[1] for plans in prepared(connection)] == [2]


def test_another_role_of_the_session_needs_its_own_privileges(connection: Connection) -> None:
    write(connection, "account-1")
    run(connection, "CREATE ROLE stranger", "GRANT USAGE ON SCHEMA message_store TO stranger")
    assert read_as_member(connection) == [0]
    run(connection, "SET LOCAL ROLE stranger")
    assert refusal(connection, read_as_member) == ("42501", "permission denied for table messages")
    run(connection, "RESET ROLE")
    assert read_as_member(connection) == [0]


def test_every_search_path_gives_the_same_messages(connection: Connection) -> None:
    write(connection, "account-1")
    run(connection, "CREATE SCHEMA own", "CREATE TABLE own.messages (LIKE message_store.messages)")
    for path in ("own", "message_store, own", "''", "own"):
        run(connection, f"SET LOCAL search_path = {path}")
        assert read_as_member(connection) == [0]
    assert len(prepared(connection)) == 1


@pytest.mark.parametrize("name", ["o'brien", "back\\slash", "$1", "a, NULL); DROP TABLE x", '"quoted"', "ünï", "%s"])
@pytest.mark.parametrize("strings", ["on", "off"])
def test_a_category_may_have_any_name(connection: Connection, name: str, strings: str) -> None:
    write(connection, f"{name}-1")
    run(connection, f"SET LOCAL standard_conforming_strings = {strings}")
    correlation = {"correlation": name, **MEMBER}
    for _ in range(2):
        assert streams(call(connection, "get_category_messages", category=name, **MEMBER)) == [f"{name}-1"]
        assert call(connection, "get_category_messages", category=name, **correlation) == []


def test_an_error_of_the_query_is_that_of_the_query(filled: Connection) -> None:
    for _ in range(3):
        with pytest.raises(DBAPIError, match="LIMIT must not be negative") as caught:
            read_as_member(filled, batch_size=-2)
        assert getattr(caught.value.orig, "pgcode", None) == "2201W"
    for _ in range(2):
        with pytest.raises(DBAPIError, match="smallint out of range"):
            read_as_member(filled, consumer_group_size=40_000)
    # Also before a condition that ends the query.
    run(filled, "SET message_store.sql_condition = on")
    with pytest.raises(DBAPIError, match="smallint out of range"):
        read_as_member(filled, consumer_group_size=40_000, condition="true --")
    assert read_as_member(filled) == [0, 1, 2]
