"""Which indexes the queries of get_stream_messages and get_category_messages use."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection

from .support import notices, run


def plan(
    caplog: pytest.LogCaptureFixture, connection: Connection, function: str, values: str, **arguments: Any
) -> list[str]:
    """How PostgreSQL would run the query that the function reports, with the indexes that a big store would use."""
    run(
        connection,
        """
        INSERT INTO message_store.messages (stream_name, type, position, metadata)
        SELECT 'c' || n % 200 || '-' || n % 400, 'T', n, '{"correlationStreamName": "other-1"}'
        FROM generate_series(1, 2000) AS n
        """,
        "ANALYZE message_store.messages",
        "SET LOCAL message_store.debug = 'on'",
        "SET LOCAL enable_seqscan = off",
    )
    (told,) = notices(caplog, connection, function, **arguments)
    query = told[told.index("SELECT ") :]
    declared = "varchar, bigint, bigint, varchar, bigint, bigint"
    connection.exec_driver_sql(f"PREPARE reported ({declared}) AS {query}")
    lines = list(connection.exec_driver_sql(f"EXPLAIN (COSTS OFF) EXECUTE reported ({values})").scalars())
    connection.exec_driver_sql("DEALLOCATE reported")
    return [line.strip() for line in lines]


@pytest.mark.parametrize("enable_sort", ["on", "off"])
def test_a_category_is_read_through_messages_category(
    connection: Connection, caplog: pytest.LogCaptureFixture, enable_sort: str
) -> None:
    run(connection, f"SET LOCAL enable_sort = {enable_sort}")
    arguments = {"category": "c7", "correlation": "other", "position": 5}
    lines = plan(caplog, connection, "get_category_messages", "'c7', 5, 1000, 'other', NULL, NULL", **arguments)
    assert any("messages_category" in line for line in lines)
    (condition,) = (line for line in lines if line.startswith("Index Cond"))
    for part in ("split_part(", "stream_name", "'c7'", "global_position) >= ", "correlationStreamName", "'other'"):
        assert part in condition


def test_messages_category_gives_a_category_in_order_without_sorting(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    run(connection, "SET LOCAL enable_sort = off", "SET LOCAL enable_bitmapscan = off")
    lines = plan(caplog, connection, "get_category_messages", "'c7', 5, 1000, NULL, NULL, NULL", category="c7")
    assert "->  Index Scan using messages_category on messages" in lines
    assert not any("Sort" in line for line in lines)


def test_a_stream_is_read_through_messages_stream(connection: Connection, caplog: pytest.LogCaptureFixture) -> None:
    arguments = {"stream_name": "c7-7", "position": 5}
    lines = plan(caplog, connection, "get_stream_messages", "'c7-7', 5, 1000, NULL, NULL, NULL", **arguments)
    assert any("messages_stream" in line for line in lines)
