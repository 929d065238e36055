"""Transactional consumers: what a handler writes and the position commit together."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tenacity
from sqlalchemy import Connection, create_engine, func, insert, make_url, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from messagedb_sa import (
    AsyncConsumer,
    AsyncStore,
    Consumer,
    HandlerFailed,
    InvalidArgument,
    Message,
    PositionConflict,
    Store,
)

from ..support import Order, numbers, orders
from ..waits import HANG
from .support import Failing, last_position, order_numbers, write

HOMES = pytest.mark.parametrize("home", ["table", "stream"])


@HOMES
def test_rows_messages_and_position_commit_together(store: Store, tables: None, home: Any) -> None:
    write(store, 3)
    seen: list[tuple[int, int | None]] = []

    def handle(message: Message, connection: Connection) -> None:
        connection.execute(insert(orders).values(number=message.data["n"]))
        Store(connection).write("order-1", "Placed", {"n": message.data["n"]})
        seen.append((store.stream_version("order-1"), last_position(store, "account:position-mailer")))

    Consumer(store, "account", handle, "mailer", transactional=True, positions=home).run_until_caught_up()
    assert order_numbers(store) == numbers(store.read("order-1")) == [0, 1, 2]
    assert last_position(store, "account:position-mailer") == 3
    assert seen == [(-1, None), (0, 1), (1, 2)]


@pytest.mark.parametrize("transactional", [True, Session, sessionmaker()])
def test_what_a_failed_handler_wrote_is_rolled_back(store: Store, tables: None, transactional: Any) -> None:
    write(store, 3)
    failing = Failing(at=1, times=1)

    def handle(message: Message, bind: Any) -> None:
        bind.execute(insert(orders).values(number=message.data["n"]))
        Store(bind).write("order-1", "Placed", {"n": message.data["n"]})
        failing(message)

    consumer = Consumer(store, "account", handle, "mailer", transactional=transactional)
    with pytest.raises(HandlerFailed):
        consumer.run_until_caught_up()
    assert order_numbers(store) == numbers(store.read("order-1")) == [0]
    assert last_position(store, "account:position-mailer") == 1
    consumer.run_until_caught_up()
    assert order_numbers(store) == numbers(store.read("order-1")) == [0, 1, 2]


def test_a_session_is_flushed_and_committed_with_the_position(store: Store, tables: None) -> None:
    write(store, 2)

    def handle(message: Message, session: Session) -> None:
        session.add(Order(number=message.data["n"]))

    Consumer(store, "account", handle, "mailer", transactional=sessionmaker()).run_until_caught_up()
    assert order_numbers(store) == [0, 1]
    assert last_position(store, "account:position-mailer") == 2


def test_a_handler_that_commits_fails(store: Store, tables: None) -> None:
    write(store, 1)

    def handle(message: Message, connection: Connection) -> None:
        connection.commit()

    with pytest.raises(HandlerFailed, match="global position 1") as caught:
        Consumer(store, "account", handle, "mailer", transactional=True).run_until_caught_up()
    assert "closed transaction" in str(caught.value.__cause__)


def test_retries_and_parking_are_in_transactions_too(store: Store, tables: None) -> None:
    write(store, 4)
    failing = Failing(at=1)

    def handle(message: Message, connection: Connection) -> None:
        connection.execute(insert(orders).values(number=message.data["n"]))
        failing(message)

    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(2))
    Consumer(
        store, "account", handle, "mailer", transactional=True, retry=policy, on_failure="park"
    ).run_until_caught_up()
    assert failing.numbers == [0, 1, 1, 2, 3]
    assert order_numbers(store) == [0, 2, 3]
    assert numbers(store.read("account:dead-mailer")) == [1]
    assert last_position(store, "account:position-mailer") == 4


@pytest.mark.parametrize("transactional", [True, Session])
def test_an_engine_without_transactions_is_refused(store: Store, messagedb_url: str, transactional: Any) -> None:
    engine = create_engine(messagedb_url, isolation_level="AUTOCOMMIT")
    with pytest.raises(InvalidArgument, match="transactional=True: needs an engine"):
        Consumer(Store(engine), "account", print, "mailer", transactional=transactional).run()
    engine.dispose()


def test_a_session_with_binds_is_refused(store: Store) -> None:
    elsewhere = sessionmaker(binds={Order: store.engine})
    with pytest.raises(InvalidArgument, match="must not have binds"):
        Consumer(store, "account", print, "mailer", transactional=elsewhere)


@HOMES
def test_a_serialization_failure_is_retried_and_not_a_position_conflict(
    store: Store, messagedb_url: str, tables: None, home: Any
) -> None:
    engine = create_engine(messagedb_url, isolation_level="SERIALIZABLE")
    write(store, 1)
    attempts: list[int] = []

    def handle(message: Message, connection: Connection) -> None:
        attempts.append(message.data["n"])
        count = connection.scalar(select(func.count()).select_from(orders))
        connection.execute(insert(orders).values(number=100))
        if len(attempts) == 1:
            # Another transaction that did not see it, and that this one does not see.
            with engine.begin() as other:
                assert other.scalar(select(func.count()).select_from(orders)) == count
                other.execute(insert(orders).values(number=200))

    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(3))
    Consumer(
        Store(engine), "account", handle, "mailer", transactional=True, positions=home, retry=policy
    ).run_until_caught_up()
    assert len(attempts) == 2
    assert order_numbers(store) == [100, 200]
    engine.dispose()


@HOMES
@pytest.mark.parametrize("record_every", [None, 7])
def test_two_consumers_with_one_identifier_conflict_and_commit_each_message_once(
    store: Store, tables: None, record_every: int | None, home: Any
) -> None:
    write(store, 200)
    conflicts: list[PositionConflict] = []
    both_handle_the_first = threading.Barrier(2, timeout=HANG)
    both_have = threading.Event()

    def handle(message: Message, connection: Connection) -> None:
        if message.data["n"] == 0 and not both_have.is_set():
            both_handle_the_first.wait()
            both_have.set()
        Store(connection).write("order-1", "Placed", {"n": message.data["n"]})

    def run() -> None:
        while True:
            try:
                Consumer(
                    store,
                    "account",
                    handle,
                    "mailer",
                    transactional=True,
                    positions=home,
                    record_every=record_every,
                ).run_until_caught_up(handle_signals=False)
            except PositionConflict as conflict:
                conflicts.append(conflict)
            else:
                return

    with ThreadPoolExecutor() as pool:
        for ended in [pool.submit(run), pool.submit(run)]:
            ended.result()
    assert conflicts
    assert numbers(store.read("order-1")) == list(range(200))


@pytest.mark.parametrize("driver", ["psycopg_async", "asyncpg"])
@pytest.mark.parametrize("transactional", [True, AsyncSession, async_sessionmaker()])
def test_asynchronous_handlers_write_in_the_transaction(
    store: Store, tables: None, messagedb_url: str, driver: str, transactional: Any
) -> None:
    write(store, 3)
    left = [ValueError("once")]

    async def handle(message: Message, bind: Any) -> None:
        assert isinstance(bind, AsyncConnection if transactional is True else AsyncSession)
        await bind.execute(insert(orders).values(number=message.data["n"]))
        await AsyncStore(bind).write("order-1", "Placed", {"n": message.data["n"]})
        if message.data["n"] == 1 and left:
            raise left.pop()

    async def main() -> None:
        engine = create_async_engine(make_url(messagedb_url).set(drivername=f"postgresql+{driver}"))
        consumer = AsyncConsumer(AsyncStore(engine), "account", handle, "mailer", transactional=transactional)
        with pytest.raises(HandlerFailed):
            await consumer.run_until_caught_up()
        assert await consumer.run_until_caught_up() == 2
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        await engine.dispose()

    asyncio.run(main())
    assert order_numbers(store) == numbers(store.read("order-1")) == [0, 1, 2]
    assert last_position(store, "account:position-mailer") == 3
