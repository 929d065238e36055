"""pytest fixtures: a PostgreSQL for the run, a database with the store in it, an empty Store for each test.

The fixtures import what they need when they are used: a run that uses none of them pays nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from messagedb_sa import Store


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("messagedb", "Message DB").addoption(
        "--messagedb-url",
        metavar="URL",
        help="a PostgreSQL server on which the tests may create databases, in place of a throwaway one (default: the "
        "environment's MESSAGEDB_TEST_URL). The URL's own database is not touched.",
    )


@pytest.fixture(scope="session")
def messagedb_server_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a server for the run (of each worker, under pytest-xdist), whose databases are free for tests.

    The one of --messagedb-url or MESSAGEDB_TEST_URL; without them a throwaway server, gone after the run.
    """
    url = request.config.getoption("--messagedb-url") or os.environ.get("MESSAGEDB_TEST_URL")
    if url:
        yield url
    else:
        from messagedb_sa.postgres import temporary_server

        with temporary_server() as server_url:
            yield server_url


@pytest.fixture(scope="session")
def messagedb_url(messagedb_server_url: str) -> Iterator[str]:
    """The URL of a database with the store installed: one for the run, dropped after it."""
    from sqlalchemy import NullPool, create_engine

    from messagedb_sa import install
    from messagedb_sa.postgres import temporary_database

    with temporary_database(messagedb_server_url) as url:
        install.upgrade(create_engine(url, poolclass=NullPool))
        yield url


@pytest.fixture(scope="session")
def messagedb_engine(messagedb_url: str) -> Iterator[Engine]:
    """An Engine on the database of ``messagedb_url``."""
    from sqlalchemy import create_engine

    engine = create_engine(messagedb_url)
    yield engine
    engine.dispose()


@pytest.fixture
def messagedb_store(messagedb_engine: Engine) -> Store:
    """A Store that is empty when the test starts, with global positions from 1. It commits, as any Store does."""
    from sqlalchemy import text
    from sqlalchemy.exc import OperationalError

    from messagedb_sa import Store

    try:
        with messagedb_engine.begin() as connection:
            connection.execute(text("SET LOCAL lock_timeout = '5s'"))
            connection.execute(text("TRUNCATE message_store.messages RESTART IDENTITY"))
    except OperationalError as error:
        pytest.fail(f"the store cannot be emptied: a test before this one left a transaction open\n{error.orig}")
    return Store(messagedb_engine)
