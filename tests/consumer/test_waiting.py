"""How a consumer waits: each behaviour in threads and in tasks, and what a connection hears on every driver."""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic
from typing import Any, ClassVar

import pytest
from sqlalchemy import Connection, NullPool, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.util import await_only

from messagedb_sa import Store, install
from messagedb_sa._drivers.notifications import listen, listener_of, unlisten
from messagedb_sa.consumer._waiting import TaskWaiter, ThreadWaiter
from messagedb_sa.testing import temporary_database

from ..support import DRIVERS
from ..waits import HANG, awaited, wait_until

# In seconds. If nothing else ends such a wait, pytest's own limit for a test ends it, as a failure.
LONG = 3600.0


class Selector(selectors.DefaultSelector):
    """Tells when a long wait is about to begin. Threads and event loops wait by one of these."""

    waits = Event()
    # Which sockets signals are written to, by the long waits in the main thread.
    wakeup_fds: ClassVar[list[int]] = []

    def select(self, timeout: float | None = None) -> Any:
        # A driver may have timers of its own, of minutes.
        if timeout is not None and timeout > 100:
            if threading.current_thread() is threading.main_thread():
                self.wakeup_fds.append(signal.set_wakeup_fd(-1))
                signal.set_wakeup_fd(self.wakeup_fds[-1])
            self.waits.set()
        return super().select(timeout)


@pytest.fixture(autouse=True)
def waits_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selectors.DefaultSelector", Selector)


