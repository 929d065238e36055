"""How a consumer waits: each behaviour in threads and in tasks, and what a connection hears on every driver."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Timer
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import Connection, NullPool, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.util import await_only

from messagedb_sa import Store, install
from messagedb_sa.postgres import temporary_database
from messagedb_sa.waiting import AsyncWaiting, Waiting, listen, unlisten

from .conftest import DRIVERS

# A wait that only its end can end would fail by pytest's own limit for a test.
LONG = 600.0


class Waiter:
    """Waiting or AsyncWaiting with a connection; each call run to its end."""

    def __init__(self, driver: str, url: str) -> None:
        self.waiting: Any
        self._async_connection: AsyncConnection | None = None
        self._loop = asyncio.new_event_loop()
        named = make_url(url).set(drivername=f"postgresql+{driver}")
        if driver in ("psycopg_async", "asyncpg"):
            self.waiting = AsyncWaiting()
            async_engine = create_async_engine(named, poolclass=NullPool, isolation_level="AUTOCOMMIT")
            self._async_connection = self._loop.run_until_complete(async_engine.connect().start())
            assert self._async_connection.sync_connection is not None
            self.connection: Connection = self._async_connection.sync_connection
        else:
            self.waiting = Waiting()
            self.connection = create_engine(named, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect()

    def run(self, call: Callable[[Connection], Any]) -> Any:
        if self._async_connection is None:
            return call(self.connection)
        return self._loop.run_until_complete(self._async_connection.run_sync(call))

    def wait(self, seconds: float = LONG) -> Any:
        """As a consumer does: from synchronous code, in SQLAlchemy's greenlet where the driver is asynchronous."""

        def waited(connection: Connection) -> Any:
            heard = self.waiting.wait(seconds, connection)
            return heard if isinstance(heard, set) else await_only(heard)

        return self.run(waited)

    def process(self) -> int:
        number: int = self.run(lambda connection: connection.scalar(text("SELECT pg_backend_pid()")))
        return number

    def close(self) -> None:
        if self._async_connection is not None:
            self._loop.run_until_complete(self._async_connection.close())
        else:
            self.connection.close()
        self.waiting.close()
        self._loop.close()


@pytest.fixture(scope="module")
def notifying_url(messagedb_server_url: str) -> Iterator[str]:
    with temporary_database(messagedb_server_url) as url:
        install.upgrade(create_engine(url, poolclass=NullPool), notify=True)
        yield url


@pytest.fixture
def writer(notifying_url: str) -> Store:
    return Store(create_engine(notifying_url, poolclass=NullPool))


@pytest.fixture(params=DRIVERS)
def listener(request: pytest.FixtureRequest, notifying_url: str) -> Iterator[Waiter]:
    """A connection that listens, once on each driver."""
    waiter = Waiter(request.param, notifying_url)
    waiter.run(listen)
    yield waiter
    waiter.close()


class InTasks:
    """AsyncWaiting, looking like Waiting."""

    def __init__(self) -> None:
        self._waiting = AsyncWaiting()
        self.wake, self.close = self._waiting.wake, self._waiting.close

    def wait(self, seconds: float) -> set[str]:
        return asyncio.run(self._waiting.wait(seconds))


