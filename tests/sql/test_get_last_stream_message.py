"""get_last_stream_message: the last message of a stream, or its last one of a type."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection

from .support import call, insert, positions, write


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
def test_a_stream_that_does_not_exist_has_no_last_message(connection: Connection, stream_name: str | None) -> None:
    write(connection, "account-1")
    assert call(connection, "get_last_stream_message", stream_name=stream_name) == []


def test_a_stream_named_like_a_category_has_a_last_message(connection: Connection) -> None:
    write(connection, "account")
    assert positions(call(connection, "get_last_stream_message", stream_name="account")) == [0]
