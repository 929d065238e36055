"""What a check finds, and what it does not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import create_engine, event
from tenacity import Retrying, wait_fixed

from messagedb_sa import AsyncConsumer, AsyncStore, Consumer, HandlerFailed, InvalidArgument, Message, Store, health
from messagedb_sa.testing import backdated

from ..consumer.support import running, terminate_all, write
from ..waits import HANG, wait_until
from .support import Held, get, kinds

LONG_AGO = datetime.now(timezone.utc) - timedelta(days=400)


def write_long_ago(store: Store, count: int = 1, category: str = "account") -> None:
    with backdated(store, LONG_AGO) as then:
        write(then, count, category)


def test_a_consumer_without_work_is_well_however_old_the_last_message_is(store: Store) -> None:
    write_long_ago(store, 3)
    consumer = Consumer(store, "account", lambda _: None, "mailer", poll_seconds=0.001)
    with running(consumer):
        wait_until(lambda: consumer.state().handled == 3)
        wait_until(lambda: not health.check([consumer], store=store, expected=[("account", "mailer")], max_age=0))
        # It says so by what it does, not by messages: each wait has an end, and begins anew.
        wait_until(lambda: consumer.state().status == "waiting")
        assert health.check([consumer]) == []


def test_one_that_has_nothing_to_read_yet_is_not_missing(store: Store) -> None:
    consumer = Consumer(store, "account", lambda _: None, "mailer")
    with running(consumer):
        wait_until(lambda: consumer.state().status == "waiting")
        assert health.check([consumer], store=store, expected=[("account", "mailer")], max_age=0) == []


def test_one_that_was_not_run_or_was_stopped_is_not_ready_but_needs_no_restart(store: Store) -> None:
    consumer = Consumer(store, "account", lambda _: None, "mailer")
    (new,) = health.check([consumer])
    consumer.run_until_caught_up()
    (stopped,) = health.check([consumer])
    assert [(each.kind, each.needs_restart) for each in (new, stopped)] == [("not_running", False)] * 2
    assert (new.category, new.identifier, new.text) == ("account", "mailer", "it has not been run")
    assert stopped.text == "it has stopped"


def test_one_that_an_error_ended_needs_a_restart(store: Store) -> None:
    write(store, 1)

    def fail(message: Message) -> None:
        raise ValueError("a secret")

    consumer = Consumer(store, "account", fail, "mailer")
    with pytest.raises(HandlerFailed):
        consumer.run()
    (found,) = health.check([consumer], store=store)
    assert (found.kind, found.needs_restart) == ("failed", True)
    assert found.text == "it was ended by HandlerFailed, and is not running"


def test_a_handler_that_takes_too_long_is_stuck(store: Store) -> None:
    write(store, 1)
    held = Held()
    consumer = Consumer(store, "account", held, "mailer")
    with running(consumer):
        try:
            wait_until(lambda: held.messages)
            wait_until(lambda: health.check([consumer], stuck_seconds=0))
            (found,) = health.check([consumer], stuck_seconds=0)
            assert (found.kind, found.needs_restart) == ("stuck", True)
            assert found.text.startswith("its handler has had message 1, Even of account-0, for ")
            assert health.check([consumer], stuck_seconds=HANG) == []
        finally:
            held.release()
        wait_until(lambda: not health.check([consumer], stuck_seconds=0))


def test_an_event_loop_that_is_blocked_is_stuck(store: Store, messagedb_url: str) -> None:
    consumers: list[AsyncConsumer] = []
    may_go = threading.Event()

    async def main() -> None:
        own = AsyncStore.from_url(messagedb_url.replace("psycopg2", "psycopg"))
        consumers.append(AsyncConsumer(own, "account", print, "mailer", poll_seconds=0.001))
        loops.append(asyncio.get_running_loop())
        await consumers[0].run()
        await own.engine.dispose()

    loops: list[asyncio.AbstractEventLoop] = []
    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    wait_until(lambda: consumers and consumers[0].state().status == "waiting")

    def block() -> None:
        # Only while it waits: that it has no answer of the database is told apart, and much later.
        if consumers[0].state().status == "waiting":
            may_go.wait(HANG)
        else:
            loops[0].call_soon(block)

    loops[0].call_soon_threadsafe(block)
    try:
        wait_until(lambda: kinds(health.check(consumers, stuck_seconds=0.5)) == ["stuck"])
        assert "no time" in health.check(consumers, stuck_seconds=0.5)[0].text
    finally:
        may_go.set()
        wait_until(lambda: not health.check(consumers, stuck_seconds=0.5))
        consumers[0].stop()
        thread.join(HANG)


def test_one_that_pauses_before_the_next_attempt_is_not_stuck_but_behind(store: Store) -> None:
    write_long_ago(store)
    attempts: list[Message] = []

    def fail(message: Message) -> None:
        attempts.append(message)
        raise ValueError("not yet")

    # Its pause is one wait, which no record interrupts: at the end of each, it may be late by a moment.
    consumer = Consumer(store, "account", fail, "mailer", retry=Retrying(wait=wait_fixed(3600)), record_seconds=3600)
    with running(consumer):
        wait_until(lambda: attempts and consumer.state().status == "waiting")
        assert health.check([consumer], stuck_seconds=0) == []
        (found,) = health.check([consumer], store=store)
        assert (found.kind, found.identifier, found.needs_restart) == ("missing", "mailer", False)


def test_slots_count_for_the_process_that_has_them(store: Store) -> None:
    held = Held()
    first, second = (Consumer(store, "account", held, "shared", slots=1) for _ in range(2))
    write_long_ago(store)
    with running(first):
        try:
            wait_until(lambda: held.messages)
            with running(second):
                wait_until(lambda: second.state().status == "waiting" and second.state().members == ())
                # It stands by.
                assert health.check([second], store=store) == []
                assert kinds(health.check([first], store=store)) == ["missing"]
        finally:
            held.release()
        wait_until(lambda: not health.check([first], store=store))


def test_all_members_of_an_expected_group_count_but_not_those_of_an_earlier_number(store: Store) -> None:
    write(store, 3)
    Consumer(store, "account", lambda _: None, "shared", slots=3).run_until_caught_up()
    later = Consumer(store, "account", lambda _: None, "shared", slots=2, position=4)
    later.run_until_caught_up()
    assert health.check(store=store, expected=[("account", "shared")]) == []
    write_long_ago(store, 3)
    found = health.check(store=store, expected=[("account", "shared")])
    statuses = [each for each in store.consumers("account") if each.group_size == 2 and each.waiting_since]
    assert kinds(found) == ["behind"] * len(statuses)
    assert [each.group_member for each in found] == [each.group_member for each in statuses]
    assert found[0].text.startswith("a message has waited for 345")
    later.run_until_caught_up()
    assert health.check(store=store, expected=[("account", "shared")]) == []


def test_an_expected_consumer_that_has_recorded_nothing_is_missing(store: Store) -> None:
    write_long_ago(store)
    (found,) = health.check(store=store, expected=[("account", "mailer"), ("order", "mailer")])
    assert found[:4] == ("missing", "account", "mailer", None)
    assert found.text.startswith("it has recorded no position, and a message has waited for ")
    assert kinds(health.check(store=store, expected=[("account", "mailer")], max_age=None)) == ["missing"]


def test_without_an_age_one_that_is_behind_is_well(store: Store) -> None:
    write(store, 1)
    Consumer(store, "account", lambda _: None, "mailer").run_until_caught_up()
    write_long_ago(store)
    assert kinds(health.check(store=store, expected=[("account", "mailer")])) == ["behind"]
    assert health.check(store=store, expected=[("account", "mailer")], max_age=None) == []


def test_one_with_a_correlation_is_not_judged_by_messages_that_it_does_not_read(store: Store) -> None:
    write_long_ago(store)
    consumer = Consumer(store, "account", lambda _: None, "mailer", correlation="transfer")
    with running(consumer):
        wait_until(lambda: consumer.state().status == "waiting")
        assert health.check([consumer], store=store, max_age=0) == []


def test_a_consumer_of_all_is_well_when_only_positions_were_written_since(store: Store) -> None:
    write_long_ago(store, 3)
    Consumer(store, "$all", lambda _: None, "mirror").run_until_caught_up()
    Consumer(store, "account", lambda _: None, "mailer").run_until_caught_up()
    assert health.check(store=store, expected=[("$all", "mirror"), ("account", "mailer")], max_age=0) == []


def test_a_server_that_is_away_needs_no_restart(store: Store, messagedb_url: str) -> None:
    away = threading.Event()
    engine = create_engine(messagedb_url)

    @event.listens_for(engine, "do_connect")
    def refuse(*_: Any) -> None:
        if away.is_set():
            raise OSError("away")

    own = Store(engine)
    consumer = Consumer(own, "account", lambda _: None, "mailer")
    with running(consumer):
        wait_until(lambda: not health.check([consumer], store=own))
        away.set()
        terminate_all(store.engine)
        engine.dispose()
        wait_until(lambda: consumer.state().status == "connecting")
        found = health.check([consumer], store=own)
        assert kinds(found) == ["not_connected", "no_answer"]
        assert not any(each.needs_restart for each in found)
        away.clear()
        wait_until(lambda: not health.check([consumer], store=own))
    engine.dispose()


WORKER = """
import sys
from messagedb_sa import Consumer, Store

