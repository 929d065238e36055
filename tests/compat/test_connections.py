"""Clients and connection pools."""

from __future__ import annotations

from typing import Any

import psycopg2  # type: ignore[import-untyped]
import pytest
from psycopg2.extras import RealDictCursor  # type: ignore[import-untyped]
from psycopg2.pool import PoolError  # type: ignore[import-untyped]
from sqlalchemy import create_engine, make_url

from messagedb_sa import InvalidArgument, Store
from messagedb_sa.compat import ConnectionPool, MessageDB

from .support import numbers


def test_a_client_is_made_from_the_parts_of_a_url(url: str) -> None:
    parts = make_url(url)
    client = MessageDB(
        dbname=parts.database or "",
        user=parts.username or "",
        password=parts.password or "",
        host=str(parts.query.get("host", parts.host)),
        port=int(str(parts.query.get("port", parts.port or 5432))),
    )
    assert client.write("account-1", "Opened", {}) == 0
    client.connection_pool.closeall()


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_a_client_works_on_an_engine_of_either_driver(url: str, old: MessageDB, driver: str) -> None:
    pytest.importorskip(driver)
    engine = create_engine(make_url(url).set(drivername=f"postgresql+{driver}"))
    client = MessageDB(connection_pool=engine)
    assert client.connection_pool is engine
    assert client.write_batch("account-1", [("Opened", {"n": 0}), ("Opened", {"n": 1})]) == 1
    assert client.read("account-1") == old.read("account-1")
    with pytest.raises(ValueError, match=r"^P0001-ERROR:  Wrong .*: 0 \(Stream: account-1, Stream Version: 1\)$"):
        client.write("account-1", "Opened", {}, expected_version=0)
    with pytest.raises(engine.dialect.loaded_dbapi.ProgrammingError, match="no_such_table"):
        client.read("account-1", "SELECT * FROM no_such_table")
    engine.dispose()


def test_clients_can_share_a_pool(pool: ConnectionPool) -> None:
    MessageDB(connection_pool=pool).write("account-1", "Opened", {"n": 1})
    assert numbers(MessageDB(connection_pool=pool).read("account-1")) == [1]


def test_a_client_needs_a_pool_or_an_engine(store: Store) -> None:
    with store.engine.connect() as connection, pytest.raises(InvalidArgument, match="connection_pool"):
        MessageDB(connection_pool=connection)  # type: ignore[arg-type]


def test_new_code_can_use_the_store_of_a_client(old: MessageDB) -> None:
    old.write("account-1", "Opened", {"n": 1})
    assert old.store.read_stream("account-1")[0].data == {"n": 1}


def test_a_connection_of_a_pool_is_one_of_psycopg2(pool: ConnectionPool) -> None:
    connection = pool.get_connection()
    assert type(connection) is psycopg2.extensions.connection
    with connection, connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute("SELECT message_store.write_message(gen_random_uuid()::varchar, 'account-1', 'Opened', '{}')")
        assert cursor.fetchone() == {"write_message": 0}
    pool.release(connection)
    assert len(MessageDB(connection_pool=pool).read("account-1")) == 1


def test_a_released_connection_is_rolled_back_and_used_again(pool: ConnectionPool) -> None:
    connection = pool.get_connection()
    connection.cursor().execute("CREATE TABLE never (n int)")
    pool.release(connection)
    again = pool.get_connection()
    assert again is connection
    with again.cursor() as cursor:
        cursor.execute("SELECT to_regclass('never')")
        assert cursor.fetchone() == (None,)
    pool.release(again)


@pytest.mark.parametrize("by", ["the pool", "the user"])
def test_a_closed_connection_is_not_used_again(pool: ConnectionPool, caplog: pytest.LogCaptureFixture, by: str) -> None:
    connection = pool.get_connection()
    if by == "the user":
        connection.close()
    pool.release(connection, close=by == "the pool")
    assert connection.closed
    again = pool.get_connection()
    assert not again.closed
    pool.release(again)
    assert caplog.records == []


def test_a_connection_cannot_be_released_twice(pool: ConnectionPool) -> None:
    connection = pool.get_connection()
    pool.release(connection)
    with pytest.raises(PoolError, match="trying to put unkeyed connection"):
        pool.release(connection)


def test_a_pool_has_a_maximum_of_connections(pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.engine.pool, "_timeout", 0)
    lent = [pool.get_connection(), pool.get_connection()]
    with pytest.raises(PoolError, match="connection pool exhausted"):
        pool.get_connection()
    with pytest.raises(PoolError, match="connection pool exhausted"):
        MessageDB(connection_pool=pool).read("account")
    for connection in lent:
        pool.release(connection)
    assert MessageDB(connection_pool=pool).read("account") == []


def test_a_closed_pool_closes_its_connections_and_opens_no_more(pool: ConnectionPool) -> None:
    client = MessageDB(connection_pool=pool)
    lent, idle = pool.get_connection(), pool.get_connection()
    pool.release(idle)
    pool.closeall()
    assert lent.closed
    assert idle.closed
    pool.closeall()
    for call in (pool.get_connection, lambda: client.read("account"), lambda: client.write("account-1", "T", {})):
        with pytest.raises(PoolError, match="connection pool is closed"):
            call()


def test_a_pool_connects_at_once_with_psycopg2s_arguments(url: str) -> None:
    with pytest.raises(psycopg2.OperationalError, match="no_such_database"):
        ConnectionPool(url, dbname="no_such_database")
    with pytest.raises(psycopg2.ProgrammingError, match="invalid dsn"):
        ConnectionPool("nonsense")


@pytest.mark.parametrize("number", [-1, "1", None, 1.5])
def test_the_number_of_connections_is_a_number(number: Any) -> None:
    with pytest.raises(ValueError, match=r'^"max_connections" must be a positive integer$'):
        ConnectionPool("", max_connections=number)


def test_a_pool_with_a_maximum_of_0_has_one_connection(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ConnectionPool(url, max_connections=0)
    assert MessageDB(connection_pool=pool).read("$all") == []
    monkeypatch.setattr(pool.engine.pool, "_timeout", 0)
    pool.get_connection()
    with pytest.raises(PoolError, match="connection pool exhausted"):
        pool.get_connection()
    pool.closeall()
