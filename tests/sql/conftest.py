"""Fixtures of the tests in SQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, NullPool, create_engine

from messagedb_sa import Store, install

from ..migrations.support import install_as_upstream_does
from ..support import as_role
from .official import empty_database


@pytest.fixture
def connection(messagedb_engine: Engine, messagedb_store: Store) -> Iterator[Connection]:
    """A new session, since settings and compiled functions outlive a transaction; nothing is committed by itself."""
    with create_engine(messagedb_engine.url, poolclass=NullPool).connect() as connection:
        yield connection


@pytest.fixture
def other(messagedb_engine: Engine, messagedb_store: Store) -> Iterator[Connection]:
    """Another session. If a lock is taken, it waits 10 ms and then fails; if it is free, it does not wait."""
    short_wait = {"options": "-c lock_timeout=10ms"}
    with create_engine(messagedb_engine.url, poolclass=NullPool, connect_args=short_wait).connect() as connection:
        yield connection


@pytest.fixture
def as_message_store(messagedb_engine: Engine, messagedb_store: Store) -> Iterator[Connection]:
    """A session of the role message_store, logged in; its transaction is rolled back."""
    with as_role(messagedb_engine, "message_store").connect() as connection:
        yield connection


@pytest.fixture(scope="module")
def official_sql(releases: Path) -> Path:
    return releases / "1.3.1" / "database"


@pytest.fixture(scope="module")
def official(messagedb_server_url: str, official_sql: Path) -> Iterator[Engine]:
    """A database with the official Message DB 1.3.1."""
    with empty_database(messagedb_server_url) as engine:
        install_as_upstream_does(engine, official_sql)
        yield engine


@pytest.fixture(scope="module")
def ours(messagedb_server_url: str, official_sql: Path) -> Iterator[Engine]:
    """A database with our install."""
    with empty_database(messagedb_server_url) as engine:
        install.upgrade(engine)
        yield engine
