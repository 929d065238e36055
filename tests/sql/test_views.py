"""The six views that count messages."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection

from .support import VIEWS, rows, write

SUMMARIES = {
    "type_summary": [("X", 3, "9.38"), ("Y", 20, "62.50"), ("Z", 9, "28.13")],
    "stream_summary": [("a-1", 23, "71.88"), ("b-1", 8, "25.00"), ("b-2", 1, "3.13")],
    "stream_type_summary": [
        ("a-1", "X", 3, "9.38"),
        ("a-1", "Y", 20, "62.50"),
        ("b-1", "Z", 8, "25.00"),
        ("b-2", "Z", 1, "3.13"),
    ],
    "type_stream_summary": [
        ("X", "a-1", 3, "9.38"),
        ("Y", "a-1", 20, "62.50"),
        ("Z", "b-1", 8, "25.00"),
        ("Z", "b-2", 1, "3.13"),
    ],
    "category_type_summary": [("a", "X", 3, "9.38"), ("a", "Y", 20, "62.50"), ("b", "Z", 9, "28.13")],
    "type_category_summary": [("X", "a", 3, "9.38"), ("Y", "a", 20, "62.50"), ("Z", "b", 9, "28.13")],
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_counts_messages_and_gives_their_share_rounded_to_2_digits(connection: Connection, view: str) -> None:
    for stream_name, type, count in (("b-2", "Z", 1), ("a-1", "Y", 20), ("b-1", "Z", 8), ("a-1", "X", 3)):
        for _ in range(count):
            write(connection, stream_name, type)
    found = [(*row[:-1], str(row[-1])) for row in rows(connection, f"SELECT * FROM message_store.{view}")]
    assert found == SUMMARIES[view]


@pytest.mark.parametrize(("view", "keys"), VIEWS.items())
def test_a_view_is_ordered_by_its_keys(connection: Connection, view: str, keys: list[str]) -> None:
    for n in range(60):
        write(connection, f"c{n * 7 % 10}-{n * 3 % 10}", f"t{n * 13 % 17:02}")
    sql = f"SELECT {', '.join(keys)} FROM message_store.{view}"
    found = rows(connection, sql)
    assert found == rows(connection, f"{sql} ORDER BY {', '.join(keys)}")
    assert len(found) == len(set(found)) >= 10


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_an_empty_store_is_empty(connection: Connection, view: str) -> None:
    assert rows(connection, f"SELECT * FROM message_store.{view}") == []


@pytest.mark.parametrize("view", VIEWS)
def test_a_single_message_is_100_percent_of_the_store(connection: Connection, view: str) -> None:
    write(connection, "account-1")
    ((*_, count, percent),) = rows(connection, f"SELECT * FROM message_store.{view}")
    assert (count, str(percent)) == (1, "100.00")
