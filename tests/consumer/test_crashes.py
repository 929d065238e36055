"""Consumers whose processes are killed at random points of their progress: nothing is missed, and in transactions
nothing is repeated."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from messagedb_sa import Consumer, Message, Store

from ..support import LONG
from ..waits import wait_until
from .crashing import (
    COMMITTED,
    COMMITTING,
    HANDLED,
    RECORDED,
    SLOTS,
    STEPS,
    WRITTEN,
    Death,
    Point,
    facts,
)
from .support import asking_apart, last_position, sessions

pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="has no fork"), pytest.mark.timeout(1200)]

# Each run is another one; if it fails, the message names it.
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
        connection.execute(text("TRUNCATE message_store.consumer_positions"))
    yield
    with store.engine.begin() as connection:
        connection.execute(text("DROP TABLE handled, ended"))


def kill(store: Store, how: str, kills: int) -> list[Death]:
    """Run consumers and kill so many, while messages are written; what became of each."""
    url = store.engine.url.render_as_string(hide_password=False)
    program = Path(__file__).with_name("crashing.py")
    command: list[str | Path] = [sys.executable, program, url, how, str(kills), str(SEED)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with asking_apart(store.engine) as asking:
        before = sessions(asking)
        with subprocess.Popen(command, start_new_session=True, **pipes) as killing:
            try:
                assert killing.stdout is not None
                lines = killing.stdout.readlines()
                assert killing.wait() == 0, SEED
            finally:
                # If it does not end by itself, the processes that it has forked would stay.
                if killing.poll() is None:
                    os.killpg(killing.pid, signal.SIGKILL)
        # What the last ones had asked for is done, or never will be, and their slots are free.
        wait_until(lambda: sessions(asking) <= before)
    deaths = [Death(**json.loads(line)) for line in lines]
    for death in deaths:
        death.point = death.point and Point(**death.point)  # type: ignore[arg-type]
    return deaths


def the_kills_hit(how: str, kills: int, deaths: list[Death]) -> None:
    """Nearly every process had handled something, and each kind of step was the last one of some process."""
    assert len(deaths) == kills, SEED
    assert sum(WRITTEN in death.steps for death in deaths) > kills * 2 / 3, SEED
    for death in deaths:
        assert death.signal == signal.SIGKILL
        assert death.point is not None
        assert death.point.is_reached(death.steps)
        if death.point.waits:
            assert death.steps.endswith(death.point.step), (SEED, death)
    assert {death.steps[-1] for death in deaths} == set(STEPS[how]), SEED


def rows(store: Store, query: str) -> list[Any]:
    with store.engine.connect() as connection:
        return list(connection.execute(text(query)))


def handled_messages(store: Store) -> list[str]:
    return [str(row.message) for row in rows(store, "SELECT message FROM handled ORDER BY number")]


@pytest.mark.parametrize("how", ["plainly", "asynchronously"])
def test_at_least_once_misses_nothing(store: Store, handled: None, how: str) -> None:
    kills = 150 if LONG else 40
    deaths = kill(store, how, kills)
    the_kills_hit(how, kills, deaths)
    unrecorded = [death for death in deaths if death.steps.rfind(WRITTEN) > death.steps.rfind(RECORDED)]
    assert len(unrecorded) > kills / 4, SEED
    with store.engine.connect() as connection:

        def handle(message: Message) -> None:
            connection.execute(HANDLED, facts(message))
            connection.commit()

        Consumer(store, "account", handle, "crashing").run_until_caught_up()
    written = store.read_category("account", no_of_messages=-1)
    found = handled_messages(store)
    assert set(found) == {message.id for message in written}, SEED
    # What came before is handled before: each message is at most one further than what was handled already.
    order = {message.id: number for number, message in enumerate(written)}
    furthest = -1
    for each in found:
        assert order[each] <= furthest + 1, SEED
        furthest = max(furthest, order[each])
    # At least the last one of each process that surely had not recorded it.
    surely = [death for death in unrecorded if death.point and death.point.waits]
    assert len(found) - len(written) >= len(surely), SEED


@pytest.mark.parametrize("how", ["transactional", "in_stream", "together"])
def test_exactly_once_neither_misses_nor_repeats(store: Store, handled: None, how: str) -> None:
    kills = 200 if LONG else 40
    deaths = kill(store, how, kills)
    the_kills_hit(how, kills, deaths)
    in_transaction = [death for death in deaths if death.steps[-1] in (WRITTEN, RECORDED, COMMITTING)]
    assert len(in_transaction) > kills / 4, SEED
    if how == "together":
        several = [death for death in in_transaction if death.steps.rpartition(COMMITTED)[2].count(WRITTEN) > 1]
        assert len(several) > kills / 8, SEED
    # The server took back what a process had written when it died.
    kept = Counter(row.process for row in rows(store, "SELECT process FROM handled"))
    taken_back = [death for death in in_transaction if kept[death.pid] < death.steps.count(WRITTEN)]
    assert {death.pid for death in in_transaction if death.point and death.point.waits} <= {
        death.pid for death in taken_back
    }, SEED

    def handle(message: Message, connection: Any) -> None:
        connection.execute(HANDLED, facts(message))
        Store(connection).write(f"answer-{message.stream_id}", "Answered", {"to": message.id})

    home: Any = "stream" if how == "in_stream" else "table"
    Consumer(store, "account", handle, "crashing", transactional=True, positions=home).run_until_caught_up()
    written = store.read_category("account", no_of_messages=-1)
    ids = [message.id for message in written]
    assert handled_messages(store) == ids, SEED
    assert [message.data["to"] for message in store.read_category("answer", no_of_messages=-1)] == ids, SEED
    assert last_position(store, "account:position-crashing") == written[-1].global_position
    recorded = store.stream_version("account:position-crashing")
    if how != "in_stream":
        # The stream has the marker only.
        assert recorded == 0
        ((recorded,),) = rows(store, "SELECT version FROM message_store.consumer_positions")
    transactions = recorded + 1
    assert transactions < len(written) if how == "together" else transactions == len(written)


def test_slots_move_between_processes_and_keep_each_stream_in_order(store: Store, handled: None) -> None:
    kills = 25 if LONG else 12
    deaths = kill(store, "slots", kills)
    killed = [death for death in deaths if death.point is not None]
    assert len(killed) == kills, SEED
    assert {death.signal for death in killed} == {signal.SIGKILL, signal.SIGTERM}
    assert sum(WRITTEN in death.steps for death in killed) > kills / 2, SEED
    with store.engine.connect() as connection:

        def handle(message: Message) -> None:
            connection.execute(HANDLED, facts(message))
            connection.commit()

        Consumer(store, "account", handle, "crashing", slots=SLOTS).run_until_caught_up()
    written = store.read_category("account", no_of_messages=-1)
    assert set(handled_messages(store)) == {message.id for message in written}, SEED

    beginnings = rows(store, "SELECT stream, position, slot, process FROM handled ORDER BY number")
    furthest: dict[str, int] = defaultdict(lambda: -1)
    for row in beginnings:
        assert row.position <= furthest[row.stream] + 1, (SEED, row)
        furthest[row.stream] = max(furthest[row.stream], row.position)
    of_slots: dict[int, set[int]] = defaultdict(set)
    for row in beginnings:
        if row.slot is not None:
            of_slots[row.slot].add(row.process)
    assert len(set.union(*of_slots.values())) > kills / 2, SEED
    assert min(len(of_slots[slot]) for slot in range(SLOTS)) > 1, (SEED, of_slots)

    # A process that another one has followed in a slot was done with the message that it had. What it was doing when it
    # was killed does not count: for that, it had another session than for its slots, which may end later.
    done = {death.pid: death.steps.count(WRITTEN) for death in deaths}
    overlaps = rows(
        store,
        "WITH counted AS (SELECT *, row_number() OVER (PARTITION BY process ORDER BY number) AS nth FROM handled)"
        " SELECT one.process, one.nth, other.process AS follower, other.nth AS follower_nth"
        " FROM counted one JOIN counted other ON other.slot = one.slot AND other.process <> one.process"
        " JOIN ended ON ended.message = one.message AND ended.process = one.process"
        " WHERE other.at BETWEEN one.at AND ended.at",
    )
    for row in overlaps:
        assert row.nth > done[row.process] or row.follower_nth > done[row.follower], (SEED, row)
