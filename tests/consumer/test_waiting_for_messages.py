"""A consumer that has handled everything waits: it polls, or a notification wakes it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from sqlalchemy import create_engine

from messagedb_sa import Consumer, Message, Store, install

from ..support import DRIVERS, consumer_on, numbers, store_on
from ..waits import awaited, wait_until
from .proxy import proxied
from .support import database_time, is_waiting, running, write


def test_a_waiting_consumer_handles_messages_that_are_written_later(each_store: Store, messagedb_url: str) -> None:
    handled: list[Message] = []
    consumer = consumer_on(each_store, "account", handled.append, "mailer", poll_seconds=0.01)
    # Not the store that the consumer is on, whose event loop it occupies.
    writer = Store.from_url(messagedb_url)
    with running(consumer):
        writer.write("account-1", "Opened", {"n": 0})
        wait_until(lambda: len(handled) == 1)
        writer.write_batch("account-1", [("Opened", {"n": 1}), ("Opened", {"n": 2})])
        wait_until(lambda: len(handled) == 3)
    writer.engine.dispose()
    assert numbers(handled) == [0, 1, 2]


def test_a_notification_wakes_it(each_store: Store, messagedb_url: str) -> None:
    engine = create_engine(messagedb_url)
    install.upgrade(engine, notify=True)
    handled: list[Message] = []
    handled_at = [database_time(engine)]

    def handle(message: Message) -> None:
        handled_at.append(database_time(engine))
        handled.append(message)

    # Neither polling nor recording a position comes before a hang.
    consumer = consumer_on(each_store, "account", handle, "mailer", poll_seconds=3600, record_seconds=3600)
    with running(consumer):
        for n in range(3):
            wait_until(lambda: is_waiting(engine, handled_at[-1]))
            Store(engine).write_streams([("other-1", [("Even", {})]), ("account-1", [("Even", {"n": n})])])
            wait_until(partial(handled_all, handled, n + 1))
    install.upgrade(engine, notify=False)
    engine.dispose()
    assert numbers(handled) == [0, 1, 2]


def handled_all(handled: list[Message], count: int) -> bool:
    return len(handled) == count


@pytest.fixture
def notify(store: Store) -> Iterator[None]:
    install.upgrade(store.engine, notify=True)
    yield
    install.upgrade(store.engine, notify=False)


def test_in_a_quiet_category_it_knows_from_the_start_that_notifications_arrive(
    notify: None, each_store: Store, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it need not poll. Here it polls all the time if it knows that, and not before a hang otherwise."""
    monkeypatch.setattr("messagedb_sa.consumer._loop._NOTIFIED_POLL_SECONDS", 0.01)
    handled: list[Message] = []
    consumer = consumer_on(each_store, "account", handled.append, "mailer", poll_seconds=3600, record_seconds=3600)
    began = database_time(store.engine)
    with running(consumer):
        wait_until(lambda: is_waiting(store.engine, began))
        # A message whose notification does not arrive.
        install.upgrade(store.engine, notify=False)
        store.write("account-1", "Opened", {})
        wait_until(lambda: handled)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("behind", [{"swallows_notifications": True}, {"pooler": True}])
def test_behind_a_pooler_that_swallows_notifications_it_polls(
    notify: None,
    store: Store,
    messagedb_url: str,
    driver: str,
    behind: dict[str, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also behind one that delivers notifications along with the answer to a statement."""
    monkeypatch.setattr("messagedb_sa.consumer._loop._NOTIFIED_POLL_SECONDS", 3600)
    handled: list[Message] = []
    with (
        awaited(store.engine),
        proxied(messagedb_url, **behind) as proxy,
        store_on(driver, proxy.url(driver)) as own,
    ):
        consumer = consumer_on(own, "account", handled.append, "mailer", poll_seconds=0.01, record_seconds=3600)
        began = database_time(store.engine)
        with running(consumer):
            wait_until(lambda: is_waiting(store.engine, began))
            write(store, 3)
            wait_until(lambda: len(handled) == 3)

            def is_swallowed() -> int:
                # Not one that happens to come along with the answer to a poll.
                write(store, 1)
                return proxy.swallowed

            wait_until(is_swallowed)


def test_once_a_notification_does_not_arrive_it_polls_until_one_does(
    notify: None, store: Store, messagedb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messagedb_sa.consumer._loop._NOTIFIED_POLL_SECONDS", 0.2)
    own = Store.from_url(messagedb_url)
    handled: list[Message] = []
    consumer = Consumer(own, "account", handled.append, "mailer", poll_seconds=0.01, record_seconds=3600)
    session = consumer._loop.own._session
    written = 1
    # Nobody is notified of this one: its notification could come as late as the next message.
    write(store, 1)
    with running(consumer):
        wait_until(lambda: len(handled) == 1 and session.is_notified_of("account"))
        install.upgrade(store.engine, notify=False)
        # The next one may be found by the read that it makes before it trusts in notifications.
        while written == 1 or session.is_notified:
            write(store, 1)
            written += 1
            wait_until(partial(handled_all, handled, written))
        # From now on it would wait for ever if it still trusted in notifications.
        monkeypatch.setattr("messagedb_sa.consumer._loop._NOTIFIED_POLL_SECONDS", 3600)
        write(store, 1)
        wait_until(partial(handled_all, handled, written + 1))
    own.engine.dispose()
