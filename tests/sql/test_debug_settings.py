"""The debug settings: functions report their arguments and queries as notices."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, text

from messagedb_sa import Store

from .support import READS, notices, run

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
def test_nothing_is_reported_unless_the_setting_is_on(
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