@pytest.fixture(params=[Waiting, InTasks])
def waiting(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Without a connection, in a thread and in a task."""
    waiting = request.param()
    yield waiting
    waiting.close()


@contextmanager
def soon(call: Callable[[], object]) -> Iterator[None]:
    """Call it in another thread, most likely when this one waits already; right either way."""
    timer = Timer(0.05, call)
    timer.start()
    yield
    timer.join()


# ---- time, and being woken


def test_it_waits_as_long_as_it_is_told(waiting: Any) -> None:
    began = monotonic()
    assert waiting.wait(0.2) == set()
    assert monotonic() - began >= 0.19


@pytest.mark.parametrize("seconds", [0, -1])
def test_no_time_is_no_wait(waiting: Any, seconds: float) -> None:
    assert waiting.wait(seconds) == set()


def test_another_thread_wakes_it(waiting: Any) -> None:
    with soon(waiting.wake):
        assert waiting.wait(LONG) == set()


def test_a_wake_before_the_wait_is_not_lost(waiting: Any) -> None:
    waiting.wake()
    assert waiting.wait(LONG) == set()


def test_many_wakes_are_one(waiting: Any) -> None:
    for _ in range(500_000 if isinstance(waiting, Waiting) else 1000):
        waiting.wake()
    assert waiting.wait(LONG) == set()
    began = monotonic()
    waiting.wait(0.2)
    assert monotonic() - began >= 0.19


def test_every_wake_ends_a_wait_however_the_two_meet(waiting: Any) -> None:
    with ThreadPoolExecutor(1) as threads:
        for _ in range(300):
            woken = threads.submit(waiting.wake)
            waiting.wait(LONG)
            woken.result()


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signals")
def test_a_signal_handler_wakes_it(waiting: Any) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: waiting.wake())
    try:
        with soon(lambda: os.kill(os.getpid(), signal.SIGUSR1)):
            assert waiting.wait(LONG) == set()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_waking_after_the_end_does_nothing(waiting: Any) -> None:
    waiting.close()
    waiting.wake()


def test_a_task_that_waits_can_be_cancelled() -> None:
    async def run() -> None:
        waiting = AsyncWaiting()
        task = asyncio.create_task(waiting.wait(LONG))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        waiting.wake()
        assert await waiting.wait(LONG) == set()

    asyncio.run(run())


def test_other_tasks_run_while_one_waits() -> None:
    async def run() -> None:
        waiting = AsyncWaiting()

        async def wake() -> None:
            waiting.wake()

        assert (await asyncio.gather(waiting.wait(LONG), wake()))[0] == set()

    asyncio.run(run())


# ---- a connection that listens


def test_a_write_ends_the_wait_and_names_its_category(listener: Waiter, writer: Store) -> None:
    with soon(lambda: writer.write("account-1", "Opened", {})):
        assert listener.wait() == {"account"}


def test_what_was_heard_since_the_last_wait_is_found_at_once(listener: Waiter, writer: Store) -> None:
    for stream_name in ("account-1", "order-1", "account-2", "конто-1"):
        writer.write(stream_name, "Opened", {})
    heard: set[str] = set()
    while heard != {"account", "order", "конто"}:
        heard |= listener.wait()
    assert listener.wait(0) == set()


def test_what_the_driver_read_along_with_an_answer_is_found_all_at_once(listener: Waiter, writer: Store) -> None:
    for stream_name in ("account-1", "order-1"):
        writer.write(stream_name, "Opened", {})
    # PostgreSQL sends what there is along with the answer to any statement.
    listener.process()
    assert listener.wait() == {"account", "order"}


def test_a_batch_to_several_streams_is_heard_of_at_once(listener: Waiter, writer: Store) -> None:
    writer.write_streams([("account-1", [("T", {})] * 3), ("order-1", [("T", {})]), ("account-2", [("T", {})])])
    listener.process()
    assert listener.wait() == {"account", "order"}


def test_a_category_without_a_name_is_heard_of(listener: Waiter, writer: Store) -> None:
    writer.write("-1", "T", {})
    assert listener.wait() == {""}


def test_a_transaction_is_heard_of_once_it_commits(listener: Waiter, writer: Store) -> None:
    with writer.engine.begin() as connection:
        Store(connection).write("account-1", "Opened", {})
        Store(connection).write("account-2", "Opened", {})
        assert listener.wait(0.2) == set()
    assert listener.wait() == {"account"}
    assert listener.wait(0.2) == set()


def test_it_waits_its_time_where_nothing_is_heard(listener: Waiter) -> None:
    began = monotonic()
    assert listener.wait(0.2) == set()
    assert monotonic() - began >= 0.19


def test_other_channels_and_other_traffic_do_not_end_it(listener: Waiter, writer: Store) -> None:
    listener.run(lambda connection: connection.exec_driver_sql("LISTEN others"))

    def traffic() -> None:
        with writer.engine.begin() as connection:
            connection.execute(text("SELECT pg_notify('others', 'account')"))
        writer.write("account-1", "Opened", {})

    with soon(traffic):
        assert listener.wait() == {"account"}


def test_it_is_woken_while_it_listens(listener: Waiter) -> None:
    with soon(listener.waiting.wake):
        assert listener.wait() == set()
    listener.waiting.wake()
    assert listener.wait() == set()


def test_the_connection_can_be_used_between_waits(listener: Waiter, writer: Store) -> None:
    for _ in range(3):
        with soon(lambda: writer.write("account-1", "Opened", {})):
            assert listener.wait() == {"account"}
        assert listener.process() > 0


def test_listening_twice_is_as_good_as_once(listener: Waiter, writer: Store) -> None:
    listener.run(listen)
    with soon(lambda: writer.write("account-1", "Opened", {})):
        assert listener.wait() == {"account"}
    listener.run(unlisten)
    writer.write("account-1", "Closed", {})
    assert listener.wait(0.2) == set()


def test_a_connection_can_stop_listening_and_begin_again(listener: Waiter, writer: Store) -> None:
    writer.write("order-1", "Placed", {})
    listener.run(unlisten)
    listener.run(unlisten)
    writer.write("account-1", "Opened", {})
    assert listener.wait(0.2) == set()
    listener.run(listen)
    assert listener.wait(0) == set()
    with soon(lambda: writer.write("account-1", "Closed", {})):
        assert listener.wait() == {"account"}


def test_a_connection_that_does_not_listen_only_passes_the_time(notifying_url: str, writer: Store) -> None:
    for driver in DRIVERS:
        waiter = Waiter(driver, notifying_url)
        with soon(lambda: writer.write("account-1", "Opened", {})):
            assert waiter.wait(0.2) == set()
        waiter.close()


# ---- a connection that is lost


def terminate(writer: Store, process: int) -> None:
    with writer.engine.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:process, 60000)"), {"process": process})


def test_a_connection_that_is_lost_during_the_wait_is_sqlalchemys_error(listener: Waiter, writer: Store) -> None:
    process = listener.process()
    with soon(lambda: terminate(writer, process)), pytest.raises(DBAPIError) as raised:
        listener.wait()
    assert raised.value.connection_invalidated
    assert listener.connection.invalidated


def test_a_connection_that_was_lost_before_the_wait_is_too(listener: Waiter, writer: Store) -> None:
    terminate(writer, listener.process())
    with pytest.raises(DBAPIError) as raised:
        listener.wait()
    assert raised.value.connection_invalidated


def test_a_lost_connection_can_listen_again(listener: Waiter, writer: Store) -> None:
    terminate(writer, listener.process())
    with pytest.raises(DBAPIError):
        listener.wait()
    listener.run(unlisten)
    listener.run(lambda connection: connection.rollback())
    listener.run(listen)
    with soon(lambda: writer.write("account-1", "Opened", {})):
        assert listener.wait() == {"account"}


def test_what_was_heard_before_the_connection_was_lost_does_not_hide_that(listener: Waiter, writer: Store) -> None:
    writer.write("account-1", "Opened", {})
    terminate(writer, listener.process())
    heard: list[set[str]] = []
    with pytest.raises(DBAPIError):
        wait_for_ever(listener, heard)
    assert len(heard) < 3


def wait_for_ever(listener: Waiter, heard: list[set[str]]) -> None:
    while True:
        heard.append(listener.wait())
