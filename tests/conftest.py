"""Fixtures of our own tests. The server, the database and the Store are the plugin's, used as any user would."""

from __future__ import annotations

import importlib
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import Engine, NullPool, create_engine, text

from messagedb_sa import MessageTypes, Store, install
from messagedb_sa.testing import temporary_database

from .migrations.support import RELEASES
from .support import DRIVERS, fetched_once, store_on

pytest_plugins = ["pytester"]

# Whoever runs the tests in the background may have these ignored, and programs that we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# No test depends on timing, whatever else the machine does.
settings.register_profile(
    "messagedb", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("messagedb")


@pytest.fixture
def store(messagedb_store: Store, messagedb_types: MessageTypes | None) -> Store:
    # On the connections of the engine that all tests share, but not with its listeners: one that a test adds would send
    # the statements of all later tests the way of an observed engine.
    return Store(messagedb_store.engine.execution_options(), types=messagedb_types)


@pytest.fixture
def empty_database(messagedb_server_url: str) -> Iterator[Engine]:
    """A database without a store, for tests that install one."""
    with temporary_database(messagedb_server_url) as url:
        engine = create_engine(url, poolclass=NullPool)
        yield engine
        engine.dispose()


@pytest.fixture(scope="session")
def target_engine(messagedb_server_url: str) -> Iterator[Engine]:
    with temporary_database(messagedb_server_url) as url:
        engine = create_engine(url, poolclass=NullPool)
        install.upgrade(engine)
        yield engine


@pytest.fixture
def target(target_engine: Engine) -> Store:
    """An empty store in another database."""
    with target_engine.begin() as connection:
        for table in ("messages", "consumer_positions"):
            connection.execute(text(f"TRUNCATE message_store.{table} RESTART IDENTITY"))
    return Store(target_engine)


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


@pytest.fixture(params=DRIVERS)
def each_store(request: pytest.FixtureRequest, messagedb_store: Store, messagedb_url: str) -> Iterator[Store]:
    """An empty store, once on each driver."""
    with store_on(request.param, messagedb_url) as store:
        yield store


@pytest.fixture(scope="session")
def releases(request: pytest.FixtureRequest) -> Path:
    """A folder with the SQL files of each release, fetched once."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    quietly = ["--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=0", "--fetch-timeout=20000"]
    aliases = [f"{release}@npm:@eventide/message-db@{release}" for release in RELEASES]
    fetched = fetched_once(
        request, "message-db", lambda folder: [npm, "install", *quietly, "--prefix", str(folder), *aliases]
    )
    return fetched / "node_modules"


@pytest.fixture(scope="module")
def client(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The module message_db.client of message-db-py, fetched once into pytest's cache, since we do not depend on it."""
    # Without what it depends on: it asks for psycopg2, which needs a compiler, and takes psycopg2-binary as well.
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-requires-python"]
    wanted = "message-db-py==0.3.5"
    folder = fetched_once(request, "message-db-py", lambda folder: [*install, "--target", str(folder), wanted])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("message_db.client")
