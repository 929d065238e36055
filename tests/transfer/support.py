"""What the tests of transfers share: messages that are hard to copy, and what a store holds."""

from __future__ import annotations

import io
from typing import Any

from sqlalchemy import Engine, text

from messagedb_sa import Store, transfer

from ..support import insert
from ..waits import wait_until

NUMBERS = "[1, 1.0, 1.00, -0.0, 1e400, 1e-400, 0.1, 123456789012345678901234567890.0000001]"
NESTED = "[" * 6_000 + "]" * 6_000
TIMES = (
    "infinity",
    "-infinity",
    "4713-01-01 00:00:00 BC",
    "0044-03-15 12:30:00.000001 BC",
    "0001-01-01",
    "9999-12-31 23:59:59.999999",
    "12026-11-26 01:02:03.000004",
    "294276-12-31 23:59:59.999999",
)
LONG_NAME = "é" * 1_298 + "-" + "xyz"
"""2,600 bytes."""


def fill_with_hard_ones(store: Store) -> None:
    """Messages that Python would change, or has no value for."""
    insert(store, "numbers-1", 0, "Numbers", NUMBERS, metadata='{"n": 1.10}')
    insert(store, "nested-1", 0, "Nested", NESTED, metadata=NESTED)
    for position, (data, metadata) in enumerate([(None, None), ("null", None), (None, "null"), ("null", "null")]):
        insert(store, "nulls-1", position, "Null", data, metadata=metadata)
    insert(store, "texts-1", 0, 'A "\\" \t\n\u2028😀', r'"\u2028 \\ \" \n \u0001 \ud83d\ude00"')
    insert(store, LONG_NAME, 0, "Long", "{}")
    insert(store, "without_id", 0, "Without", "{}")
    insert(store, "quoted'\"%(x)s:y-1{},\\", 0, "Quoted", "{}")
    for position, time in enumerate(TIMES):
        insert(store, "times-1", position, "Timed", "{}", f"timestamp '{time}'")


def roll_back(store: Store, number: int = 1) -> None:
    """Leave so many gaps in the global positions."""
    with store.engine.connect() as connection:
        Store(connection).write_batch("lost-1", [("Lost", {})] * number)
        connection.rollback()


def contents(store: Store) -> list[Any]:
    """Each message as PostgreSQL writes the row, in order."""
    query = text("SELECT CAST(m AS text) FROM message_store.messages AS m ORDER BY global_position")
    with store.engine.connect() as connection:
        return list(connection.scalars(query))


def exported(store: Store, name: str = "$all", **options: Any) -> bytes:
    file = io.BytesIO()
    transfer.export_messages(store, name, file, **options)
    return file.getvalue()


def imported(store: Store, lines: bytes, **options: Any) -> transfer.Transferred:
    return transfer.import_messages(store, io.BytesIO(lines), **options)


def wait_until_waiting_for_the_table(engine: Engine) -> None:
    """Return when a session waits for a lock on the table of messages."""
    waiting = text(
        "SELECT count(*) FROM pg_locks WHERE relation = to_regclass('message_store.messages') AND NOT granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        wait_until(lambda: connection.scalar(waiting), "a session waits for the table")
