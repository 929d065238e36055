"""Notifications only where somebody awaits them: what a consumer awaits, and that no wake is missed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, event, insert, text

from messagedb_sa import Consumer, Message, Store, Subscription, install, schema
from messagedb_sa.consumer._options import POLL_SECONDS

from ..support import LONG, consumer_on, numbers
from ..waits import HANG, awaited, wait_until
from .support import is_awaited, names_awaited, running

# No poll, and no record, comes before a hang.
NEVER = 3600.0
ONLY_WOKEN: Any = {"poll_seconds": NEVER, "record_seconds": NEVER}


@pytest.fixture(autouse=True)
def notify(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("messagedb_sa.consumer._loop._NOTIFIED_POLL_SECONDS", NEVER)
    install.upgrade(store.engine, notify=True)
    yield
    install.upgrade(store.engine, notify=False)


def write_by_another(connection: Connection, stream_name: str, number: int) -> None:
    """As another program would that takes no lock of Message DB's."""
    data = {"stream_name": stream_name, "position": number, "type": "Counted", "data": {"n": number}}
    connection.execute(insert(schema.messages).values(data))


# ---- what is awaited


@pytest.mark.parametrize("category", ["account", "$all"])
def test_one_that_waits_awaits_its_category_and_no_other(store: Store, each_store: Store, category: str) -> None:
    consumer = consumer_on(each_store, category, lambda _: None, "mailer", **ONLY_WOKEN)
    with running(consumer):
        wait_until(lambda: is_awaited(store.engine, category))
        assert names_awaited(store.engine, "account", "$all", "other") == {category}
    assert names_awaited(store.engine, category) == set()


