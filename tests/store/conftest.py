"""Fixtures of the tests of the store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, NullPool, create_engine, text

from messagedb_sa import Store, install
from messagedb_sa.testing import temporary_database

from ..support import DRIVERS, host, store_on


@pytest.fixture
def filled(each_store: Store) -> Store:
    """Messages 0 to 9 in account-1, account-2 and account-3, alternating, and two in other categories."""
    for n in range(10):
        each_store.write(f"account-{n % 3 + 1}", "Deposited", {"n": n})
    each_store.write("accounting-1", "Booked", {"n": 10})
    each_store.write("account:snapshot-1", "Recorded", {"n": 11})
    return each_store


@pytest.fixture
def engine(messagedb_url: str, store: Store) -> Iterator[Engine]:
    """An application's engine, with its table orders, and with one connection only: a second one is an error."""
    engine = create_engine(messagedb_url, pool_size=1, max_overflow=0, pool_timeout=0)
    host.create_all(engine)
    yield engine
    host.drop_all(engine)
    engine.dispose()


@pytest.fixture(scope="module")
def url_without_our_functions(messagedb_server_url: str) -> Iterator[str]:
    """A database with Message DB's own functions only."""
    with temporary_database(messagedb_server_url) as url:
        install.upgrade(create_engine(url, poolclass=NullPool), "messagedb_0001")
        yield url


@pytest.fixture(params=[*DRIVERS, "without our functions", "psycopg without our functions"])
def each_kind(request: pytest.FixtureRequest, store: Store) -> Iterator[Store]:
    """An empty store, once on each driver, and on a database with Message DB's own functions only."""
    if request.param in DRIVERS:
        with store_on(request.param, store.engine.url) as each:
            yield each
        return
    url = request.getfixturevalue("url_without_our_functions")
    with create_engine(url, poolclass=NullPool).begin() as connection:
        connection.execute(text("TRUNCATE message_store.messages RESTART IDENTITY"))
    with store_on("psycopg" if request.param.startswith("psycopg") else "psycopg2", url) as each:
        yield each
