"""write_message and stream_version: positions, expected versions, and what is refused."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection

from .support import call, column, diagnosis, refusal, rows, run, value, write


def test_stream_version_is_the_highest_position(connection: Connection) -> None:
    for expected in range(3):
        write(connection, "account-1")
        write(connection, "account-1+2")
        write(connection, "account")
        assert value(connection, "stream_version", stream_name="account-1") == expected


@pytest.mark.parametrize("stream_name", ["account-2", "account", "account-1+2", "", None])
def test_stream_version_is_null_if_the_stream_does_not_exist(connection: Connection, stream_name: str | None) -> None:
    write(connection, "account-1")
    assert value(connection, "stream_version", stream_name=stream_name) is None


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
def test_an_id_that_is_not_a_uuid_is_refused_with_22p02(connection: Connection, id: str) -> None:
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
