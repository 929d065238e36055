"""The errors of message-db-py's client: ValueError with PostgreSQL's text, and those of the driver."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg2  # type: ignore[import-untyped]
import pytest
from sqlalchemy import Engine, text

from messagedb_sa import InvalidArgument, Store, WrongExpectedVersion
from messagedb_sa.compat import MessageDB


def test_a_wrong_expected_version_is_a_value_error_with_the_text_of_postgresql(filled: MessageDB) -> None:
    expected = "P0001-ERROR:  Wrong expected version: 7 (Stream: account-1, Stream Version: 2)"
    writes: list[Callable[[], int]] = [
        lambda: filled.write("account-1", "Opened", {}, expected_version=7),
        lambda: filled.write_batch("account-1", [("Opened", {}), ("Opened", {})], expected_version=7),
    ]
    for write in writes:
        with pytest.raises(ValueError, match="Wrong expected version") as caught:
            write()
        assert str(caught.value) == expected
        assert type(caught.value) is ValueError
        assert isinstance(caught.value.__cause__, psycopg2.errors.RaiseException)
        assert isinstance(caught.value.__context__, WrongExpectedVersion)
    assert len(filled.read("account-1")) == 3


def test_an_empty_batch_is_a_value_error(old: MessageDB) -> None:
    with pytest.raises(InvalidArgument, match="pass at least one message"):
        old.write_batch("account-1", [])
    assert issubclass(InvalidArgument, ValueError)


def test_data_that_json_cannot_hold_is_a_value_error_or_a_type_error(old: MessageDB) -> None:
    with pytest.raises(ValueError, match=r"^22P02-ERROR:  invalid input syntax for type json$"):
        old.write("account-1", "Opened", {"n": float("nan")})
    with pytest.raises(ValueError, match=r"^22P02-ERROR:  invalid input syntax for type json$"):
        old.write_batch("account-1", [("Opened", {}), ("Opened", {"n": float("nan")})])
    with pytest.raises(ValueError, match="NUL"):
        old.write("account-1", "Opened", {"n": "\0"})
    with pytest.raises(TypeError, match=r"^Object of type datetime is not JSON serializable$"):
        old.write("account-1", "Opened", {"n": datetime(2020, 1, 1)})
    assert old.read("$all") == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda old: old.read_stream("account"), "account is not a stream"),
        (lambda old: old.read_category("account-1"), "account-1 is not a category"),
        (lambda old: old.stream_identifiers("account-1"), "account-1 is not a category"),
        (
            lambda old: old.read_category("account", consumer_group_member=0),
            "Both consumer_group_member and consumer_group_size must be provided together or both must be None",
        ),
        (
            lambda old: old.read_category("account", consumer_group_size=2),
            "Both consumer_group_member and consumer_group_size must be provided together or both must be None",
        ),
        (lambda old: old.read_category("account", 0, 1, -1, 2), "consumer_group_member must be >= 0, got -1"),
        (lambda old: old.read_category("account", 0, 1, 0, 0), "consumer_group_size must be > 0, got 0"),
        (
            lambda old: old.read_category("account", 0, 1, 2, 2),
            "consumer_group_member (2) must be less than consumer_group_size (2)",
        ),
    ],
)
def test_wrong_names_and_groups_are_value_errors(old: MessageDB, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(old)


@pytest.mark.parametrize(
    "call",
    [
        lambda old: old.write("", "Opened", {}),
        lambda old: old.write("account-1", "Opened", {}, expected_version="0"),
        lambda old: old.write_batch("account-1", [("", {})]),
        lambda old: old.read("account-1", position=1.5),
        lambda old: old.read("$all", position="1"),
        lambda old: old.read("$all", no_of_messages=-2),
        lambda old: old.read_category("account", 0, 1, 0, 40_000),
        lambda old: old.read("account", None, 0, 1, 2, 2),
        lambda old: old.read("account-1", "SELECT %(other)s"),
    ],
)
def test_arguments_that_a_store_refuses_are_value_errors(old: MessageDB, call: Any) -> None:
    with pytest.raises(InvalidArgument):
        call(old)


def test_a_database_without_a_store_gives_the_drivers_errors(empty_database: Engine) -> None:
    client = MessageDB.from_url(empty_database.url.set(drivername="postgresql").render_as_string(hide_password=False))
    with pytest.raises(ValueError, match=r'^3F000-ERROR:  schema "message_store" does not exist$'):
        client.write("account-1", "Opened", {})
    reads: list[Callable[[], Any]] = [
        lambda: client.read("account-1"),
        lambda: client.read_stream("account-1"),
        lambda: client.read_last_message("account-1"),
        lambda: client.read_category("account"),
        lambda: client.stream_identifiers("account"),
    ]
    for read in reads:
        with pytest.raises(psycopg2.ProgrammingError, match="message_store"):
            read()
    client.connection_pool.closeall()


def test_a_lost_connection_is_the_drivers_error_and_the_next_call_works(old: MessageDB, store: Store) -> None:
    # It returns false for a session that has just ended by itself.
    ended = text(
        "SELECT count(pg_terminate_backend(pid, 60000)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    for call in (lambda: old.write("account-1", "Opened", {}), lambda: old.read("account-1")):
        # The pool may hold connections that the call before has ended.
        store.engine.dispose()
        with store.engine.connect() as connection:
            assert connection.scalar(ended)
        with pytest.raises(psycopg2.OperationalError):
            call()
        call()
    assert len(old.read("account-1")) == 1
