"""Connections that are lost each time a message is handled: the second loss at the same message is its failure."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import tenacity
from sqlalchemy import NullPool, create_engine, event, make_url, text

from messagedb_sa import AsyncConsumer, Consumer, HandlerFailed, Message, Store

from ..support import DRIVERS, Awaited, AwaitedConsumer, consumer_on, numbers, store_on
from ..waits import wait_in_task_until, wait_until
from .support import Failing, last_position, running, terminate_all, write

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain, recording each": {"record_every": 1},
    "slots": {"slots": 1},
    "transactional": {"transactional": True},
    "transactional slots": {"transactional": True, "slots": 1},
    "together": {"transactional": True, "record_every": 10},
}
# In a transaction of several, a message that fails has been handled once more.
MOST_CALLS = {kind: 3 if kind == "together" else 2 for kind in KINDS}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("messagedb_sa.consumer._session._FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture(params=DRIVERS)
def each(request: pytest.FixtureRequest, store: Store, messagedb_url: str, caplog: pytest.LogCaptureFixture) -> Any:
    """A store on each driver, apart from the test's own, whose connections do not end."""
    caplog.set_level(logging.CRITICAL, "sqlalchemy.pool")
    with store_on(request.param, messagedb_url) as each:
        yield each


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_that_fails_while_all_connections_are_lost_stops_the_consumer(
    each: Store, store: Store, kind: str
) -> None:
    write(store, 3)
    calls: list[int] = []

    def handle(message: Message, *_: Any) -> None:
        calls.append(message.data["n"])
        if message.data["n"] == 1:
            terminate_all(store.engine)
            raise ValueError("no 1")

    with pytest.raises(HandlerFailed, match="ValueError: no 1") as caught:
        consumer_on(each, "account", handle, "mailer", **KINDS[kind]).run_until_caught_up()
    assert caught.value.message.data == {"n": 1}
    assert 2 <= calls.count(1) <= MOST_CALLS[kind]
    assert 2 not in calls


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_whose_connections_are_lost_each_time_is_parked(each: Store, store: Store, kind: str) -> None:
    write(store, 3)
    calls: list[int] = []

    def handle(message: Message, *_: Any) -> None:
        calls.append(message.data["n"])
        if message.data["n"] == 1:
            terminate_all(store.engine)
            raise ValueError("no 1")

    consumer_on(each, "account", handle, "mailer", on_failure="park", **KINDS[kind]).run_until_caught_up()
    (dead,) = store.read("account:dead-mailer")
    assert (dead.data, dead.metadata["dead"]["error"]) == ({"n": 1}, "ValueError: no 1")
    assert 2 <= calls.count(1) <= MOST_CALLS[kind]
    assert calls[-1] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_retry_policy_counts_attempts_whose_connections_are_lost(each: Store, store: Store, kind: str) -> None:
    """It goes on where it was, although the sessions end during each attempt and before each pause."""
    write(store, 3)
    calls: list[int] = []
    pauses: list[float] = []

    def handle(message: Message, *_: Any) -> None:
        calls.append(message.data["n"])
        if message.data["n"] == 1:
            terminate_all(store.engine)
            raise ValueError("no 1")

    def lose(state: tenacity.RetryCallState) -> None:
        pauses.append(state.upcoming_sleep)
        terminate_all(store.engine)

    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(4), wait=tenacity.wait_fixed(0.01), before_sleep=lose)
    consumer = consumer_on(each, "account", handle, "mailer", retry=policy, on_failure="park", **KINDS[kind])
    consumer.run_until_caught_up()
    assert pauses == [0.01] * 3
    # The four that the policy counts, after the first loss, which nobody counts.
    assert calls.count(1) == MOST_CALLS[kind] + 3
    assert numbers(store.read("account:dead-mailer")) == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_retry_that_succeeds_ends_the_counting(each: Store, store: Store, kind: str) -> None:
    write(store, 3)
    calls: list[int] = []

    def handle(message: Message, *_: Any) -> None:
        calls.append(message.data["n"])
        if message.data["n"] == 1 and calls.count(1) < 4:
            terminate_all(store.engine)
            raise ValueError("no 1")

    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(4), wait=tenacity.wait_fixed(0.01))
    consumer_on(each, "account", handle, "mailer", retry=policy, **KINDS[kind]).run_until_caught_up()
    assert calls.count(1) == 4
    assert calls[-1] == 2


@pytest.mark.parametrize("kind", ["plain", "plain, recording each", "slots"])
def test_a_message_that_is_handled_is_not_handled_again_for_a_lost_connection(
    each: Store, store: Store, kind: str
) -> None:
    """Otherwise a consumer whose sessions are shorter than its handler would handle one message for ever."""
    write(store, 4)
    calls: list[int] = []

    def handle(message: Message) -> None:
        calls.append(message.data["n"])
        terminate_all(store.engine)

    consumer_on(each, "account", handle, "mailer", batch_size=1, **KINDS[kind]).run_until_caught_up()
    assert calls == [0, 1, 2, 3]
    stream = "account:position-mailer" + ("-0-of-1" if kind == "slots" else "")
    assert last_position(store, stream) == store.read("account")[-1].global_position


