"""acquire_lock: the advisory lock of a category, which writers hold until their transactions end."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection

from .support import call, column, hash_64, refusal, value, write


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
