"""Consumers whose processes are killed at random points: nothing is missed, and in transactions nothing is repeated."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from messagedb_sa import Consumer, Message, Store

from .crashing import HANDLED, facts

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="has no fork")

# Each run is another one; what it was is told where it fails.
SEED = random.randrange(2**32)


@pytest.fixture
def handled(store: Store) -> Iterator[None]:
    """Tables for what handlers do."""
    with store.engine.begin() as connection:
        both = "at timestamptz DEFAULT clock_timestamp(), message uuid, process int"
        connection.execute(
            text(f"CREATE TABLE handled ({both}, number bigserial, stream text, position int, slot int)")
        )
        connection.execute(text(f"CREATE TABLE ended ({both})"))
    yield
    with store.engine.begin() as connection:
        connection.execute(text("DROP TABLE handled, ended"))


def kill(store: Store, how: str, kills: int) -> list[Message]:
    """Have consumers handle what is written meanwhile, and kill them; what was written."""
    url = store.engine.url.render_as_string(hide_password=False)
    program = Path(__file__).with_name("crashing.py")
    killing = subprocess.Popen([sys.executable, program, url, how, str(kills), str(SEED)])
    chance = random.Random(SEED)
    try:
        while killing.poll() is None:
            store.write_batch(f"account-{chance.randrange(20)}", [("Opened", {})] * chance.randrange(1, 20))
            time.sleep(0.01)
    finally:
        killing.kill()
        killing.wait()
    assert killing.returncode == 0
    return store.read_category("account", no_of_messages=-1)


def rows(store: Store, query: str) -> list[Any]:
    with store.engine.connect() as connection:
        return list(connection.execute(text(query)))


def handled_messages(store: Store) -> list[str]:
    return [str(row.message) for row in rows(store, "SELECT message FROM handled ORDER BY number")]


@pytest.mark.parametrize("how", ["plainly", "asynchronously"])
def test_at_least_once_misses_nothing(store: Store, handled: None, how: str) -> None:
    written = kill(store, how, 150)
    with store.engine.connect() as connection:

        def handle(message: Message) -> None:
            connection.execute(HANDLED, facts(message))
            connection.commit()

        Consumer(store, "account", handle, "crashing").run_until_caught_up()
    found = handled_messages(store)
    assert set(found) == {message.id for message in written}, SEED
    # What came before is handled before: each message is at most one further than what was handled already.
    order = {message.id: number for number, message in enumerate(written)}
    furthest = -1
    for each in found:
        assert order[each] <= furthest + 1, SEED
        furthest = max(furthest, order[each])
    print(f"{len(found) - len(written)} of {len(written)} were handled again")


@pytest.mark.parametrize("how", ["transactional", "together"])
def test_exactly_once_neither_misses_nor_repeats(store: Store, handled: None, how: str) -> None:
    written = kill(store, how, 200)

    def handle(message: Message, connection: Any) -> None:
        connection.execute(HANDLED, facts(message))
        Store(connection).write(f"answer-{message.stream_id}", "Answered", {"to": message.id})

    Consumer(store, "account", handle, "crashing", transactional=True).run_until_caught_up()
    ids = [message.id for message in written]
    assert handled_messages(store) == ids, SEED
    assert [message.data["to"] for message in store.read_category("answer", no_of_messages=-1)] == ids, SEED
    recorded = store.read_last_message("account:position-crashing")
    assert recorded is not None
    assert recorded.data == {"position": written[-1].global_position}
    transactions = recorded.position + 1
    assert transactions == len(written) if how == "transactional" else transactions < len(written)


def test_slots_move_between_processes_and_keep_each_stream_in_order(store: Store, handled: None) -> None:
    written = kill(store, "slots", 25)
    with store.engine.connect() as connection:

        def handle(message: Message) -> None:
            connection.execute(HANDLED, facts(message))
            connection.commit()

        Consumer(store, "account", handle, "crashing", slots=4).run_until_caught_up()
    assert set(handled_messages(store)) == {message.id for message in written}, SEED

    beginnings = rows(store, "SELECT stream, position, slot, process FROM handled ORDER BY number")
    furthest: dict[str, int] = defaultdict(lambda: -1)
    for row in beginnings:
        assert row.position <= furthest[row.stream] + 1, (SEED, row)
        furthest[row.stream] = max(furthest[row.stream], row.position)
    assert len({row.process for row in beginnings}) > 10

    # A process that another one has followed in a slot was done with the message that it had.
    overlaps = rows(
        store,
        "SELECT * FROM handled one JOIN handled other ON other.slot = one.slot AND other.process <> one.process"
        " JOIN ended ON ended.message = one.message AND ended.process = one.process"
        " WHERE other.at BETWEEN one.at AND ended.at",
    )
    assert overlaps == [], SEED
