"""Fixtures of our own tests. The server, the database and the Store are the plugin's, used as any user would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, make_url, text

from messagedb_sa import Store
from messagedb_sa.postgres import temporary_database

pytest_plugins = ["pytester"]


@pytest.fixture
def store(messagedb_store: Store) -> Store:
    return messagedb_store


@pytest.fixture
def empty_database(messagedb_server_url: str) -> Iterator[Engine]:
    """A database without a store, for tests that install one."""
    with temporary_database(messagedb_server_url) as url:
        engine = create_engine(url, poolclass=NullPool)
        yield engine
        engine.dispose()


@pytest.fixture
def login(messagedb_server_url: str) -> Iterator[Callable[..., str]]:
    """Makes roles that can log in, for the length of a test; gives their names."""
    admin = create_engine(messagedb_server_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    made: list[str] = []

    def make(name: str, options: str = "") -> str:
        with admin.connect() as connection:
            connection.execute(text(f"CREATE ROLE {name} LOGIN {options}"))
        made.append(name)
        return name

    yield make
    with admin.connect() as connection:
        for name in made:
            connection.execute(text(f"DROP ROLE {name}"))


@pytest.fixture
def without_role(messagedb_server_url: str) -> Iterator[None]:
    """A server on which the role message_store does not exist: renamed away for the length of a test."""
    admin = create_engine(messagedb_server_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        renamed = connection.scalar(text("SELECT to_regrole('message_store') IS NOT NULL"))
        if renamed:
            connection.execute(text("ALTER ROLE message_store RENAME TO message_store_away"))
        yield
        connection.execute(text("DROP ROLE IF EXISTS message_store"))
        if renamed:
            connection.execute(text("ALTER ROLE message_store_away RENAME TO message_store"))


def as_role(engine: Engine, role: str, **options: Any) -> Engine:
    """An engine on the same database, logged in as another role."""
    url = make_url(engine.url).set(username=role)
    return create_engine(url, **{"poolclass": NullPool, **options})
