"""Pools that are not ours: mocks in an application's own tests, message-db-py's pool, and any other of that kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import MagicMock, Mock, create_autospec

import psycopg2  # type: ignore[import-untyped]
import pytest
from psycopg2.pool import ThreadedConnectionPool  # type: ignore[import-untyped]

from messagedb_sa import Store
from messagedb_sa.compat import ConnectionPool, MessageDB

from .support import numbers

MOCKS: list[Callable[[type], Any]] = [
    lambda cls: Mock(spec=cls),
    lambda cls: MagicMock(spec_set=cls),
    lambda cls: create_autospec(cls, instance=True),
    lambda cls: create_autospec(cls)("postgresql://"),
]
mocks = pytest.mark.parametrize("mocked", MOCKS, ids=["Mock", "MagicMock", "create_autospec", "an autospec's result"])


@mocks
def test_a_mock_has_the_attributes_of_an_instance(url: str, mocked: Callable[[type], Any]) -> None:
    for instance in (ConnectionPool(url), MessageDB.from_url(url)):
        attributes = [name for name in dir(instance) if not name.startswith("_")]
        assert [name for name in attributes if not hasattr(mocked(type(instance)), name)] == []


@mocks
def test_a_client_gives_back_the_connection_that_it_got_from_a_mock(mocked: Callable[[type], Any]) -> None:
    pool, connection = mocked(ConnectionPool), MagicMock()
    connection.cursor.return_value.execute.side_effect = RuntimeError("the query failed")
    pool.get_connection.return_value = connection
    client = MessageDB(connection_pool=pool)
    assert client.connection_pool is pool
    calls: list[Callable[[], Any]] = [
        lambda: client.read("account-1"),
        lambda: client.read_last_message("account-1"),
        lambda: client.stream_identifiers("account"),
        lambda: client.write("account-1", "Opened", {}),
    ]
    for call in calls:
        pool.reset_mock()
        with pytest.raises(RuntimeError, match="the query failed"):
            call()
        pool.get_connection.assert_called_once_with()
        pool.release.assert_called_once_with(connection)


@mocks
def test_a_mock_that_lends_no_connection_is_heard(mocked: Callable[[type], Any]) -> None:
    pool = mocked(ConnectionPool)
    pool.get_connection.side_effect = psycopg2.OperationalError("no connection")
    with pytest.raises(psycopg2.OperationalError, match="no connection"):
        MessageDB(connection_pool=pool).read("account-1")
    pool.release.assert_not_called()


@mocks
def test_a_mocked_client_answers_what_the_test_says(mocked: Callable[[type], Any]) -> None:
    client = mocked(MessageDB)
    client.write.return_value = 7
    assert client.write("account-1", "Opened", {}) == 7


class OtherPool:
    """A pool of the kind that message-db-py has."""

    def __init__(self, url: str) -> None:
        self.pool = ThreadedConnectionPool(1, 2, url)
        self.lent = 0

    def get_connection(self) -> Any:
        self.lent += 1
        return self.pool.getconn()

    def release(self, connection: Any, close: bool = False) -> None:
        self.lent -= 1
        self.pool.putconn(connection, close=close)


@pytest.fixture
def other(url: str) -> Iterator[OtherPool]:
    other = OtherPool(url)
    yield other
    assert other.lent == 0
    other.pool.closeall()


def test_a_client_works_on_a_pool_of_another_kind(other: OtherPool, old: MessageDB) -> None:
    client = MessageDB(connection_pool=other)  # type: ignore[arg-type]
    assert client.write("account-1", "Opened", {"n": 0}, {"by": "me"}, -1) == 0
    assert client.write_batch("account-1", [("Opened", {"n": 1}), ("Opened", {"n": 2})], 0) == 2
    assert numbers(client.read("account-1")) == numbers(client.read("account")) == [0, 1, 2]
    assert client.read("$all") == old.read("$all")
    assert client.read_last_message("account-1") == old.read_last_message("account-1")
    with pytest.raises(
        ValueError, match=r"^P0001-ERROR:  Wrong expected version: 7 \(Stream: account-1, Stream Version: 2"
    ):
        client.write("account-1", "Opened", {}, expected_version=7)
    assert numbers([old.store.read_stream("account-1")[0]._asdict()]) == [0]


def test_a_connection_of_a_pool_of_another_kind_is_given_back_after_it_was_lost(
    other: OtherPool, store: Store, filled: MessageDB
) -> None:
    client = MessageDB(connection_pool=other)  # type: ignore[arg-type]
    connection = other.get_connection()
    lost = connection.info.backend_pid
    other.release(connection)
    with store.engine.connect() as admin:
        assert admin.exec_driver_sql("SELECT pg_terminate_backend(%s, 60000)", (lost,)).scalar()
    with pytest.raises(psycopg2.OperationalError):
        client.read("account")
    assert len(client.read("account")) == 6
