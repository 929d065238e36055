"""get_stream_messages, and what it shares with get_category_messages: positions, batch sizes, order."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection

from .support import READS, call, column, insert, positions, read, refusal, run, streams, write


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


def test_a_stream_is_read_alone(connection: Connection) -> None:
    for name in ("account-1", "account-2", "account-1+2", "account-1-2", "account", "account-1"):
        write(connection, name)
    assert streams(call(connection, "get_stream_messages", stream_name="account-1")) == ["account-1"] * 2
    assert call(connection, "get_stream_messages", stream_name="account-3") == []


@pytest.mark.parametrize(
    ("stream_name", "printed"), [("account", "account"), ("account:command+x", "account:command+x"), (None, "<NULL>")]
)
def test_a_category_is_refused_as_a_stream_name(connection: Connection, stream_name: str | None, printed: str) -> None:
    refused = refusal(connection, call, "get_stream_messages", stream_name=stream_name)
    assert refused == ("P0001", f"Must be a stream name: {printed}")
