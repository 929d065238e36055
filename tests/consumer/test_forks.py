"""A process that is forked while a consumer exists, or runs."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event, select, text

from messagedb_sa import Consumer, Message, MessageDBError, Store, _forks, functions, install
from messagedb_sa.store._gc import uncollected

from ..support import DRIVERS, consumer_on, exit_code, fork, numbers, orders, store_on
from ..waits import HANG, wait_until
from .support import database_time, is_waiting, last_position, order_numbers, positions, running, write

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="has no fork")
SYNCHRONOUS = ["psycopg2", "psycopg"]


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_child_handles_signals_as_if_no_consumer_ran(
    store: Store, messagedb_url: str, driver: str, number: signal.Signals
) -> None:
    write(store, 3)
    before = signal.getsignal(number)
    during: list[Any] = []
    exit_codes: list[int] = []

    def be_signalled() -> None:
        assert signal.getsignal(number) is before
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    def handle(message: Message) -> None:
        during.append(signal.getsignal(number))
        exit_codes.append(exit_code(fork(be_signalled)))

    with store_on(driver, messagedb_url) as each:
        assert consumer_on(each, "account", handle, "mailer").run_until_caught_up() == 3
    assert before not in during
    assert exit_codes == [-number] * 3
    assert signal.getsignal(number) is before


def wait_for_ever(begun: Any) -> None:
    begun.set()
    threading.Event().wait()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_terminate_ends_a_child_of_multiprocessing(store: Store) -> None:
    write(store, 1)
    context = multiprocessing.get_context("fork")
    exit_codes: list[int | None] = []

    def handle(message: Message) -> None:
        begun = context.Event()
        process = context.Process(target=wait_for_ever, args=[begun])
        process.start()
        assert begun.wait(HANG)
        process.terminate()
        process.join(HANG)
        exit_codes.append(process.exitcode)

    Consumer(store, "account", handle, "mailer").run_until_caught_up()
    assert exit_codes == [-signal.SIGTERM]


def test_a_signal_that_comes_at_once_ends_the_child_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it has let go of its parent's consumers."""
    write(store, 1)
    exit_codes: list[int] = []

    def handle(message: Message) -> None:
        monkeypatch.setattr(_forks, "_actions", {})
        exit_codes.append(exit_code(fork(lambda: signal.raise_signal(signal.SIGTERM))))
        monkeypatch.undo()

    Consumer(store, "account", handle, "mailer").run_until_caught_up()
    assert exit_codes == [-signal.SIGTERM]


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_signal_of_a_child_does_not_reach_the_parents_waits(store: Store, messagedb_url: str, driver: str) -> None:
    children: list[int] = []
    write(store, 1)

    def no_socket() -> None:
        assert signal.set_wakeup_fd(-1) == -1

    with store_on(driver, messagedb_url) as each:
        consumer = consumer_on(each, "account", lambda _: None, "mailer", poll_seconds=3600, position="end")
        began = database_time(store.engine)

        def fork_when_it_waits() -> None:
            wait_until(lambda: is_waiting(store.engine, began), "the consumer waits")
            children.append(fork(no_socket))
            consumer.stop()

        with ThreadPoolExecutor(1) as threads:
            forked = threads.submit(fork_when_it_waits)
            consumer.run()
            forked.result()
    assert [exit_code(child) for child in children] == [0]


# ---- a consumer in the child


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_consumer_that_was_made_before_runs_in_the_child(store: Store, messagedb_url: str, driver: str) -> None:
    write(store, 3)
    with store_on(driver, messagedb_url) as each:
        handled: list[Message] = []
        consumer = consumer_on(each, "account", handled.append, "mailer", record_seconds=3600)
        consumer.run_until_caught_up()
        write(store, 2, first=3)

        def run() -> None:
            each.engine.dispose(close=False)
            consumer.run_until_caught_up()
            assert numbers(handled) == [0, 1, 2, 3, 4]

        assert exit_code(fork(run)) == 0
    assert positions(store, "account:position-mailer") == [3, 6]