def test_one_that_is_busy_awaits_nothing_until_it_has_caught_up(
    store: Store, each_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messagedb_sa.consumer._loop._BUSY_SECONDS", 0.0)
    seen: list[set[str]] = []
    # A page of one message each.
    consumer = consumer_on(
        each_store,
        "account",
        lambda _: seen.append(names_awaited(store.engine, "account")),
        "mailer",
        batch_size=1,
        **ONLY_WOKEN,
    )
    with running(consumer):
        wait_until(lambda: is_awaited(store.engine, "account"))
        store.write_batch("account-1", [("Counted", {"n": number}) for number in range(3)])
        wait_until(lambda: len(seen) == 3)
        # It was woken at the first.
        assert seen == [{"account"}, set(), set()]
        wait_until(lambda: is_awaited(store.engine, "account"))
        store.write("account-1", "Counted", {"n": 3})
        wait_until(lambda: len(seen) == 4)


def test_one_that_is_busy_for_a_moment_is_still_woken(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("messagedb_sa.consumer._loop._BUSY_SECONDS", NEVER)
    seen: list[set[str]] = []
    handler: Callable[[Message], object] = lambda _: seen.append(names_awaited(store.engine, "account"))  # noqa: E731
    with running(Consumer(store, "account", handler, "mailer", batch_size=1, **ONLY_WOKEN)):
        wait_until(lambda: is_awaited(store.engine, "account"))
        store.write_batch("account-1", [("Counted", {"n": number}) for number in range(3)])
        wait_until(lambda: len(seen) == 3)
    assert seen == [{"account"}] * 3


def test_members_of_a_group_and_slots_await_the_category(store: Store) -> None:
    handled: list[int] = []
    keep: Callable[[Message], object] = lambda message: handled.append(message.data["n"])  # noqa: E731
    with ExitStack() as stack:
        for member in range(2):
            options = {"group_size": 2, "group_member": member, **ONLY_WOKEN}
            stack.enter_context(running(Consumer(store, "account", keep, "members", **options)))
        stack.enter_context(running(Consumer(store, "account", keep, "slots", slots=2, **ONLY_WOKEN)))
        for number in range(10):
            store.write(f"account-{number}", "Counted", {"n": number})
        wait_until(lambda: len(handled) == 20)
    assert sorted(handled) == sorted([*range(10)] * 2)


# ---- nothing is missed


def test_what_a_transaction_wrote_before_it_waits_is_handled(store: Store, each_store: Store) -> None:
    """Its trigger found that nobody awaits the message."""
    handled: list[Message] = []
    with store.engine.connect() as connection:
        write_by_another(connection, "account-1", 0)
        with running(consumer_on(each_store, "account", handled.append, "mailer", **ONLY_WOKEN)):
            wait_until(lambda: is_awaited(store.engine, "account"))
            connection.commit()
            wait_until(lambda: numbers(handled) == [0])
            # From now on, its writers wake it.
            store.write("account-2", "Counted", {"n": 1})
            wait_until(lambda: numbers(handled) == [0, 1])


def test_a_transaction_that_stays_open_keeps_nothing_else_from_it(store: Store) -> None:
    handled: list[Message] = []
    with store.engine.connect() as stays, store.engine.connect() as connection:
        write_by_another(stays, "other-1", 0)
        write_by_another(connection, "account-1", 0)
        with running(Consumer(store, "account", handled.append, "mailer", **ONLY_WOKEN)):
            wait_until(lambda: is_awaited(store.engine, "account"))
            connection.commit()
            wait_until(lambda: numbers(handled) == [0])
            store.write("account-2", "Counted", {"n": 1})
            wait_until(lambda: numbers(handled) == [0, 1])


@pytest.mark.parametrize("follower", ["consumer", "subscription"])
def test_if_a_writer_is_in_the_way_it_polls_and_awaits_later(store: Store, follower: str) -> None:
    """A writer has the lock for a moment. Here, it is a long one."""
    handled: list[Message] = []
    with store.engine.connect() as connection, ExitStack() as stack:
        connection.execute(text("SELECT pg_advisory_lock(1297302595, hashtext('account'))"))
        if follower == "consumer":
            stack.enter_context(running(Consumer(store, "account", handled.append, "mailer", **ONLY_WOKEN)))
        else:
            subscription = stack.enter_context(Subscription(store, "account", poll_seconds=NEVER))
            thread = threading.Thread(target=handled.extend, args=(subscription,))
            thread.start()
            stack.callback(thread.join, HANG)
            stack.callback(subscription.close)
        store.write("account-1", "Counted", {"n": 0})
        wait_until(lambda: len(handled) == 1)
        store.write("account-1", "Counted", {"n": 1})
        wait_until(lambda: len(handled) == 2)
        connection.execute(text("SELECT pg_advisory_unlock_all()"))
        wait_until(lambda: is_awaited(store.engine, "account"))
        store.write("account-1", "Counted", {"n": 2})
        wait_until(lambda: len(handled) == 3)


def test_one_that_cannot_await_all_yet_goes_on_awaiting_its_categories(store: Store) -> None:
    with store.engine.connect() as connection, ExitStack() as stack:
        connection.execute(text("SELECT pg_advisory_lock(1297302595, hashtext('$all'))"))
        found: dict[str, list[Message]] = {}

        def follow(name: str) -> None:
            found[name] = kept = list[Message]()
            subscription = stack.enter_context(Subscription(store, name, poll_seconds=NEVER))
            thread = threading.Thread(target=kept.extend, args=(subscription,))
            thread.start()
            stack.callback(thread.join, HANG)
            stack.callback(subscription.close)

        def each_has(number: int) -> bool:
            return all(len(kept) == number for kept in found.values())

        for number in range(32):
            follow(f"c{number}")
        wait_until(lambda: is_awaited(store.engine, *found))
        follow("c32")
        for name in found:
            store.write(f"{name}-1", "Counted", {"n": 0})
        wait_until(lambda: each_has(1))
        assert len(names_awaited(store.engine, *found)) == 32
        connection.execute(text("SELECT pg_advisory_unlock_all()"))
        wait_until(lambda: names_awaited(store.engine, "$all", *found) == {"$all"})
        for name in found:
            store.write(f"{name}-1", "Counted", {"n": 1})
        wait_until(lambda: each_has(2))


def test_other_categories_do_not_make_it_read(store: Store, messagedb_url: str) -> None:
    engine = create_engine(messagedb_url)
    handled: list[Message] = []
    reads: list[str] = []
    with awaited(store.engine), running(Consumer(Store(engine), "account", handled.append, "mailer", **ONLY_WOKEN)):
        wait_until(lambda: is_awaited(store.engine, "account"))
        store.write("account-1", "Counted", {"n": 0})
        wait_until(lambda: handled)
        event.listen(engine, "before_cursor_execute", lambda *arguments: reads.append(arguments[2]))
        began = time.monotonic()
        for number in range(50):
            store.write("other-1", "Counted", {"n": number})
        store.write("account-1", "Counted", {"n": 1})
        wait_until(lambda: len(handled) == 2)
        # Those about its own messages, and polls as long as those have not ended who wrote when it began to wait.
        polls = (time.monotonic() - began) / POLL_SECONDS
        assert sum("get_category_messages" in read for read in reads) < 10 + polls
    engine.dispose()


WRITER = """
import json, random, sys, time
from messagedb_sa import Store
url, process, count, seed = json.loads(sys.argv[1])
chance = random.Random(f"{seed}-{process}")
store = Store.from_url(url)
number = 0
while number < count:
    # About as long as a consumer takes to go to wait, so that the two meet at every moment.
    time.sleep(chance.expovariate(1 / 0.002))
    category = chance.choice(["account", "order", "stock"])
    how = chance.randrange(3)
    if how == 0:
        with store.engine.begin() as connection:
            joined = Store(connection)
            joined.write(f"{category}-{process}", "Counted", {"n": [process, number]})
            time.sleep(chance.expovariate(1 / 0.002))
            joined.write(f"{category}-{process}", "Counted", {"n": [process, number + 1]})
        number += 2
    elif how == 1:
        store.write_batch(f"{category}-{process}", [("Counted", {"n": [process, number + each]}) for each in range(3)])
        number += 3
    else:
        store.write(f"{category}-{process}", "Counted", {"n": [process, number]})
        number += 1
print(number)
"""


@pytest.mark.timeout(1200)
def test_of_writes_at_random_moments_by_several_processes_none_is_missed(store: Store, messagedb_url: str) -> None:
    """Each is handled by a consumer and a subscription of its category, and by those of $all, none of which polls."""
    seed, each = random.randrange(2**32), 2500 if LONG else 300
    own = Store.from_url(messagedb_url)
    handled: dict[str, list[Message]] = {}
    with ExitStack() as stack:
        for category in ("account", "order", "stock", "$all"):
            consumed = handled[f"handled: {category}"] = list[Message]()
            followed = handled[f"followed: {category}"] = list[Message]()
            consumer = Consumer(own, category, consumed.append, "mailer", poll_seconds=NEVER, record_seconds=NEVER)
            stack.enter_context(running(consumer))
            subscription = Subscription(own, category, poll_seconds=NEVER)
            thread = threading.Thread(target=followed.extend, args=(subscription,))
            thread.start()
            stack.callback(thread.join, HANG)
            stack.callback(subscription.close)
        written = write_in_processes(4, messagedb_url, each, seed)
        assert written >= 4 * each
        for what in ("handled", "followed"):
            of_category = [handled[f"{what}: {category}"] for category in ("account", "order", "stock")]
            of_all = handled[f"{what}: $all"]
            wait_until(partial(has_all, of_category, written), f"those of the categories have {what} all (seed {seed})")
            wait_until(partial(has_all, [of_all], written), f"that of $all has {what} all (seed {seed})")
    own.engine.dispose()


def has_all(handled: list[list[Message]], written: int) -> bool:
    """Each once. Consumers of $all see what others record, too."""
    return sum(message.type == "Counted" for messages in handled for message in messages) == written


def write_in_processes(number: int, url: str, each: int, seed: int) -> int:
    """The number of messages that were written."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, json.dumps([url, process, each, seed])], stdout=subprocess.PIPE, text=True
        )
        for process in range(number)
    ]
    return sum(int(writer.communicate()[0]) for writer in writers)
