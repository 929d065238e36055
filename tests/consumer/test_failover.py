"""Failover: the primary is gone, and a standby that lagged behind has taken its place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Connection, MetaData, NullPool, Table, Text, create_engine, event, insert, select

from messagedb_sa import Consumer, ConsumerError, Message, Store

from ..standby import Pair, primary_and_standby
from ..support import consumer_on, store_on
from ..waits import wait_until
from .support import last_position, running, write

# A sequence is up to 32 numbers ahead on a standby that is promoted.
REPLICATED, LOST, NEW = 30, 120, 150

handled_there = Table("handled", MetaData(), Column("id", Text))


@pytest.fixture
def pair() -> Iterator[Pair]:
    with primary_and_standby() as pair:
        handled_there.create(pair.engine(pair.primary))
        yield pair


def ids(store: Store) -> list[str]:
    return [message.id for message in store.iter_category("account")]


def positions_reused(lost: list[Message], store: Store) -> int:
    return len(
        {each.global_position for each in lost} & {each.global_position for each in store.iter_category("account")}
    )


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain, recording each": {"record_every": 1},
    "$all": {},
    "slots": {"slots": 2},
    "transactional": {"transactional": True},
    "together": {"transactional": True, "record_every": 10},
}


@pytest.mark.parametrize(
    ("driver", "kind", "reconnects"),
    [
        ("psycopg2", "plain", "to the standby"),
        ("asyncpg", "plain, recording each", "after new messages"),
        ("psycopg", "$all", "after new messages"),
        ("psycopg2", "slots", "to the standby"),
        ("psycopg_async", "slots", "after new messages"),
        ("psycopg", "transactional", "after new messages"),
        ("asyncpg", "transactional", "to the standby"),
        ("psycopg2", "together", "after new messages"),
    ],
)
def test_no_message_of_a_promoted_standby_is_skipped(
    pair: Pair, driver: str, kind: str, reconnects: str, caplog: pytest.LogCaptureFixture
) -> None:
    handled: list[str] = []

    def handle(message: Message, *_: Any) -> None:
        handled.append(message.id)

    before, after = Store(pair.engine(pair.primary)), Store(pair.engine(pair.standby))
    with store_on(driver, pair.url) as store:
        pair.follow(store.engine)
        category = "$all" if kind == "$all" else "account"
        consumer = consumer_on(store, category, handle, "mailer", **OPTIONS[kind])
        with running(consumer):
            write(before, REPLICATED)
            wait_until(lambda: len(handled) == REPLICATED)
            pair.lag()
            write(before, LOST, first=REPLICATED)
            wait_until(lambda: len(handled) == REPLICATED + LOST)
            lost = before.read("account", no_of_messages=-1)[REPLICATED:]
            if "each" in kind:
                wait_until(lambda: last_position(before, "account:position-mailer") == lost[-1].global_position)
            if reconnects == "to the standby":
                # It is read-only, so the consumer waits.
                pair.current = pair.standby
                pair.kill_primary()
                wait_until(lambda: "tries again: ConsumerError: the server is read-only" in caplog.text)
                pair.promote()
                write(after, NEW, first=1000)
            else:
                pair.kill_primary()
                pair.promote()
                write(after, NEW, first=1000)
                pair.current = pair.standby
            wait_until(lambda: set(ids(after)) <= set(handled))
    assert positions_reused(lost, after)
    returned = "does not find the message that it handled last" in caplog.text
    assert returned is not OPTIONS[kind].get("transactional", False)


@pytest.mark.parametrize("handled_before", [0, REPLICATED + 10])
def test_a_transaction_is_never_on_another_server_than_the_messages(pair: Pair, handled_before: int) -> None:
    """The pool may connect to the promoted standby before the consumer knows that the primary is gone, with messages in
    hand that the standby does not have."""
    before, after = Store(pair.engine(pair.primary)), Store(pair.engine(pair.standby))
    write(before, REPLICATED)
    pair.lag()
    write(before, LOST, first=REPLICATED)
    lost = before.read("account", no_of_messages=-1)[REPLICATED:]
    handled: list[str] = []
    connected: list[Path] = []

    def handle(message: Message, connection: Connection) -> None:
        connection.execute(insert(handled_there).values(id=message.id))
        handled.append(message.id)

    engine = create_engine(pair.url, poolclass=NullPool)

    @event.listens_for(engine, "do_connect")
    def fail_over(*_: Any) -> None:
        # The first connection is the one that the consumer reads with.
        if connected and len(handled) == handled_before and pair.current == pair.primary:
            pair.kill_primary()
            pair.promote()
            write(after, NEW, first=1000)
            pair.current = pair.standby
        connected.append(pair.current)

    pair.follow(engine)
    Consumer(Store(engine), "account", handle, "mailer", transactional=True).run_until_caught_up()
    assert connected.count(pair.primary) == handled_before + 1
    assert positions_reused(lost, after)
    with after.engine.connect() as connection:
        assert list(connection.scalars(select(handled_there.c.id))) == ids(after)


def test_a_consumer_that_starts_on_a_standby_says_that_it_needs_the_primary(pair: Pair) -> None:
    standby = Store(pair.engine(pair.standby))
    with pytest.raises(ConsumerError, match=r"the server is read-only, as a standby is; .* connect it to the primary"):
        Consumer(standby, "account", print, "mailer").run()