def test_one_that_runs_in_the_parent_can_run_in_the_child_too(store: Store) -> None:
    """A child has its parent's consumer as it was made: not running, and not stopped."""
    write(store, 2)
    handled: list[int] = []
    consumer = Consumer(store, "account", lambda message: handled.append(message.data["n"]), "mailer", slots=1)

    def stop_when_it_waits() -> None:
        wait_until(lambda: consumer.state().status == "waiting")
        consumer.stop()

    def run() -> None:
        store.engine.dispose(close=False)
        threading.Thread(target=stop_when_it_waits).start()
        consumer.run()

    with running(consumer):
        wait_until(lambda: len(handled) == 2)
        assert exit_code(fork(run)) == 0
        write(store, 1, first=2)
        wait_until(lambda: len(handled) == 3)
    # The child stood by.
    assert handled == [0, 1, 2]
    assert last_position(store, "account:position-mailer-0-of-1") == store.read("account")[-1].global_position


# ---- a child of a handler


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname != "INFO"]


@pytest.mark.parametrize("driver", SYNCHRONOUS)
@pytest.mark.parametrize(
    "options", [{}, {"transactional": True}, {"slots": 2}, {"transactional": True, "record_every": 2}]
)
@pytest.mark.parametrize("ends", ["exits", "raises", "returns", "writes"])
def test_a_child_that_leaves_the_handler_changes_nothing_for_the_parent(
    store: Store,
    tables: None,
    messagedb_url: str,
    caplog: pytest.LogCaptureFixture,
    driver: str,
    options: dict[str, Any],
    ends: str,
) -> None:
    write(store, 4)
    test = os.getpid()
    exit_codes: list[int] = []
    handled: list[int] = []

    def handle(message: Message, connection: Any = None) -> None:
        if os.getpid() != test:
            # It went on with the next message.
            os._exit(7)
        handled.append(message.data["n"])
        if message.data["n"] == 1:
            child = os.fork()
            if child == 0:
                gc.collect()
                if ends == "exits":
                    sys.exit(3)
                if ends == "raises":
                    raise ValueError("in the child")
                if ends == "writes" and connection is not None:
                    connection.execute(text("SELECT 1"))
                return
            exit_codes.append(exit_code(child))
        if connection is not None:
            connection.execute(orders.insert().values(number=message.data["n"]))

    with store_on(driver, messagedb_url) as each:
        connected = []
        event.listen(each.engine, "connect", lambda *_: connected.append(1))
        consumer = Consumer(each, "account", handle, "mailer", **options)
        try:
            assert consumer.run_until_caught_up() == 4
        except BaseException as error:
            if os.getpid() == test:
                raise
            os._exit(3 if isinstance(error, SystemExit) else 4 if isinstance(error, MessageDBError) else 5)
        if os.getpid() != test:
            os._exit(6)
    assert exit_codes == [3 if ends == "exits" else 4]
    assert sorted(handled) == [0, 1, 2, 3]
    assert warnings_of(caplog) == []
    # The consumer's own, and one for handlers.
    assert len(connected) == (2 if options.get("transactional") else 1)
    if options.get("transactional"):
        assert order_numbers(store) == [0, 1, 2, 3]
    assert len(store.read("account:position-mailer")) + len(store.read("account:position-mailer-0-of-2")) > 0


@pytest.mark.parametrize("driver", ["psycopg_async", "asyncpg"])
@pytest.mark.parametrize("options", [{}, {"transactional": True}, {"slots": 2}])
def test_a_child_of_an_asynchronous_handler_changes_nothing_for_the_parent(
    store: Store, messagedb_url: str, caplog: pytest.LogCaptureFixture, driver: str, options: dict[str, Any]
) -> None:
    write(store, 4)
    exit_codes: list[int] = []

    def handle(message: Message, *_: Any) -> None:
        exit_codes.append(exit_code(fork(gc.collect)))

    with store_on(driver, messagedb_url) as each:
        assert consumer_on(each, "account", handle, "mailer", **options).run_until_caught_up() == 4
    assert exit_codes == [0] * 4
    assert warnings_of(caplog) == []


# ---- the rest of the package


def test_a_child_collects_garbage_though_another_thread_had_paused_that() -> None:
    def collects() -> None:
        assert gc.isenabled()

    with uncollected(10**6):
        assert not gc.isenabled()
        assert exit_code(fork(collects)) == 0
        assert not gc.isenabled()
    gc.disable()
    try:
        # By the application.
        with uncollected(10**6):
            assert exit_code(fork(collects)) == 1
    finally:
        gc.enable()


def test_a_child_can_install_the_store_though_another_thread_was_installing(empty_database: Any) -> None:
    with install._alembic_lock.own:
        assert exit_code(fork(lambda: install.upgrade(empty_database))) == 0
    assert install.current(empty_database)
    with empty_database.connect() as connection:
        assert connection.scalar(select(functions.message_store_version()))
