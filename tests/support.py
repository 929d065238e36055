"""What tests share besides fixtures: engines and stores on each driver, servers' programs, an application's table."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar

import pytest
from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    NullPool,
    Table,
    create_engine,
    event,
    make_url,
    text,
)
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase

from messagedb_sa import AsyncConsumer, AsyncStore, Consumer, Metrics, Store, Tracing
from messagedb_sa.store._json_codec import FASTEST
from messagedb_sa.testing import temporary_database
from messagedb_sa.testing._programs import find_programs

T = TypeVar("T")
REPOSITORY = Path(__file__).parents[1]
HEAD = "messagedb_0005"
# Whether long series of random tests run in full, as make test-all has it, or as short ones, as make test has it.
LONG = os.environ.get("MESSAGEDB_LONG") == "1"
DRIVERS = ["psycopg2", "psycopg", "psycopg_async", "asyncpg"]


def examples(number: int) -> int:
    """How many examples Hypothesis is to try: so many in a long series, a third in a short one."""
    return number if LONG else number // 3


def as_role(engine: Engine, role: str, **options: Any) -> Engine:
    """An engine on the same database, logged in as another role."""
    url = make_url(engine.url).set(username=role)
    return create_engine(url, **{"poolclass": NullPool, **options})


def numbers(messages: Any) -> list[Any]:
    """The numbers that tests write as data, in the order of the messages."""
    return [message.data["n"] for message in messages]


NESTED = "[" * 12_000 + "]" * 12_000
"""JSON that PostgreSQL stores and Python's decoders refuse, except those of the newest versions."""


def _is_refused(text: str) -> bool:
    try:
        FASTEST.decode(text)
    except RecursionError:
        return True
    return False


nested_is_refused = pytest.mark.skipif(not _is_refused(NESTED), reason="this Python decodes all that PostgreSQL stores")


def insert(
    store: Store,
    stream: str,
    position: int,
    type_: str,
    data: str | None,
    time: str = "now()",
    metadata: str | None = None,
) -> None:
    """A message as another client can write it: data and metadata are JSON text, ``time`` is an SQL expression."""
    query = text(
        "INSERT INTO message_store.messages (stream_name, position, type, data, metadata, time)"
        f" VALUES (:stream, :position, :type, CAST(:data AS jsonb), CAST(:metadata AS jsonb), {time})"
    )
    with store.engine.begin() as connection:
        of = {"stream": stream, "position": position, "type": type_, "data": data, "metadata": metadata}
        connection.execute(query, of)


@contextmanager
def store_on(
    driver: str,
    url: str | URL,
    *,
    tracing: Tracing | None = None,
    metrics: Metrics | None = None,
    **engine_options: Any,
) -> Iterator[Store]:
    """A store on an engine with this driver; an asynchronous one looks like the others."""
    with_driver = make_url(url).set(drivername=f"postgresql+{driver}")
    if driver in ("psycopg2", "psycopg"):
        engine = create_engine(with_driver, **engine_options)
        yield Store(engine, tracing=tracing, metrics=metrics)
        engine.dispose()
        return
    loop = asyncio.new_event_loop()
    async_engine = create_async_engine(with_driver, **engine_options)
    store: Any = Awaited(AsyncStore(async_engine, tracing=tracing, metrics=metrics), loop)
    yield store
    loop.run_until_complete(async_engine.dispose())
    # As asyncio.run does: a driver may take its time to give up a connection.
    if left := asyncio.all_tasks(loop):
        for each in left:
            each.cancel()
        loop.run_until_complete(asyncio.wait(left))
    loop.close()


def on(driver: str, url: str, body: Callable[[Connection], T]) -> T:
    """Run the body in a transaction of this driver's, and commit it."""
    with_driver = make_url(url).set(drivername=f"postgresql+{driver}")
    if driver in ("psycopg2", "psycopg"):
        engine = create_engine(with_driver)
        try:
            with engine.begin() as connection:
                return body(connection)
        finally:
            engine.dispose()

    async def awaited() -> T:
        async_engine = create_async_engine(with_driver)
        try:
            async with async_engine.begin() as connection:
                return await connection.run_sync(body)
        finally:
            await async_engine.dispose()

    return asyncio.run(awaited())


def consumer_on(store: Store, category: str, handlers: Any, *arguments: Any, **options: Any) -> Consumer:
    """A consumer of the store's kind; an asynchronous one looks like the other."""
    make: Any = store.consumer if isinstance(store, Awaited) else lambda *of, **named: Consumer(store, *of, **named)
    consumer: Consumer = make(category, handlers, *arguments, **options)
    return consumer


@contextmanager
def clocks_stopped(at: float) -> Iterator[None]:
    """For the block, Python's clocks stand still, as libraries for tests make them: also where a module of ours, or of
    asyncio's, has one of them as an attribute."""
    stopped = {
        name: (lambda value: lambda: value)(int(at * 10**9) if name.endswith("_ns") else at)
        for name in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns")
    }
    known = {id(getattr(time, name)): fake for name, fake in stopped.items()}
    with pytest.MonkeyPatch.context() as patched:
        for name, module in list(sys.modules.items()):
            if module is time or name.partition(".")[0] in ("messagedb_sa", "asyncio"):
                for attribute, value in list(vars(module).items()):
                    if id(value) in known:
                        patched.setattr(module, attribute, known[id(value)])
        yield


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
        self.state = consumer.state

    def run(self, **options: Any) -> None:
        self._loop.run_until_complete(self._consumer.run(**options))

    def replay(self, *arguments: Any) -> int:
        return self._loop.run_until_complete(self._consumer.replay(*arguments))

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


def fork(body: Callable[[], object]) -> int:
    """Fork a child process that calls ``body`` and ends, with exit code 0 if it returns; returns its process id."""
    with warnings.catch_warnings():
        # About other threads, which the tests have on purpose.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        # Whatever happens, it must not go on as if it were the process that forked.
        try:
            body()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - it is printed
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def statements_of(engine: Engine) -> list[str]:
    """The statements that it sends from now on. It goes the way of an engine that is observed for good."""
    sent: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    return sent


def free_port() -> int:
    """A port for a server that is started later. Not of those that the system hands out by itself: until the server is
    there, another process could get it."""
    while True:
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


@contextmanager
def restored(url: str, server_url: str) -> Iterator[str]:
    """A database restored from a dump of the other one. Skips the test where there is no pg_dump."""
    programs = find_programs()
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


host = MetaData()


orders = Table("orders", host, Column("number", Integer, primary_key=True))


class Base(DeclarativeBase):
    metadata = host


class Order(Base):
    __table__ = orders
