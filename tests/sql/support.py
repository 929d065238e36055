"""Calling the functions of Message DB in SQL, as any client may."""

from __future__ import annotations

import logging
from collections.abc import Callable
from hashlib import md5
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

READS = ["get_stream_messages", "get_category_messages"]


HELPERS = ["category", "id", "cardinal_id", "is_category", "hash_64"]


VIEWS = {
    "type_summary": ["type"],
    "stream_summary": ["stream_name"],
    "stream_type_summary": ["stream_name", "type"],
    "type_stream_summary": ["type", "stream_name"],
    "category_type_summary": ["category", "type"],
    "type_category_summary": ["type", "category"],
}


def rows(connection: Connection, sql: str, **values: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in connection.execute(text(sql), values)]


def column(connection: Connection, sql: str, **values: Any) -> list[Any]:
    return list(connection.scalars(text(sql), values))


def run(connection: Connection, *statements: str) -> None:
    for statement in statements:
        connection.execute(text(statement))


def call(connection: Connection, function: str, **arguments: Any) -> Any:
    named = ", ".join(f'"{name}" => :{name}' for name in arguments)
    return connection.execute(text(f"SELECT * FROM message_store.{function}({named})"), arguments).all()


def value(connection: Connection, function: str, **arguments: Any) -> Any:
    ((result,),) = call(connection, function, **arguments)
    return result


def write(connection: Connection, stream_name: str, type: str = "T", data: str | None = "{}", **more: Any) -> Any:
    arguments = {"id": str(uuid4()), "stream_name": stream_name, "type": type, "data": data, **more}
    return value(connection, "write_message", **arguments)


def diagnosis(connection: Connection, do: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What psycopg2 tells about the error with which PostgreSQL refuses."""
    with pytest.raises(DBAPIError) as caught, connection.begin_nested():
        do(connection, *arguments, **named)
    original: Any = caught.value.orig
    return original.diag


def refusal(connection: Connection, do: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[str, str]:
    """The SQLSTATE and the text of the error."""
    told = diagnosis(connection, do, *arguments, **named)
    return told.sqlstate, told.message_primary


def positions(messages: Any) -> list[int]:
    return [message.position for message in messages]


def streams(messages: Any) -> list[str]:
    return [message.stream_name for message in messages]


def hash_64(value: str) -> int:
    return int.from_bytes(md5(value.encode()).digest()[:8], "big", signed=True)


def insert(connection: Connection, *numbers: int, stream_name: str = "account-1") -> None:
    """Messages whose position and global position are both that number, in the order given."""
    sql = (
        "INSERT INTO message_store.messages (global_position, position, stream_name, type) VALUES (:n, :n, :name, 'T')"
    )
    connection.execute(text(sql), [{"n": number, "name": stream_name} for number in numbers])


def read(connection: Connection, function: str, **arguments: Any) -> Any:
    """Reads the stream account-1, or the category account."""
    name = {"get_stream_messages": {"stream_name": "account-1"}, "get_category_messages": {"category": "account"}}
    return call(connection, function, **{**name[function], **arguments})


def notices(caplog: pytest.LogCaptureFixture, connection: Connection, function: str, **arguments: Any) -> list[str]:
    """What the call reports: SQLAlchemy takes the notices from psycopg2 and logs them."""
    logger = "sqlalchemy.dialects.postgresql"
    caplog.clear()
    with caplog.at_level(logging.INFO, logger):
        call(connection, function, **arguments)
    return [record.getMessage() for record in caplog.records if record.name == logger]


def everything(connection: Connection) -> list[Any]:
    """The result of calling each function and reading each view."""
    group = {"correlation": "other", "consumer_group_member": 0, "consumer_group_size": 1, "condition": "true"}
    metadata = '{"correlationStreamName": "other-1"}'
    run(connection, "SET LOCAL message_store.debug = 'on'", "SET LOCAL message_store.sql_condition = 'on'")
    return [
        *(value(connection, helper, stream_name="account-1+2") for helper in HELPERS[:4]),
        value(connection, "hash_64", value="account"),
        value(connection, "acquire_lock", stream_name="account-1"),
        value(connection, "message_store_version"),
        value(connection, "stream_version", stream_name="account-1"),
        write(connection, "account-1", metadata=metadata, expected_version=-1),
        value(connection, "stream_version", stream_name="account-1"),
        refusal(connection, write, "account-1", expected_version=5)[0],
        positions(read(connection, "get_stream_messages", condition="true")),
        positions(read(connection, "get_category_messages", **group)),
        positions(call(connection, "get_last_stream_message", stream_name="account-1")),
        positions(call(connection, "get_last_stream_message", stream_name="account-1", type="T")),
        *(column(connection, f"SELECT message_count FROM message_store.{view}") for view in VIEWS),
    ]


EVERYTHING = [
    *("account", "1+2", "1", False),
    *(hash_64("account"), hash_64("account"), "1.3.0", None),
    *(0, 0, "P0001"),
    *([0], [0], [0], [0]),
    *([1], [1], [1], [1], [1], [1]),
]