def handle(message):
    print(message.global_position, flush=True)

Consumer(Store.from_url(sys.argv[1]), "account", handle, "mailer").run()
"""


def test_a_worker_that_was_killed_is_behind_when_a_message_is_older_than_the_age(
    store: Store, messagedb_url: str
) -> None:
    def check(max_age: float) -> list[health.Finding]:
        return health.check(store=store, expected=[("account", "mailer")], max_age=max_age)

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", WORKER, messagedb_url], stdout=subprocess.PIPE, text=True)

    with start() as worker:
        assert worker.stdout is not None
        try:
            write_long_ago(store)
            assert worker.stdout.readline() == "1\n"
            wait_until(lambda: not check(0), "the worker has recorded its position")
        finally:
            worker.kill()
    # Nothing waits, so nothing is wrong for those who wait for messages.
    assert check(0) == []
    write(store, 1)
    written = store.read("account", position=2)[0].time
    outside = health.endpoint(store=store, expected=[("account", "mailer")], max_age=1, database_seconds=HANG)
    promised = written + timedelta(seconds=1)
    while (began := datetime.now(timezone.utc)) <= promised + timedelta(seconds=1):
        found, ready = kinds(check(1)), get(outside, "/ready").status == 200
        ended = datetime.now(timezone.utc)
        # Not before the promised age, by the same clock, and from then on each time.
        assert found == ["behind"] or began <= promised
        assert found == [] or ended > promised
        assert ready or ended > promised
        time.sleep(0.01)
    assert kinds(check(1)) == ["behind"]
    # An answer serves for a second after it has come.
    wait_until(lambda: get(outside, "/ready").status == 503)
    assert check(3600) == []
    with start() as worker:
        assert worker.stdout is not None
        try:
            assert worker.stdout.readline() == "3\n"
            wait_until(lambda: not check(0))
        finally:
            worker.kill()


def test_an_asynchronous_check_finds_the_same(store: Store, messagedb_url: str) -> None:
    write_long_ago(store)

    async def main() -> None:
        for driver in ("psycopg", "asyncpg"):
            own = AsyncStore.from_url(messagedb_url.replace("psycopg2", driver))
            found = await health.async_check(store=own, expected=[("account", "mailer")])
            assert kinds(found) == ["missing"]
            consumer = AsyncConsumer(own, "account", lambda _: None, driver)
            await consumer.run_until_caught_up()
            assert kinds(await health.async_check([consumer], store=own)) == ["not_running"]
            assert await health.async_check(store=own, expected=[("account", driver)]) == []
            await own.engine.dispose()
        nowhere = AsyncStore.from_url("postgresql+asyncpg://127.0.0.1:1/nowhere")
        assert kinds(await health.async_check(store=nowhere)) == ["no_answer"]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"consumers": ["mailer"]}, r"^consumers\[0\]='mailer': must be a Consumer"),
        ({"consumers": 7}, "^consumers=7: must be a list"),
        ({"expected": "account"}, "^expected='account': must be a list"),
        ({"expected": ["account"]}, r"^expected\[0\]='account': must be \(category, identifier\)"),
        ({"expected": [("account-1", "mailer")]}, r"^expected\[0\].category='account-1'"),
        ({"expected": [("account", 7)]}, r"^expected\[0\].identifier=7"),
        ({"max_age": -1}, "^max_age=-1"),
        ({"stuck_seconds": "5"}, "^stuck_seconds='5'"),
        ({"store": "postgresql://"}, "^store="),
    ],
)
def test_what_does_not_fit_is_refused(wrong: dict[str, Any], named: str) -> None:
    consumers = wrong.get("consumers", [])
    others = {name: value for name, value in wrong.items() if name != "consumers"}
    with pytest.raises(InvalidArgument, match=named):
        health.check(consumers, **others)
    with pytest.raises(InvalidArgument, match=named):
        health.endpoint(consumers, **others)
    with pytest.raises(InvalidArgument, match=named):
        asyncio.run(health.async_check(consumers, **others))


def test_a_store_of_the_other_kind_is_refused_with_a_way_out(store: Store) -> None:
    other = AsyncStore.from_url("postgresql+asyncpg://")
    with pytest.raises(InvalidArgument, match="await async_check"):
        health.check(store=other)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="call check"):
        asyncio.run(health.async_check(store=store))  # type: ignore[arg-type]
    with store.engine.connect() as connection, pytest.raises(InvalidArgument, match="must be on an Engine"):
        health.endpoint(store=Store(connection))