def test_losses_at_different_messages_are_not_added_up(each: Store, store: Store) -> None:
    write(store, 6)
    calls: list[int] = []

    def handle(message: Message, *_: Any) -> None:
        calls.append(message.data["n"])
        if calls.count(message.data["n"]) == 1:
            terminate_all(store.engine)
            raise ValueError("once")

    consumer_on(each, "account", handle, "mailer", transactional=True).run_until_caught_up()
    assert calls == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_the_next_run_handles_the_message_that_failed(store: Store, messagedb_url: str) -> None:
    write(store, 1)
    own = Store.from_url(messagedb_url)
    failing = Failing(at=0, times=2)

    def handle(message: Message) -> None:
        if failing.left[0]:
            terminate_all(store.engine)
        failing(message)

    consumer = Consumer(own, "account", handle, "mailer")
    with pytest.raises(HandlerFailed):
        consumer.run_until_caught_up()
    assert consumer.run_until_caught_up() == 1
    assert failing.numbers == [0, 0, 0]
    own.engine.dispose()


def test_it_can_be_stopped_in_a_pause_after_losses(
    store: Store, messagedb_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(store, 1)
    own = Store.from_url(messagedb_url)

    def handle(message: Message) -> None:
        terminate_all(store.engine)
        raise ValueError("no 0")

    policy = tenacity.Retrying(wait=tenacity.wait_fixed(3600))
    with running(Consumer(own, "account", handle, "mailer", retry=policy)):
        wait_until(lambda: "tries again in 3600.0 s" in caplog.text)
    own.engine.dispose()


@pytest.mark.parametrize("setting", ["idle_session_timeout", "idle_in_transaction_session_timeout"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_handler_that_is_slower_than_a_session_may_be_is_called_twice(
    each: Store, store: Store, messagedb_url: str, login: Callable[..., str], setting: str, fails: bool
) -> None:
    role = login("hasty", "SUPERUSER")
    write(store, 2)
    calls: list[int] = []
    admin = create_engine(messagedb_url, isolation_level="AUTOCOMMIT", poolclass=NullPool).connect()

    def is_the_first(message: Message) -> bool:
        """The consumer has begun without the timeout, which could be too short for a busy machine: now it gets it."""
        if message.data["n"] == 0 and not is_hasty:
            is_hasty.append(True)
            admin.execute(text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'hasty'"))
        return bool(message.data["n"] == 0)

    is_hasty: list[bool] = []

    def hurry(driver: Any, _: Any) -> None:
        """The consumer's own session leaves the pool when it has begun."""
        if is_hasty and setting == "idle_session_timeout":
            cursor = driver.cursor()
            cursor.execute(f"SET {setting} = '50ms'")
            cursor.close()

    # A transaction's session gets it from the handler: one that ended before would count, without a call. For the same
    # reason, one that waits in the pool has no timeout.
    begun = text("SELECT 1" if setting == "idle_session_timeout" else f"SET {setting} = '50ms'")

    def are_gone() -> bool:
        # Of the consumer's own session and that of the transaction.
        left: int = admin.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE usename = 'hasty'")) or 0
        return left <= 1

    def end() -> None:
        calls.append(1)
        if fails:
            raise ValueError("no 1")

    def handle(message: Message, connection: Any) -> None:
        if is_the_first(message):
            return
        connection.execute(begun)
        wait_until(are_gone)
        end()

    async def handle_async(message: Message, connection: Any) -> None:
        if is_the_first(message):
            return
        await connection.execute(begun)
        await wait_in_task_until(are_gone)
        end()

    driver = each.engine.url.drivername.partition("+")[2]
    driver = "psycopg_async" if each.engine.dialect.is_async and driver == "psycopg" else driver
    url = make_url(messagedb_url).set(username=role).render_as_string(hide_password=False)
    options: dict[str, Any] = {"transactional": True, "on_failure": "park"}
    with admin, store_on(driver, url) as own:
        event.listen(own.engine, "detach", hurry)
        if isinstance(own, Awaited):
            asynchronous = AsyncConsumer(own._store, "account", handle_async, "mailer", **options)
            AwaitedConsumer(asynchronous, own._loop).run_until_caught_up()
        else:
            Consumer(own, "account", handle, "mailer", **options).run_until_caught_up()
    commits = setting == "idle_session_timeout" and not fails
    assert len(calls) == (1 if commits else 2)
    assert numbers(store.read("account:dead-mailer")).count(1) == (0 if commits else 1)
