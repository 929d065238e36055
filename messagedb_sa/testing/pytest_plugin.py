"""pytest fixtures: a PostgreSQL server for the test run, a database with a store, and empty stores for each test.

Each fixture imports what it needs only when it is used, so that this plugin does not slow down other test runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sqlalchemy import Engine, MetaData, Table

    from messagedb_sa import AsyncStore, MessageTypes, Store


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("messagedb", "Message DB").addoption(
        "--messagedb-url",
        metavar="URL",
        help="use this PostgreSQL server instead of a throwaway server (default: the environment variable "
        "MESSAGEDB_TEST_URL). The tests create databases on it; the URL's own database is not changed.",
    )


@pytest.fixture(scope="session")
def messagedb_server_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a server on which tests may create databases.

    It is the server of --messagedb-url or MESSAGEDB_TEST_URL. If neither is set, it is a throwaway server that is
    removed after the run; with pytest-xdist, each worker has its own.
    """
    sources = {
        "--messagedb-url": request.config.getoption("--messagedb-url"),
        "the environment variable MESSAGEDB_TEST_URL": os.environ.get("MESSAGEDB_TEST_URL"),
    }
    source, url = next(((source, url) for source, url in sources.items() if url), (None, None))
    if url:
        from messagedb_sa._drivers.urls import checked

        try:
            checked(url)
        except ValueError as error:
            pytest.fail(f"{source}: {error}", pytrace=False)
        yield url
    else:
        from messagedb_sa.testing import temporary_server

        with temporary_server() as server_url:
            yield server_url


@pytest.fixture(scope="session")
def messagedb_url(messagedb_server_url: str) -> Iterator[str]:
    """The URL of a database in which the store is installed. There is one for the run, and it is dropped after it."""
    from sqlalchemy import NullPool, create_engine, make_url

    from messagedb_sa import install
    from messagedb_sa._drivers.urls import for_blocking_code
    from messagedb_sa.testing import temporary_database

    with temporary_database(messagedb_server_url) as url:
        install.upgrade(create_engine(for_blocking_code(make_url(url)), poolclass=NullPool))
        yield url


@pytest.fixture(scope="session")
def messagedb_engine(messagedb_url: str) -> Iterator[Engine]:
    """An Engine for the database of ``messagedb_url``, on psycopg2 or psycopg if the URL's driver is asynchronous."""
    from sqlalchemy import create_engine, make_url

    from messagedb_sa._drivers.urls import for_blocking_code

    engine = create_engine(for_blocking_code(make_url(messagedb_url)))
    yield engine
    engine.dispose()


@pytest.fixture
def messagedb_types() -> MessageTypes | None:
    """The ``types`` of the stores, None for none. Override it to return those of your application."""
    return None


@pytest.fixture
def messagedb_tables() -> MetaData | Iterable[Table]:
    """Your own tables that ``messagedb_empty`` empties. Override it to return a MetaData, or a list of Tables."""
    return ()


@pytest.fixture
def messagedb_empty(messagedb_engine: Engine, messagedb_tables: MetaData | Iterable[Table]) -> None:
    """Empties the store and your own tables when the test starts. The stores use it; others can ask for it by name."""
    from sqlalchemy.exc import OperationalError

    from messagedb_sa.testing._emptying import empty

    try:
        empty(messagedb_engine, messagedb_tables)
    except OperationalError as error:
        pytest.fail(f"cannot empty the store, because an earlier test left a transaction open: end it\n{error.orig}")
    except TypeError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def messagedb_store(messagedb_engine: Engine, messagedb_empty: None, messagedb_types: MessageTypes | None) -> Store:
    """A Store that is empty when the test starts, with global positions from 1. Its writes are committed."""
    from messagedb_sa import Store

    return Store(messagedb_engine, types=messagedb_types)


@pytest.fixture
def messagedb_async_store(
    messagedb_url: str, messagedb_empty: None, messagedb_types: MessageTypes | None
) -> AsyncStore:
    """An AsyncStore on the same database as ``messagedb_store``, for tests on any event loop.

    It opens a connection for each call and closes it. The driver is psycopg if that is installed, otherwise asyncpg.
    """
    from sqlalchemy import NullPool, make_url

    from messagedb_sa import AsyncStore
    from messagedb_sa._drivers.urls import for_asynchronous_code

    url = for_asynchronous_code(make_url(messagedb_url))
    return AsyncStore.from_url(url, types=messagedb_types, poolclass=NullPool)
