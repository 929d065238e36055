"""The SQL condition of the two reads, and the setting that allows it."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection

from .support import READS, column, insert, positions, read, refusal, run


@pytest.mark.parametrize("function", READS)
@pytest.mark.parametrize("setting", [None, "off", ""])
def test_a_condition_is_refused_unless_the_setting_is_set_and_not_off(
    connection: Connection, function: str, setting: str | None
) -> None:
    if setting is not None:
        run(connection, f"SET LOCAL message_store.sql_condition = '{setting}'")
    assert column(connection, "SELECT current_setting('message_store.sql_condition', true)") == [setting]
    refused = refusal(connection, read, function, condition="true")
    assert refused == ("P0001", "Retrieval with SQL condition is not activated")


@pytest.mark.parametrize("function", READS)
def test_a_setting_ends_with_the_transaction_that_it_was_made_for(connection: Connection, function: str) -> None:
    run(connection, "SET LOCAL message_store.sql_condition = 'on'")
    assert read(connection, function, condition="true") == []
    connection.commit()
    refused = refusal(connection, read, function, condition="true")
    assert refused == ("P0001", "Retrieval with SQL condition is not activated")


@pytest.mark.parametrize("function", READS)
def test_without_a_condition_the_setting_is_not_needed(connection: Connection, function: str) -> None:
    insert(connection, 1)
    assert positions(read(connection, function, condition=None)) == [1]


@pytest.mark.parametrize("function", READS)
@pytest.mark.parametrize("setting", ["on", "true", "no matter what"])
def test_a_condition_is_taken_with_any_other_setting(connection: Connection, function: str, setting: str) -> None:
    insert(connection, 1, 2)
    run(connection, f"SET LOCAL message_store.sql_condition = '{setting}'")
    assert positions(read(connection, function, condition="global_position = 2")) == [2]


@pytest.mark.parametrize("function", READS)
@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ("true", [2, 3]),
        ("true OR true", [2, 3]),
        ("false OR global_position = 3", [3]),
        ("type = 'U'", []),
        ("(data->>'n') IS NULL AND stream_name LIKE '%-1'", [2, 3]),
        ("NULL", []),
    ],
)
def test_a_condition_is_sql_in_parentheses_added_with_and(
    connection: Connection, function: str, condition: str, found: list[int]
) -> None:
    insert(connection, 1, 2, 3)
    insert(connection, 4, stream_name="other-1")
    run(connection, "SET LOCAL message_store.sql_condition = 'on'")
    assert positions(read(connection, function, position=2, condition=condition)) == found