class Waiter:
    """ThreadWaiter or TaskWaiter with a connection; each call run to its end."""

    def __init__(self, driver: str, url: str) -> None:
        self.waiting: Any
        self._async_connection: AsyncConnection | None = None
        self._loop = asyncio.SelectorEventLoop(Selector())
        named = make_url(url).set(drivername=f"postgresql+{driver}")
        if driver in ("psycopg_async", "asyncpg"):
            self.waiting = TaskWaiter()
            async_engine = create_async_engine(named, poolclass=NullPool, isolation_level="AUTOCOMMIT")
            self._async_connection = self._loop.run_until_complete(async_engine.connect().start())
            assert self._async_connection.sync_connection is not None
            self.connection: Connection = self._async_connection.sync_connection
        else:
            self.waiting = ThreadWaiter()
            self.connection = create_engine(named, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect()

    def run(self, call: Callable[[Connection], Any]) -> Any:
        if self._async_connection is None:
            return call(self.connection)
        return self._loop.run_until_complete(self._async_connection.run_sync(call))

    def listen(self) -> None:
        """Until it is proven that it hears."""
        self.run(listen)
        own = listener_of(self.connection)
        assert own is not None
        while not own.take_proof():
            assert self.wait() == set()

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
        engine = create_engine(url, poolclass=NullPool)
        install.upgrade(engine, notify=True)
        with awaited(engine):
            yield url


@pytest.fixture
def writer(notifying_url: str) -> Store:
    return Store(create_engine(notifying_url, poolclass=NullPool))


@pytest.fixture(params=DRIVERS)
def listener(request: pytest.FixtureRequest, notifying_url: str) -> Iterator[Waiter]:
    """A connection that listens, once on each driver."""
    waiter = Waiter(request.param, notifying_url)
    waiter.listen()
    yield waiter
    waiter.close()


class InTasks:
    """TaskWaiter, looking like ThreadWaiter."""

    def __init__(self) -> None:
        self._waiting = TaskWaiter()
        self.wake, self.close = self._waiting.wake, self._waiting.close

    def wait(self, seconds: float) -> set[str]:
        loop = asyncio.SelectorEventLoop(Selector())
        try:
            return loop.run_until_complete(self._waiting.wait(seconds))
        finally:
            loop.close()


@pytest.fixture(params=[ThreadWaiter, InTasks])
def waiting(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Without a connection, in a thread and in a task."""
    waiting = request.param()
    yield waiting
    waiting.close()


@contextmanager
def meanwhile(call: Callable[[], object]) -> Iterator[None]:
    """Call it in another thread when this one waits."""
    called: list[bool] = []

    def wait_and_call() -> None:
        called.append(Selector.waits.wait(HANG))
        call()

    Selector.waits.clear()
    thread = Thread(target=wait_and_call)
    thread.start()
    yield
    # If this thread did not wait at all, the call must not wait for it.
    waited = Selector.waits.is_set()
    Selector.waits.set()
    thread.join()
    assert waited
    assert called == [True]


# ---- time, and being woken


def test_it_waits_as_long_as_it_is_told(waiting: Any) -> None:
    began = monotonic()
    assert waiting.wait(0.2) == set()
    assert monotonic() - began >= 0.19


@pytest.mark.parametrize("seconds", [0, -1])
def test_no_time_is_no_wait(waiting: Any, seconds: float) -> None:
    assert waiting.wait(seconds) == set()


def test_another_thread_wakes_it(waiting: Any) -> None:
    with meanwhile(waiting.wake):
        assert waiting.wait(LONG) == set()


def test_a_wake_before_the_wait_is_not_lost(waiting: Any) -> None:
    waiting.wake()
    assert waiting.wait(LONG) == set()


def test_many_wakes_are_one_even_more_than_its_buffer_holds(waiting: Any) -> None:
    while isinstance(waiting, ThreadWaiter) and select.select([], [waiting._waker], [], 0)[1]:
        waiting.wake()
    for _ in range(1000):
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
def test_a_signal_handler_wakes_it_at_whatever_moment_the_signal_comes(waiting: Any) -> None:
    handled: list[int] = []

    def handle(number: int, _: Any) -> None:
        handled.append(number)
        waiting.wake()

    Selector.wakeup_fds.clear()
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        # The signal comes just before the system call that waits, or during it.
        for _ in range(100):
            with meanwhile(lambda: os.kill(os.getpid(), signal.SIGUSR1)):
                assert waiting.wait(LONG) == set()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert handled == [signal.SIGUSR1] * 100
    # The moment before the system call is too short to be met for sure. Without such a socket the wait would go on.
    assert -1 not in Selector.wakeup_fds


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signals")
def test_a_signal_that_wakes_nobody_does_not_end_the_wait(waiting: Any) -> None:
    handled: list[int] = []
    woken: list[bool] = []

    def interrupt_and_wake() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_until(lambda: handled)
        # If the signal ended the wait, that would be seen by now.
        time.sleep(0.2)
        woken.append(True)
        waiting.wake()

    before = signal.signal(signal.SIGUSR1, lambda number, _: handled.append(number))
    try:
        with meanwhile(interrupt_and_wake):
            assert waiting.wait(LONG) == set()
            assert woken
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("fd_is_set", [True, False])
def test_the_wakeup_fd_of_an_application_is_left_alone(waiting: Any, fd_is_set: bool) -> None:
    receiver, sender = socket.socketpair()
    with receiver, sender:
        sender.setblocking(False)
        own = sender.fileno() if fd_is_set else -1
        before = signal.set_wakeup_fd(own)
        try:
            waiting.wait(0.01)
        finally:
            assert signal.set_wakeup_fd(before) == own


def test_overlapping_waits_of_one_event_loop_are_all_ended_by_signals() -> None:
    """Also those that go on after the wait that began first."""
    fds: list[int] = []

    def wakeup_fd() -> int:
        number = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(number)
        return number

    async def run() -> None:
        first, second = TaskWaiter(), TaskWaiter()
        tasks = [asyncio.create_task(each.wait(LONG)) for each in (first, second)]
        await asyncio.sleep(0)
        fds.append(wakeup_fd())
        for waiter, task in zip((first, second), tasks, strict=True):
            waiter.wake()
            await task
            fds.append(wakeup_fd())

    asyncio.run(run())
    assert fds[0] == fds[1] != -1
    assert fds[2] == -1


def test_waking_after_the_end_does_nothing(waiting: Any) -> None:
    waiting.close()
    waiting.wake()


def test_a_task_that_waits_can_be_cancelled() -> None:
    async def run() -> None:
        waiting = TaskWaiter()
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
        waiting = TaskWaiter()

        async def wake() -> None:
            waiting.wake()

        assert (await asyncio.gather(waiting.wait(LONG), wake()))[0] == set()

    asyncio.run(run())


# ---- a connection that listens


def nothing_is_heard(listener: Waiter) -> None:
    # PostgreSQL sends what there is along with the answer to any statement.
    listener.process()
    assert listener.wait(0) == set()


def test_a_write_ends_the_wait_and_names_its_category(listener: Waiter, writer: Store) -> None:
    with meanwhile(lambda: writer.write("account-1", "Opened", {})):
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
        nothing_is_heard(listener)
    assert listener.wait() == {"account"}
    nothing_is_heard(listener)


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

    with meanwhile(traffic):
        assert listener.wait() == {"account"}


def test_a_connection_that_begins_to_listen_wakes_no_other(listener: Waiter, writer: Store) -> None:
    """It notifies itself on the same channel."""

    def traffic() -> None:
        with writer.engine.connect() as connection:
            listen(connection.execution_options(isolation_level="AUTOCOMMIT"))
            own = listener_of(connection)
            assert own is not None
            assert own.received() == set()
            assert own.take_proof()
        writer.write("account-1", "Opened", {})

    with meanwhile(traffic):
        assert listener.wait() == {"account"}


def test_it_is_woken_while_it_listens(listener: Waiter) -> None:
    with meanwhile(listener.waiting.wake):
        assert listener.wait() == set()
    listener.waiting.wake()
    assert listener.wait() == set()


def test_the_connection_can_be_used_between_waits(listener: Waiter, writer: Store) -> None:
    for _ in range(3):
        with meanwhile(lambda: writer.write("account-1", "Opened", {})):
            assert listener.wait() == {"account"}
        assert listener.process() > 0


def test_listening_twice_is_as_good_as_once(listener: Waiter, writer: Store) -> None:
    listener.run(listen)
    with meanwhile(lambda: writer.write("account-1", "Opened", {})):
        assert listener.wait() == {"account"}
    listener.run(unlisten)
    writer.write("account-1", "Closed", {})
    nothing_is_heard(listener)


def test_a_connection_can_stop_listening_and_begin_again(listener: Waiter, writer: Store) -> None:
    writer.write("order-1", "Placed", {})
    listener.run(unlisten)
    listener.run(unlisten)
    writer.write("account-1", "Opened", {})
    nothing_is_heard(listener)
    listener.listen()
    assert listener.wait(0) == set()
    with meanwhile(lambda: writer.write("account-1", "Closed", {})):
        assert listener.wait() == {"account"}


def test_a_connection_that_does_not_listen_only_passes_the_time(notifying_url: str, writer: Store) -> None:
    for driver in DRIVERS:
        waiter = Waiter(driver, notifying_url)
        writer.write("account-1", "Opened", {})
        nothing_is_heard(waiter)
        began = monotonic()
        assert waiter.wait(0.1) == set()
        assert monotonic() - began >= 0.09
        waiter.close()


# ---- a connection that is lost


def terminate(writer: Store, process: int) -> None:
    with writer.engine.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:process, 60000)"), {"process": process})


def test_a_connection_that_is_lost_during_the_wait_is_sqlalchemys_error(listener: Waiter, writer: Store) -> None:
    process = listener.process()
    with meanwhile(lambda: terminate(writer, process)), pytest.raises(DBAPIError) as raised:
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
    listener.listen()
    with meanwhile(lambda: writer.write("account-1", "Opened", {})):
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
