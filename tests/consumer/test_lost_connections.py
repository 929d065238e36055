"""Connections: how many a consumer has, and what it does when it loses them."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, NullPool, create_engine, event, func, insert, select
from sqlalchemy.exc import OperationalError

from messagedb_sa import Consumer, Message, Store, install
from messagedb_sa.testing import temporary_server

from ..support import consumer_on, numbers, orders, store_on
from ..waits import HANG, wait_until
from .support import asking_apart, order_numbers, running, sessions, terminate_all, write


def test_it_has_one_connection_outside_the_pool_and_closes_it(messagedb_url: str, store: Store) -> None:
    write(store, 3)
    engine = create_engine(messagedb_url, pool_size=1, max_overflow=0, pool_timeout=1)
    seen: list[int] = []

    def handle(message: Message, connection: Connection) -> None:
        seen.append(len(sessions(asking) - before))

    with asking_apart(store.engine) as asking:
        before = sessions(asking)
        Consumer(Store(engine), "account", handle, "mailer", transactional=True).run_until_caught_up()
        # The other one is that of the handler's transaction.
        assert seen == [2, 2, 2]
        engine.dispose()
        wait_until(lambda: not sessions(asking) - before)


@pytest.mark.parametrize("handles", ["idly", "by the store", "in a transaction"])
def test_it_connects_again_after_a_lost_connection(
    store: Store, messagedb_url: str, tables: None, handles: str, caplog: pytest.LogCaptureFixture
) -> None:
    own = Store.from_url(messagedb_url)
    handled: list[int] = []
    lost = threading.Event()

    def lose(message: Message) -> None:
        if message.data["n"] == 2 and not lost.is_set():
            lost.set()
            terminate_all(store.engine)

    def handle(message: Message) -> None:
        lose(message)
        if handles == "by the store":
            own.write("order-1", "Placed", message.data)
        handled.append(message.data["n"])

    def handle_in(message: Message, connection: Connection) -> None:
        connection.execute(insert(orders).values(number=message.data["n"]))
        lose(message)
        handled.append(message.data["n"])

    if handles == "in a transaction":
        consumer = Consumer(own, "account", handle_in, "mailer", transactional=True)
    else:
        consumer = Consumer(own, "account", handle, "mailer", record_seconds=0)
    write(store, 5)
    with running(consumer):
        wait_until(lambda: len(set(handled)) == 5)
    own.engine.dispose()
    assert "lost the connection" in caplog.text
    assert sorted(set(handled)) == [0, 1, 2, 3, 4]
    if handles == "in a transaction":
        assert order_numbers(store) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("transactional", [False, True])
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "psycopg_async", "asyncpg"])
def test_it_waits_for_a_server_that_crashed_to_start_again(
    driver: str, transactional: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """In transactions each message has a new connection: it may be the first that the server refuses."""
    handled: list[int] = []
    options: dict[str, Any] = {"transactional": True} if transactional else {"record_every": 1}
    pool: dict[str, Any] = {"poolclass": NullPool} if transactional else {}
    with temporary_server(settings={"synchronous_commit": "on", "restart_after_crash": "on"}) as url:
        engine = create_engine(url)
        install.upgrade(engine)
        writer = Store(engine)
        write(writer, 3)

        def handle(message: Message, *_: Any) -> None:
            handled.append(message.data["n"])

        with (
            store_on(driver, url, **pool) as store,
            running(consumer_on(store, "account", handle, "mailer", **options)),
        ):
            wait_until(lambda: handled == [0, 1, 2])
            # If a backend is killed, the server ends all others, and recovers as after a power cut.
            with engine.connect() as connection:
                pid = connection.scalars(select(func.pg_backend_pid())).one()
                os.kill(pid, signal.SIGKILL)
                connection.invalidate()
            wait_until(lambda: "lost the connection" in caplog.text)

            def written() -> bool:
                try:
                    writer.write("account-9", "Opened", {"n": 9})
                except Exception:  # noqa: BLE001 - until it is there again
                    engine.dispose()
                    return False
                return True

            wait_until(written)
            wait_until(lambda: handled[-1] == 9)
        engine.dispose()
    assert sorted(set(handled)) == [0, 1, 2, 9]


def test_a_dead_connection_in_the_handlers_pool_is_not_a_failure_of_the_message(
    store: Store, messagedb_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The consumer has connected again before; the handler's pool finds out with the next message."""
    caplog.set_level(logging.INFO, "messagedb_sa.consumer")
    own, consumers = Store.from_url(messagedb_url), Store.from_url(messagedb_url)
    begun: list[int] = []
    handled: list[int] = []

    def handle(message: Message) -> None:
        begun.append(message.data["n"])
        own.stream_version("account-1")
        handled.append(message.data["n"])

    with running(Consumer(consumers, "account", handle, "mailer")):
        write(store, 1)
        wait_until(lambda: handled == [0])
        terminate_all(store.engine)
        wait_until(lambda: "connected again" in caplog.text)
        write(store, 1, first=1)
        wait_until(lambda: handled == [0, 1])
    assert begun == [0, 1, 1]
    own.engine.dispose()
    consumers.engine.dispose()


