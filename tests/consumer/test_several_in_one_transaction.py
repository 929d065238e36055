"""Transactional consumers that handle several messages in one transaction."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, insert
from sqlalchemy.orm import Session, sessionmaker

from messagedb_sa import Consumer, HandlerFailed, Message, Store

from ..support import numbers, orders
from .support import Failing, last_position, order_numbers, positions, write


@pytest.mark.parametrize("transactional", [True, Session, sessionmaker()])
def test_several_messages_can_share_a_transaction(store: Store, tables: None, transactional: Any) -> None:
    write(store, 10)
    seen: list[int] = []

    def handle(message: Message, bind: Any) -> None:
        bind.execute(insert(orders).values(number=message.data["n"]))
        Store(bind).write("order-1", "Placed", {"n": message.data["n"]})
        seen.append(store.stream_version("order-1"))

    consumer = Consumer(
        store,
        "account",
        handle,
        "mailer",
        transactional=transactional,
        positions="stream",
        record_every=4,
        record_seconds=3600,
    )
    assert consumer.run_until_caught_up() == 10
    assert order_numbers(store) == numbers(store.read("order-1")) == list(range(10))
    assert positions(store, "account:position-mailer") == [4, 8, 10]
    assert seen == [-1] * 4 + [3] * 4 + [7] * 2


def test_if_one_of_several_fails_the_others_are_committed_once(
    store: Store, tables: None, caplog: pytest.LogCaptureFixture
) -> None:
    write(store, 12)
    failing = Failing(at=5)

    def handle(message: Message, connection: Connection) -> None:
        connection.execute(insert(orders).values(number=message.data["n"]))
        failing(message)

    def consume(**options: Any) -> None:
        options |= {"transactional": True, "positions": "stream", "record_every": 4, "record_seconds": 3600}
        Consumer(store, "account", handle, "mailer", **options).run_until_caught_up()

    with pytest.raises(HandlerFailed, match="global position 6"):
        consume()
    assert "rolled back a transaction, handles its messages one by one: ValueError: no 5" in caplog.text
    assert order_numbers(store) == [0, 1, 2, 3, 4]
    assert positions(store, "account:position-mailer") == [4, 5]
    consume(on_failure="park")
    assert order_numbers(store) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert numbers(store.read("account:dead-mailer")) == [5]
    assert positions(store, "account:position-mailer") == [4, 5, 6, 7, 8, 9, 12]
    assert failing.numbers == [0, 1, 2, 3, 4, 5, 4, 5, 5, 5, *range(6, 12)]


def test_a_stop_commits_what_was_handled(store: Store, tables: None) -> None:
    write(store, 10)

    def handle(message: Message, connection: Connection) -> None:
        connection.execute(insert(orders).values(number=message.data["n"]))
        if message.data["n"] == 2:
            consumer.stop()

    consumer = Consumer(store, "account", handle, "mailer", transactional=True, record_every=100, record_seconds=3600)
    consumer.run()
    assert order_numbers(store) == [0, 1, 2]
    assert last_position(store, "account:position-mailer") == 3


def test_a_transaction_ends_after_so_many_seconds(store: Store, tables: None) -> None:
    write(store, 3)

    def handle(message: Message, connection: Connection) -> None:
        connection.execute(insert(orders).values(number=message.data["n"]))

    options: dict[str, Any] = {"positions": "stream", "record_every": 100, "record_seconds": 0}
    Consumer(store, "account", handle, "mailer", transactional=True, **options).run_until_caught_up()
    assert positions(store, "account:position-mailer") == [1, 2, 3]


@pytest.mark.parametrize("category", ["account", "$all"])
def test_messages_without_a_handler_make_no_transaction(store: Store, tables: None, category: str) -> None:
    write(store, 10)
    store.write("account-1", "Even", {"n": 10})
    store.write("account-1", "Unknown", {"n": 11})

    def handle(message: Message, connection: Connection) -> None:
        connection.execute(insert(orders).values(number=message.data["n"]))

    options: dict[str, Any] = {"transactional": True, "positions": "stream", "record_every": 5, "record_seconds": 3600}
    consumer = Consumer(store, category, {"Even": handle}, "mailer", **options)
    assert consumer.run_until_caught_up() == 6
    assert order_numbers(store) == [0, 2, 4, 6, 8, 10]
    # A transaction for 1 to 5 and one for 7 to 11; 6 and 12 have no handler.
    recorded = positions(store, f"{category}:position-mailer")
    assert recorded[:2] == [5, 11]
    # Nor do its own positions, which a consumer of $all reads.
    assert consumer.run_until_caught_up() == 0
    assert positions(store, f"{category}:position-mailer") == recorded
