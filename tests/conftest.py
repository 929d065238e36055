"""Fixtures of our own tests. The server, the database and the Store are the plugin's, used as any user would."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import Engine, NullPool, create_engine, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from messagedb_sa import AsyncConsumer, AsyncStore, Consumer, Store, Tracing
from messagedb_sa.postgres import _find_programs, temporary_database

pytest_plugins = ["pytester"]

HEAD = "messagedb_0003"

# Whoever runs the tests in the background may have these ignored, and programs that we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# No test depends on timing, whatever else the machine does.
settings.register_profile(
    "messagedb", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("messagedb")


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


@contextmanager
def restored(url: str, server_url: str) -> Iterator[str]:
    """A database restored from a dump of the other one. Skips the test where there is no pg_dump."""
    programs = _find_programs()
    if not (programs / "pg_dump").exists():
        pytest.skip("these server programs come without pg_dump")

    def run(program: str, url: str, *arguments: str, script: str | None = None) -> str:
        at = make_url(url)
        place = ["-h", str(at.query["host"]), "-p", str(at.query["port"]), "-U", "postgres", "-d", str(at.database)]
        command = [str(programs / program), *place, *arguments]
        done = subprocess.run(command, input=script, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with temporary_database(server_url) as copy:
        run("psql", copy, "-v", "ON_ERROR_STOP=1", script=run("pg_dump", url))
        yield copy


def numbers(messages: Any) -> list[Any]:
    """The numbers that tests write as data, in the order of the messages."""
    return [message.data["n"] for message in messages]


def fetched_once(request: pytest.FixtureRequest, name: str, command: Callable[[Path], list[str]]) -> Path:
    """A folder in pytest's cache that the command, told where, has filled; skips the test where it cannot.

    Filled elsewhere and then renamed, for several workers may want it at the same moment.
    """
    cache: Path = request.config.cache.mkdir("messagedb-fetched")
    if not (cache / name).exists():
        folder = Path(mkdtemp(dir=cache))
        done = subprocess.run(command(folder), capture_output=True, text=True)
        if done.returncode != 0:
            shutil.rmtree(folder)
            pytest.skip(f"{name} cannot be fetched: {done.stderr.strip()}")
        try:
            folder.rename(cache / name)
        except OSError:
            shutil.rmtree(folder)
    return cache / name


DRIVERS = ["psycopg2", "psycopg", "psycopg_async", "asyncpg"]


class Awaited:
    """An AsyncStore with the methods of a Store, each run to its end on an event loop: one test serves both."""

    def __init__(self, store: AsyncStore, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._loop = loop
        self.engine = store.engine.sync_engine

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._store, name)
        if name.startswith("iter_"):
            return lambda *args, **named: self._drained(method(*args, **named))
        return lambda *args, **named: self._loop.run_until_complete(method(*args, **named))

    def consumer(self, category: str, handlers: Any, *arguments: Any, **options: Any) -> AwaitedConsumer:
        return AwaitedConsumer(
            AsyncConsumer(self._store, category, awaited(handlers), *arguments, **options), self._loop
        )

    def _drained(self, messages: Any) -> Iterator[Any]:
        while True:
            try:
                yield self._loop.run_until_complete(anext(messages))
            except StopAsyncIteration:
                return


class AwaitedConsumer:
    """An AsyncConsumer with the methods of a Consumer."""

    def __init__(self, consumer: AsyncConsumer, loop: asyncio.AbstractEventLoop) -> None:
        self._consumer = consumer
        self._loop = loop
        self.stop = consumer.stop

    def run(self, **options: Any) -> None:
        self._loop.run_until_complete(self._consumer.run(**options))

    def run_until_caught_up(self, **options: Any) -> int:
        return self._loop.run_until_complete(self._consumer.run_until_caught_up(**options))


def awaited(handlers: Any) -> Any:
    """The handlers as coroutine functions, which let others have a turn before they are done."""
    if isinstance(handlers, dict):
        return {message_type: awaited(handler) for message_type, handler in handlers.items()}

    async def handle(*arguments: Any) -> None:
        await asyncio.sleep(0)
        handlers(*arguments)

    return handle


def consumer_on(store: Store, category: str, handlers: Any, *arguments: Any, **options: Any) -> Consumer:
    """A consumer of the store's kind; an asynchronous one looks like the other."""
    make: Any = store.consumer if isinstance(store, Awaited) else lambda *of, **named: Consumer(store, *of, **named)
    consumer: Consumer = make(category, handlers, *arguments, **options)
    return consumer


@contextmanager
def store_on(driver: str, url: str, *, tracing: Tracing | None = None, **engine_options: Any) -> Iterator[Store]:
    """A store on an engine with this driver; an asynchronous one looks like the others."""
    with_driver = make_url(url).set(drivername=f"postgresql+{driver}")
    if driver in ("psycopg2", "psycopg"):
        engine = create_engine(with_driver, **engine_options)
        yield Store(engine, tracing=tracing)
        engine.dispose()
        return
    loop = asyncio.new_event_loop()
    async_engine = create_async_engine(with_driver, **engine_options)
    store: Any = Awaited(AsyncStore(async_engine, tracing=tracing), loop)
    yield store
    loop.run_until_complete(async_engine.dispose())
    loop.close()


@pytest.fixture(params=DRIVERS)
def each_store(request: pytest.FixtureRequest, messagedb_store: Store, messagedb_url: str) -> Iterator[Store]:
    """An empty store, once on each driver."""
    with store_on(request.param, messagedb_url) as store:
        yield store