@pytest.mark.parametrize("record_every", [None, 10])
def test_a_handler_that_loses_its_connection_each_time_fails(
    store: Store, tables: None, messagedb_url: str, record_every: int | None
) -> None:
    write(store, 3)
    attempts: list[int] = []

    def handle(message: Message, connection: Connection) -> None:
        connection.execute(insert(orders).values(number=message.data["n"]))
        attempts.append(message.data["n"])
        if message.data["n"] == 1:
            pid = connection.scalars(select(func.pg_backend_pid())).one()
            with store.engine.connect() as other:
                assert other.scalar(select(func.pg_terminate_backend(pid, int(HANG * 1000))))
            connection.execute(select(1))

    own = Store.from_url(messagedb_url)
    consumer = Consumer(
        own,
        "account",
        handle,
        "mailer",
        transactional=True,
        on_failure="park",
        record_every=record_every,
    )
    consumer.run_until_caught_up()
    assert order_numbers(store) == [0, 2]
    assert numbers(store.read("account:dead-mailer")) == [1]
    assert 2 <= attempts.count(1) <= 6
    own.engine.dispose()


def test_it_pauses_between_connections_that_are_lost_at_once(
    store: Store, messagedb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it asks costs the connection, although it can connect."""
    monkeypatch.setattr("messagedb_sa.consumer._session._FIRST_PAUSE_SECONDS", 600.0)
    engine = create_engine(messagedb_url)
    lost: list[str] = []

    def lose(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
        if "get_category_messages" in statement:
            lost.append(statement)
            terminate_all(store.engine)

    event.listen(engine, "before_cursor_execute", lose)
    with running(Consumer(Store(engine), "account", print, "mailer")):
        wait_until(lambda: len(lost) == 2)
        time.sleep(0.5)
    engine.dispose()
    assert len(lost) == 2


def test_it_connects_again_on_an_engine_that_installed_the_store(
    store: Store, messagedb_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Installing sets an isolation level on psycopg2's connection, and to set another one it asks the server."""
    own = Store.from_url(messagedb_url)
    install.upgrade(own.engine)
    handled: list[Message] = []
    with running(Consumer(own, "account", handled.append, "mailer")):
        write(store, 1)
        wait_until(lambda: len(handled) == 1)
        terminate_all(store.engine)
        write(store, 1)
        wait_until(lambda: len(handled) == 2)
    own.engine.dispose()
    assert "lost the connection" in caplog.text


def test_a_server_that_is_missing_at_the_start_is_an_error(tmp_path: Path) -> None:
    nowhere = create_engine(f"postgresql+psycopg2:///nowhere?host={tmp_path}")
    with pytest.raises(OperationalError):
        Consumer(Store(nowhere), "account", print, "mailer").run()


def test_it_can_be_stopped_while_it_has_no_connection(store: Store, messagedb_url: str) -> None:
    engine = create_engine(messagedb_url)
    away = threading.Event()
    refused: list[str] = []

    @event.listens_for(engine, "do_connect")
    def refuse(*_: Any) -> None:
        if away.is_set():
            refused.append("away")
            raise OSError("away")

    write(store, 1)
    handled: list[Message] = []
    with running(Consumer(Store(engine), "account", handled.append, "mailer")):
        wait_until(lambda: handled)
        away.set()
        terminate_all(store.engine)
        wait_until(lambda: len(refused) >= 2)
    engine.dispose()


@pytest.mark.parametrize("options", [{}, {"slots": 2}])
def test_it_can_be_stopped_while_the_new_connection_is_lost_again(
    store: Store,
    messagedb_url: str,
    options: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So that it has something to record when it stops.
    monkeypatch.setattr("messagedb_sa.consumer._partition.Partition.catch_up", lambda _: None)
    engine = create_engine(messagedb_url, poolclass=NullPool)
    handled: list[Message] = []
    consumer = Consumer(Store(engine), "account", handled.append, "mailer", record_seconds=3600, **options)
    lost: list[int] = []

    @event.listens_for(engine, "connect")
    def lose(driver: Any, _: Any) -> None:
        if handled:
            consumer.stop()
            # Only this one, and by a new session: the test's own may still be at work, ending the ones before.
            with create_engine(store.engine.url, poolclass=NullPool).connect() as other:
                assert other.scalar(select(func.pg_terminate_backend(driver.get_backend_pid(), int(HANG * 1000))))
            lost.append(driver.get_backend_pid())

    write(store, 1)
    with caplog.at_level("INFO", logger="messagedb_sa.consumer"), running(consumer):
        wait_until(lambda: handled)
        terminate_all(store.engine)
        wait_until(lambda: lost)
        wait_until(lambda: "consumer stopped" in caplog.text)
    assert len(lost) == 1
    assert "stops without a connection: its last position is not recorded" in caplog.text
    # It is handled again by the next run.
    engine = create_engine(messagedb_url, poolclass=NullPool)
    assert Consumer(Store(engine), "account", print, "mailer", **options).run_until_caught_up() == 1
